"""LaDI-VTON as published: warp the garment, turn it into words, repaint the masked photo, decode with what is around.

    pipe = LaDIVTONPipeline.from_pretrained("runs/ladi/model")            # a folder that save_pretrained wrote
    pipe = published("stabilityai/stable-diffusion-2-inpainting", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "weights")
    worn = pipe.try_on(photo, labels, keypoints, garment, "upper").images[0]

Morelli et al. 2023, arXiv 2305.13501. ``B`` batch, ``C`` latent channels, ``H W`` pixels, ``h w`` latents. The UNet's
channels: noisy latent (C), mask (1), masked photo's latent (C), pose map (18), warped garment's latent (C, or none).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModel

from omfa import images
from omfa.backbone import canvas_multiple, latents_from, vae_factor
from omfa.baselines.ladi_vton import checkpoints, emasc
from omfa.baselines.ladi_vton.inputs import Inputs, fit_person, make_inputs, to_latent_size
from omfa.baselines.ladi_vton.inversion import InversionAdapter, clip_pixels, encode_prompts, prompt, token_ids
from omfa.baselines.ladi_vton.masks import JOINTS, Rules
from omfa.baselines.ladi_vton.refinement import Refinement
from omfa.baselines.ladi_vton.warping import TPSWarping, Warp, resize, sample
from omfa.components import as_clothes
from omfa.images import Picture
from omfa.weights import TEXT_TOWER, check_parts, finite, read_part

STEPS, GUIDANCE = 50, 7.5


class Draws(NamedTuple):
    """Standard normal numbers of one call, (B, C, h, w) each, in the order in which they are drawn."""

    cloth: Tensor
    start: Tensor
    photo: Tensor


@dataclass
class LaDIVTONOutput(BaseOutput):
    """What a call made.

    Args:
        images: B PIL pictures, or a tensor (B, 3, H, W) in [0, 1] for ``output_type="pt"``.
        warped: the garment as it was warped and refined, (B, 3, H, W) in [-1, 1].
    """

    images: Any
    warped: Any = None


class LaDIVTONPipeline(DiffusionPipeline):
    """Try-on by repainting.

    Args:
        vae, unet, scheduler, text_encoder, tokenizer: Stable Diffusion 2's for inpainting, the UNet widened.
        vision_encoder: CLIP's vision model that the garment's words come from.
        inversion_adapter, tps, refinement, emasc: LaDI-VTON's own; ``refinement`` None leaves the garment as the
            spline laid it, ``emasc`` None decodes by the VAE alone.
        size: (height, width) of the pictures, multiples of 64 as published.
        rules: whose masks it was trained with, "vitonhd" or "dresscode".
        eight_bit: see :func:`omfa.baselines.ladi_vton.inversion.clip_pixels`.

    Raises:
        ValueError: parts that don't fit together.
    """

    model_cpu_offload_seq = "tps->refinement->vision_encoder->inversion_adapter->text_encoder->unet->vae"
    _optional_components = ["refinement", "emasc"]  # noqa: RUF012

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        scheduler: Any,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        vision_encoder: CLIPVisionModel,
        inversion_adapter: InversionAdapter,
        tps: TPSWarping,
        refinement: Refinement | None = None,
        emasc: emasc.EMASC | None = None,
        size: list | tuple = (512, 384),
        rules: str = "dresscode",
        eight_bit: bool = True,
    ) -> None:
        super().__init__()
        c = vae.config.latent_channels
        if unet.config.in_channels not in channels(c):
            raise ValueError(
                f"the UNet takes {unet.config.in_channels} channels; {c}-channel latents need {channels(c)[0]}, or "
                f"{channels(c)[1]} without the garment's: widen it with omfa.baselines.ladi_vton.checkpoints.widen"
            )
        adapter, width = inversion_adapter.config, text_encoder.config.hidden_size
        if adapter.output_dim != adapter.words * width or adapter.input_dim != vision_encoder.config.hidden_size:
            raise ValueError(
                f"the adapter takes {adapter.input_dim} and makes {adapter.words} words out of {adapter.output_dim}; "
                f"these encoders need {vision_encoder.config.hidden_size} and {adapter.words * width}"
            )
        self.register_modules(
            vae=vae,
            unet=unet,
            scheduler=scheduler,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            vision_encoder=vision_encoder,
            inversion_adapter=inversion_adapter,
            tps=tps,
            refinement=refinement,
            emasc=emasc,
        )
        self.check_size(size)
        self.register_to_config(size=[int(n) for n in size], rules=rules, eight_bit=eight_bit)
        self.placeholder = tokenizer.convert_tokens_to_ids("$</w>")
        if not 0 <= self.placeholder < text_encoder.config.vocab_size:
            raise ValueError("the text encoder has no word for the tokenizer's '$': they don't belong together")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> LaDIVTONPipeline:
        """Load a folder that :meth:`save_pretrained` wrote, or a hub id. Only safetensors are read.

        Raises:
            ValueError: it can't be loaded.
        """
        kwargs.setdefault("use_safetensors", True)
        name = str(pretrained_model_name_or_path)
        try:
            pipe = super().from_pretrained(name, **kwargs)
            check_parts(pipe.components, name)
            return pipe
        except Exception as e:  # loaders raise almost anything
            first = next(iter(str(e).splitlines()), "")
            raise ValueError(f"{name!r} can't be loaded ({type(e).__name__}: {first}); give a saved folder") from e

    # ------------------------------------------------------------------------------------------------ the call

    @torch.no_grad()
    def try_on(
        self,
        photo: Picture,
        labels: np.ndarray,
        keypoints: np.ndarray,
        garment: Picture,
        category: str,
        **options: Any,
    ) -> LaDIVTONOutput:
        """One photo in another garment, at the photo's aspect.

        Args:
            photo: of a dressed person.
            labels: (h, w) uint8, of the photo's aspect, in the ids of the model's rules.
            keypoints: (18, 2 or 3), OpenPose's, in pixels of the photo.
            garment: its picture on white.
            category: "upper", "lower" or "dress".
            options: of :meth:`__call__`, without ``output_type``.

        Raises:
            ValueError: a picture, label map or category that can't be used.
        """
        person = fit_person(images.read_image(photo, "photo"), labels, keypoints, self.config.size)
        cloth, _ = images.load(garment, self.config.size, "white", "garment")
        made = self(make_inputs(person, cloth, as_clothes(category), self.config.rules), **options)
        made.images = [Image.fromarray(np.asarray(picture)[person.box.window]) for picture in made.images]
        return made

    @torch.no_grad()
    def __call__(
        self,
        inputs: Inputs,
        num_inference_steps: int = STEPS,
        guidance_scale: float = GUIDANCE,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
    ) -> LaDIVTONOutput:
        """Repaint photos.

        Args:
            inputs: B photos with masks, pose maps and garments.
            num_inference_steps, guidance_scale, eta: of the sampler; guidance of 1 or less turns it off.
            generator: one, or one for each picture.
            output_type: "pil" or "pt".

        Raises:
            ValueError: numbers out of range.
        """
        if num_inference_steps < 1 or output_type not in ("pil", "pt"):
            raise ValueError(f"{num_inference_steps} steps and output {output_type!r}: give 1 or more, 'pil' or 'pt'")
        self.check_size(inputs.photo.shape[2:])
        inputs = inputs.to(self._execution_device)
        # 1. The garment: warped to the person, and in words.
        worn = self.warp(inputs)
        text, nothing = self.encode_text(inputs)
        # 2. Noise, in the published order.
        draws = self.draw(inputs, generator)
        # 3. Repaint and decode.
        made = self.repaint(inputs, worn, text, nothing, draws, num_inference_steps, guidance_scale, eta)
        pixels = (finite(made) / 2 + 0.5).clamp(0, 1).float()
        if output_type == "pt":
            return LaDIVTONOutput(pixels, worn)
        return LaDIVTONOutput([Image.fromarray(p) for p in images.tensor_to_pixels(pixels * 2 - 1)], worn)

    def align(self, inputs: Inputs) -> Warp:
        """The spline, found at its own size on pictures shrunk with antialias."""
        size = self.tps.config.size
        agnostic = torch.cat([resize(inputs.kept, size), resize(inputs.pose, size)], 1)
        return self.tps(resize(inputs.cloth, size), agnostic)

    def warp(self, inputs: Inputs) -> Tensor:
        """The garment as worn, (B, 3, H, W) in [-1, 1]."""
        warped = sample(inputs.cloth, self.align(inputs).grid)
        if self.refinement is None:
            return warped
        return self.refinement(torch.cat([inputs.kept, inputs.pose, warped], 1)).clamp(-1, 1)

    def encode_text(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Prompts with the garments' words, (B, L, D), and the empty prompt, (1, L, D)."""
        seen = self.vision_encoder(clip_pixels(inputs.cloth, self.config.eight_bit, self.clip_side))
        words = self.inversion_adapter(seen.last_hidden_state)
        prompts = [prompt(c, words.shape[1]) for c in inputs.categories]
        ids, empty = (token_ids(self.tokenizer, p).to(words.device) for p in (prompts, [""]))
        text = encode_prompts(self.text_encoder, ids, words, self.placeholder)
        return text, encode_prompts(self.text_encoder, empty)

    @property
    def clip_side(self) -> int:
        """Pixels on a side of what the vision encoder sees."""
        return int(self.vision_encoder.config.image_size)

    def draw(self, inputs: Inputs, generator: torch.Generator | list[torch.Generator] | None = None) -> Draws:
        """The random numbers of a call."""
        h, w = self.latent_size(inputs)
        shape = (len(inputs), self.vae.config.latent_channels, h, w)
        noise = (randn_tensor(shape, generator=generator, device=inputs.photo.device) for _ in range(3))
        return Draws(*noise)

    def check_size(self, size: Sequence[int]) -> None:
        """Refuse a (height, width) that the VAE or the UNet can't halve as often as they do.

        Raises:
            ValueError: sides that are no multiples; it says of what.
        """
        step = vae_factor(self.vae) * canvas_multiple(self.unet)
        if min(size) < step or size[0] % step or size[1] % step:
            raise ValueError(f"size {list(size)}: both sides must be multiples of {step} for this VAE and UNet")

    def latent_size(self, inputs: Inputs) -> tuple[int, int]:
        """(h, w)."""
        factor = vae_factor(self.vae)
        return inputs.photo.shape[2] // factor, inputs.photo.shape[3] // factor

    def repaint(
        self,
        inputs: Inputs,
        worn: Tensor,
        text: Tensor,
        nothing: Tensor,
        draws: Draws,
        steps: int = STEPS,
        guidance: float = GUIDANCE,
        eta: float = 0.0,
    ) -> Tensor:
        """From noise to pictures (B, 3, H, W), about [-1, 1].

        Text, pose map and garment are left out of the unconditional pass; mask and masked photo are in both.
        """
        scale, guided = self.vae.config.scaling_factor, guidance > 1
        cloth = latents_from(self.vae.encode(worn).latent_dist.parameters, draws.cloth, scale)
        moments, features = emasc.encode(self.vae, inputs.kept)
        photo = latents_from(moments, draws.photo, scale)
        given = self.given(inputs, photo, cloth)
        if guided:
            dropped = self.given(inputs, photo, cloth * 0, inputs.pose * 0)
            given = torch.cat([dropped, given])
            text = torch.cat([nothing.expand_as(text), text])
        self.scheduler.set_timesteps(steps, device=worn.device)
        x = draws.start * self.scheduler.init_noise_sigma
        options = {"eta": eta} if isinstance(self.scheduler, DDIMScheduler) else {}
        for t in self.progress_bar(self.scheduler.timesteps):
            seen = self.scheduler.scale_model_input(torch.cat([x, x]) if guided else x, t)
            noise = self.unet(torch.cat([seen, given], 1), t, text, return_dict=False)[0]
            if guided:
                without, with_all = noise.chunk(2)
                noise = without + guidance * (with_all - without)
            x = self.scheduler.step(noise, t, x, **options).prev_sample
        if self.emasc is None:
            return self.vae.decode(x / scale, return_dict=False)[0]
        return emasc.decode(self.vae, x / scale, self.emasc(features, inputs.hard_mask))

    def given(self, inputs: Inputs, photo: Tensor, cloth: Tensor, pose: Tensor | None = None) -> Tensor:
        """All the UNet's channels but the noisy latent: mask, photo, pose map, garment, (B, 1 + C + 18 + C, h, w).

        Args:
            inputs: one batch.
            photo, cloth: scaled latents (B, C, h, w).
            pose: in place of the inputs' own.
        """
        size = photo.shape[2:]
        mask = to_latent_size(inputs.hard_mask, size, "nearest")
        pose = to_latent_size(inputs.pose if pose is None else pose, size, "bilinear")
        has_cloth = self.unet.config.in_channels == channels(photo.shape[1])[0]
        return torch.cat([mask, photo, pose, *([cloth] if has_cloth else [])], 1)


def channels(latent_channels: int) -> tuple[int, int]:
    """The UNet's input channels: with the garment's latent (31 as published) and without (27)."""
    without = latent_channels + 1 + latent_channels + JOINTS
    return without + latent_channels, without


def published(
    base: str | Path,
    vision: str | Path,
    weights: str | Path,
    data_set: Rules = "vitonhd",
) -> LaDIVTONPipeline:
    """The published system from its files.

    Args:
        base: folder or hub id of stabilityai/stable-diffusion-2-inpainting.
        vision: folder or hub id of laion/CLIP-ViT-H-14-laion2B-s32B-b79K.
        weights: folder with ``unet_D.pth``, ``emasc_D.pth``, ``inversion_adapter_D.pth`` and ``warping_D.pth``.
        data_set: D.

    Raises:
        ValueError: base or vision model that can't be loaded.
        Refused: a file of the release that is missing or wrong.
    """
    weights = Path(weights)
    tps, refinement = checkpoints.load_warping(weights / f"warping_{data_set}.pth")
    own: dict[str, Any] = {
        "unet": checkpoints.load_unet(weights / f"unet_{data_set}.pth"),
        "emasc": checkpoints.load_emasc(weights / f"emasc_{data_set}.pth"),
        "inversion_adapter": checkpoints.load_inversion_adapter(weights / f"inversion_adapter_{data_set}.pth"),
    }
    parts = base_parts(base, vision)
    return LaDIVTONPipeline(**parts | own, tps=tps, refinement=refinement, rules=data_set)


def base_parts(base: str | Path, vision: str | Path) -> dict[str, Any]:
    """VAE, text encoder, tokenizer, DDIM scheduler and vision encoder of the models that LaDI-VTON builds on.

    Raises:
        ValueError: some can't be loaded.
    """
    name = str(base)
    try:
        return {
            "vae": read_part(AutoencoderKL, name, subfolder="vae"),
            "text_encoder": read_part(CLIPTextModel, name, subfolder="text_encoder"),
            "tokenizer": CLIPTokenizer.from_pretrained(name, subfolder="tokenizer"),
            "scheduler": DDIMScheduler.from_pretrained(name, subfolder="scheduler"),
            "vision_encoder": read_part(CLIPVisionModel, str(vision), TEXT_TOWER),  # CLIP is published whole
        }
    except Exception as e:  # loaders raise almost anything
        first = next(iter(str(e).splitlines()), "")
        raise ValueError(f"{name!r} and {str(vision)!r} can't be loaded ({type(e).__name__}: {first})") from e
