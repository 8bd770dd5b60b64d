"""TryOffDiffPipeline: a garment's shop picture out of a photo, by the published models and in their way.

    pipe = TryOffDiffPipeline.from_pretrained("tryoffdiffv2_multi.pth")
    shirt = pipe.try_off("anna.jpg", "upper").images[0]

``B`` photos times categories, ``C`` latent channels, ``h w`` latents, ``K D`` tokens of context and their width,
``S`` the side of the square pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, EulerDiscreteScheduler, PNDMScheduler, UNet2DConditionModel
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from omfa import images
from omfa.baselines.tryoffdiff.networks import (
    CLASSES,
    SD14_UNET,
    Encoder,
    ImageAdapter,
    Version,
    labels_of,
    make_adapter,
    make_scheduler,
    make_unet,
    version_of,
)
from omfa.baselines.tryoffdiff.parts import DECODERS, SIGLIP_HUB, SUFFIXES, Part, load_encoder, load_vae, local_file
from omfa.baselines.tryoffdiff.pictures import stretched, to_square
from omfa.baselines.tryoffdiff.weights import check_official, load_official, official_version, open_official
from omfa.components import CLOTHES, Category
from omfa.images import Box, Picture
from omfa.weights import check_parts, finite

Noise = Literal["preserving", "exploding"]
Unconditional = Literal["features", "picture"]
OutputType = Literal["pil", "np", "pt", "latent"]


@dataclass(frozen=True)
class Quirks:
    """Where the published programs leave the textbook; as published all are True.

    That v2 and MGT leave ``scale_model_input`` out is none of them: they were trained so (``noise="exploding"``).

    Args:
        unscaled_start: sampling starts from noise of variance 1 where the first noise level is 14.6. Tells Euler's way
            of v2 and MGT alone; PNDM starts there anyway.
        fractional_timesteps: the network is told the timesteps between whole ones that Karras' noise levels fall on,
            though it was trained on whole ones.
        stretched: every picture is stretched to its own least and greatest value, so the whitest pixel becomes white
            and the darkest black, whatever the garment.
    """

    unscaled_start: bool = True
    fractional_timesteps: bool = True
    stretched: bool = True


TEXTBOOK = Quirks(unscaled_start=False, fractional_timesteps=False, stretched=False)
# Steps, guidance and what the unconditional pass is given: the paper's v1 and the authors' programs for v2 and MGT.
# Their demo takes guidance 2 and "features"; that it decodes the last estimate of x_0 comes to the same, for the last
# Euler step ends there.
PUBLISHED: dict[Version, dict[str, Any]] = {
    "v1": {"default_steps": 50, "default_guidance": 2.0, "unconditional": "features", "noise": "preserving"},
    "v2": {"default_steps": 20, "default_guidance": 2.5, "unconditional": "picture", "noise": "exploding"},
    "mgt": {"default_steps": 20, "default_guidance": 2.5, "unconditional": "picture", "noise": "exploding"},
}


@dataclass
class TryOffDiffOutput(BaseOutput):
    """What a call made.

    Args:
        images: pictures of the first category asked for, one a photo: PIL pictures; for ``np`` (B, S, S, 3) and for
            ``pt`` (B, 3, S, S) in [0, 1] (lists where pictures are cut); for ``latent`` (B, C, h, w).
        garments: category to such pictures, for all that were asked for.
    """

    images: Any
    garments: dict[str, Any]


class TryOffDiffPipeline(DiffusionPipeline):
    """Try-off with TryOffDiff (arXiv 2411.18350).

    Args:
        vae: latents to pixels; pixels to latents in training.
        unet: SD 1.4's layout, with 3 classes for MGT.
        adapter: tokens of the photo to the UNet's context.
        image_encoder: SigLIP's vision transformer, or one like it.
        scheduler: PNDM (v1), or Euler (v2, MGT).
        categories: what it takes off: one for v2, all three for MGT.
        noise: what the network was trained to see: latents and noise blended to variance 1 ("preserving"), or noise
            added to untouched latents ("exploding": v2 and MGT as published).
        unconditional: what the unconditional pass is given: zeros for the photo's tokens ("features"), or the tokens of
            a grey picture ("picture").
        default_steps, default_guidance: what a call takes that names none.
        as_published: whether a call that says nothing else has the :class:`Quirks`.
        cut_to_person: give pictures of the photo's shape, the padding cut off; as published they are square.

    Raises:
        ValueError: parts that don't fit together.
    """

    model_cpu_offload_seq = "image_encoder->adapter->unet->vae"
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        adapter: ImageAdapter,
        image_encoder: Encoder,
        scheduler: PNDMScheduler | EulerDiscreteScheduler,
        categories: list | tuple = tuple(CLASSES),
        noise: str = "exploding",
        unconditional: str = "picture",
        default_steps: int = 20,
        default_guidance: float = 2.5,
        as_published: bool = True,
        cut_to_person: bool = False,
    ) -> None:
        super().__init__()
        unknown = [c for c in categories if c not in set(CLOTHES)]
        if unknown or not categories:
            raise ValueError(f"categories {list(categories)} must be one or more of {', '.join(CLOTHES)}")
        if noise not in ("preserving", "exploding") or unconditional not in ("features", "picture"):
            raise ValueError(
                f"noise {noise!r} must be 'preserving' or 'exploding', unconditional {unconditional!r} 'features' or "
                "'picture'"
            )
        if noise == "exploding" and not isinstance(scheduler, EulerDiscreteScheduler):
            raise ValueError(f"noise='exploding' needs EulerDiscreteScheduler, not {type(scheduler).__name__}")
        if scheduler.config.prediction_type != "epsilon":
            raise ValueError(f"TryOffDiff predicts noise (epsilon), not {scheduler.config.prediction_type}")
        if unet.config.cross_attention_dim != adapter.config.width:
            raise ValueError(
                f"the UNet's context is {unet.config.cross_attention_dim} wide, the adapter's {adapter.config.width}"
            )
        version_of(unet, adapter)
        self.register_modules(vae=vae, unet=unet, adapter=adapter, image_encoder=image_encoder, scheduler=scheduler)
        eyes = image_encoder.config
        seen = (eyes.image_size // eyes.patch_size) ** 2, eyes.hidden_size
        if seen != (adapter.config.tokens, adapter.config.width) or eyes.image_size != self.side:
            raise ValueError(
                f"the image encoder makes {seen[0]} tokens, {seen[1]} wide, of {eyes.image_size} pixels a side, the "
                f"adapter takes {adapter.config.tokens}, {adapter.config.width} wide, UNet and VAE make {self.side} "
                f"pixels a side: give another image_encoder (for published files {SIGLIP_HUB})"
            )
        self.register_to_config(
            categories=[str(c) for c in categories], noise=noise, unconditional=unconditional,
            default_steps=default_steps, default_guidance=default_guidance, as_published=as_published,
            cut_to_person=cut_to_person,
        )  # fmt: skip

    @property
    def side(self) -> int:
        """S, in pixels."""
        return self.unet.config.sample_size * 2 ** (len(self.vae.config.block_out_channels) - 1)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> TryOffDiffPipeline:
        """Load a published ``.pth`` (see :func:`official_pipeline` for ``kwargs``), a folder that
        :meth:`save_pretrained` wrote, or a hub id of one (``kwargs`` go to diffusers; only safetensors are read).

        Raises:
            ValueError: not there, or it can't be loaded; says what to do.
        """
        where = str(pretrained_model_name_or_path)
        if where.endswith(SUFFIXES):
            return official_pipeline(where, **kwargs)
        _check_folder(where)
        try:
            pipe = super().from_pretrained(where, **{"use_safetensors": True, **kwargs})
            check_parts(pipe.components, where)
            return pipe
        except Exception as e:  # loaders raise almost anything
            first = next(iter(str(e).splitlines()), "")
            cure = "save or fetch it again" if Path(where).exists() else "check name and network, or give a folder"
            raise ValueError(f"{where!r} can't be loaded ({type(e).__name__}: {first}); {cure}") from e

    @classmethod
    def sampler_defaults(cls, pretrained_model_name_or_path: str | Path) -> tuple[int, float]:
        """``default_steps`` and ``default_guidance`` of a model, before it is loaded; errors as above."""
        where = str(pretrained_model_name_or_path)
        if where.endswith(SUFFIXES):
            path = local_file(where)
            config = PUBLISHED[official_version(open_official(path), path)]
        else:
            _check_folder(where)
            config = cls.load_config(where)
        return int(config["default_steps"]), float(config["default_guidance"])

    @torch.no_grad()
    def __call__(
        self,
        person: Picture | Sequence[Picture],
        categories: str | Collection[str] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        quirks: bool | Quirks | None = None,
        latents: Tensor | None = None,
        output_type: OutputType = "pil",
        callback_on_step_end: Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor]] | None = None,
    ) -> TryOffDiffOutput:
        """Take garments off photos of dressed persons.

        Args:
            person: a photo, or several.
            categories: "upper", "lower", "dress", or several of them; None: the first that the model knows.
            num_inference_steps, guidance_scale: None for the model's own; guidance 0 or 1 is none.
            generator: seeds the start noise; one, or one a photo.
            quirks: True as published, False by the textbook, or some of them; None: as the model's config says.
            latents: start noise of variance 1, a row for every category and photo, photos of one category together.
            output_type: "pil", "np", "pt" or "latent".
            callback_on_step_end: called as ``f(pipe, i, t, {"latents": ...})`` after step i; may return new latents.

        Raises:
            ValueError: a category it does not know, no photo, numbers out of range, or a model that makes no numbers.
            ImageError: a picture that can't be used.
        """
        # 1. what is asked for
        names = self._categories(categories)
        quirks = self._quirks(quirks)
        steps = self.config.default_steps if num_inference_steps is None else num_inference_steps
        guidance = self.config.default_guidance if guidance_scale is None else guidance_scale
        whole = isinstance(steps, int) and steps >= 1
        if not whole or not 0 <= guidance < float("inf") or output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(
                f"num_inference_steps {steps!r} must be a whole number from 1 on, guidance_scale {guidance} 0 or more, "
                f"output_type {output_type!r} pil, np, pt or latent"
            )
        photos = [images.read_image(p, "person") for p in images.as_list(person)]
        if not photos:
            raise ValueError("no photo to take garments off: give one, or several")
        if isinstance(generator, list) and len(generator) != len(photos):
            raise ValueError(f"{len(generator)} generators for {len(photos)} photos: give one each, or one for all")
        # 2. the photos, as the network sees them
        squares, boxes = zip(*(to_square(p, self.side) for p in photos), strict=True)
        device = self._execution_device
        condition = self.context(torch.stack(squares).to(device))
        # 3. start noise, a row for every category and photo
        shape = len(photos), self.unet.config.in_channels, *[self.unet.config.sample_size] * 2
        if latents is None:
            latents = torch.cat([randn_tensor(shape, generator, device, torch.float32) for _ in names])
        elif latents.shape != (wanted := (len(names) * shape[0], *shape[1:])):
            raise ValueError(f"latents of shape {tuple(latents.shape)}; give {wanted}")
        rows = [Category(name) for name in names for _ in photos]
        # 4. denoise
        x = self.sample(
            condition.repeat(len(names), 1, 1), self.no_context(device) if guidance not in (0, 1) else None,
            labels_of(self.unet, rows, device), latents.to(device, torch.float32), steps, guidance, quirks,
            callback_on_step_end,
        )  # fmt: skip
        # 5. pictures
        made = x if output_type == "latent" else self.decode(x, quirks)
        parts = [self._as(part, boxes, output_type) for part in made.split(len(photos))]
        self.maybe_free_model_hooks()
        return TryOffDiffOutput(images=parts[0], garments=dict(zip(names, parts, strict=True)))

    def try_off(
        self, person: Picture | Sequence[Picture], categories: str | Collection[str] | None = None, **options: Any
    ) -> TryOffDiffOutput:
        """The call itself, under the name that evaluation knows."""
        return self(person, categories, **options)

    def context(self, photos: Tensor) -> Tensor:
        """Photos (B, 3, S, S) in [-1, 1] -> context (B, K, D)."""
        tokens = self.image_encoder(pixel_values=photos.to(self.image_encoder.dtype)).last_hidden_state
        return self.adapter(tokens.to(self.adapter.dtype))

    def no_context(self, device: torch.device | str) -> Tensor:
        """The unconditional pass's context, (1, K, D)."""
        if self.config.unconditional == "picture":
            return self.context(torch.zeros(1, 3, self.side, self.side, device=device))
        shape = 1, self.adapter.config.tokens, self.adapter.config.width
        return self.adapter(torch.zeros(shape, device=device, dtype=self.adapter.dtype))

    def sample(
        self,
        condition: Tensor,
        nothing: Tensor | None,
        labels: Tensor | None,
        x: Tensor,
        steps: int,
        guidance: float,
        quirks: Quirks,
        callback: Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor]] | None = None,
    ) -> Tensor:
        """Noise of variance 1 (B, C, h, w) to latents, all steps; unconditional rows stand first in a pass.

        Args:
            condition: (B, K, D).
            nothing: (1, K, D), or None for no guidance.
            labels: classes (B,), or None.
            x: start noise.
            steps, guidance, quirks, callback: of the call.
        """
        context = condition if nothing is None else torch.cat([nothing.expand_as(condition), condition])
        if labels is not None and nothing is not None:
            labels = labels.repeat(2)
        self.scheduler.set_timesteps(steps, device=x.device)
        if not quirks.unscaled_start:
            x = x * self.scheduler.init_noise_sigma
        for i, t in enumerate(self.progress_bar(self.scheduler.timesteps)):
            scaled = self.scheduler.scale_model_input(x, t)
            seen = scaled if self.config.noise == "preserving" else x
            told = t if quirks.fractional_timesteps else t.round()
            rows = seen if nothing is None else torch.cat([seen, seen])
            noise = self.unet(rows.to(self.unet.dtype), told, context, class_labels=labels).sample.float()
            if nothing is not None:
                unconditional, conditional = noise.chunk(2)
                noise = unconditional + guidance * (conditional - unconditional)
            x = self.scheduler.step(noise, t, x, return_dict=False)[0]
            if callback is not None:
                x = (callback(self, i, t, {"latents": x}) or {}).get("latents", x)
        return x

    def decode(self, latents: Tensor, quirks: Quirks) -> Tensor:
        """Latents (B, C, h, w) -> pictures (B, 3, S, S) in [-1, 1]."""
        pixels = finite(self.vae.decode((latents / self.vae.config.scaling_factor).to(self.vae.dtype)).sample.float())
        return stretched(pixels) if quirks.stretched else pixels.clamp(-1, 1)

    def _categories(self, asked: str | Collection[str] | None) -> list[str]:
        known = self.config.categories
        names = known[:1] if asked is None else [asked] if isinstance(asked, str) else list(asked)
        unknown = [n for n in names if n not in known]
        if unknown or not names or len(set(names)) < len(names):
            raise ValueError(
                f"categories {[str(n) for n in names]}: this model takes off {', '.join(known)}; each once"
            )
        return [str(n) for n in names]

    def _quirks(self, asked: bool | Quirks | None) -> Quirks:
        if isinstance(asked, Quirks):
            return asked
        return Quirks() if (self.config.as_published if asked is None else asked) else TEXTBOOK

    def _as(self, made: Tensor, boxes: Sequence[Box], output_type: OutputType) -> Any:
        if output_type == "latent":
            return made
        cut = self.config.cut_to_person
        if output_type == "pil":
            pixels = images.tensor_to_pixels(made)
            return [Image.fromarray(p[b.window] if cut else p) for p, b in zip(pixels, boxes, strict=True)]
        made = made / 2 + 0.5
        if output_type == "np":
            array = made.permute(0, 2, 3, 1).cpu().numpy()
            return [a[b.window] for a, b in zip(array, boxes, strict=True)] if cut else array
        return [m[:, *b.window] for m, b in zip(made, boxes, strict=True)] if cut else made


def _check_folder(where: str) -> None:
    if not Path(where, "model_index.json").is_file() and (Path(where).exists() or where.count("/") != 1):
        raise ValueError(
            f"{where!r} is no model folder (it holds no model_index.json); give one that save_pretrained wrote, a "
            f"hub id 'owner/name', or a published file ({', '.join(SUFFIXES)})"
        )


def official_pipeline(
    file: str | Path,
    image_encoder: Part = SIGLIP_HUB,
    vae: Part | None = None,
    version: Version | None = None,
    category: str | None = None,
    unet: Mapping[str, Any] = SD14_UNET,
    torch_dtype: torch.dtype | None = None,
    **settings: Any,
) -> TryOffDiffPipeline:
    """A published model from its file, sampled as its authors do.

    Args:
        file: path, or ``owner/name/file.pth`` on the hub.
        image_encoder: folder or hub id of SigLIP, which the file does not hold.
        vae: folder or hub id of the VAE; None: SD 1.4's for v1, its finetuned ft-mse for v2 and MGT, from the hub.
        version: what the file must be; None: whatever it is.
        category: what a v2 model takes off; None: what the file's name says. v1 takes off "upper", MGT all: None.
        unet: arguments of the UNet, where it is not SD 1.4's.
        torch_dtype: cast all networks to it; None: float32.
        settings: of :class:`TryOffDiffPipeline`, other than the published ones.

    Raises:
        ValueError: a part that is not there, a file that is broken or of another version, or no category to be known.
    """
    path = local_file(str(file))
    weights = open_official(path)
    found = official_version(weights, path)
    if version not in (None, found):
        raise ValueError(f"{path}: the file of {found}, not {version}; give version={found!r}, or another file")
    categories = _taken_off(found, path, category)
    encoder, codec = load_encoder(image_encoder), load_vae(DECODERS[found] if vae is None else vae)
    check_official(path, weights)  # only now, for it reads gigabytes
    with torch.device("meta"):
        networks = make_unet(found, unet), make_adapter(found)
    load_official(weights, *networks, path)
    for network in networks:
        network.eval()
    own = {"categories": categories} | PUBLISHED[found] | settings
    pipe = TryOffDiffPipeline(codec, *networks, encoder, make_scheduler(found), **own)
    return pipe if torch_dtype is None else pipe.to(torch_dtype)


def _taken_off(version: Version, path: Path, category: str | None) -> list[str]:
    if version != "v2" and category is not None:
        raise ValueError(
            f"{path}: category={category!r} is for files of v2, and this is {version}'s: leave it out, and name what "
            "to take off in the call"
        )
    if version != "v2":
        return list(CLASSES) if version == "mgt" else ["upper"]
    named = [category] if category else [c for c in CLASSES if c in path.stem]
    if len(named) != 1:
        raise ValueError(f"{path}: takes one category off, and its name doesn't say which; give category='upper', say")
    return [str(c) for c in named]
