"""OMFAPipeline: garments onto people and off them, in diffusers' manner.

    pipe = OMFAPipeline.from_pretrained("runs/demo/model")
    shirt = pipe.try_off("anna.jpg", "upper").images[0]
    ben = pipe.try_on(garments={"upper": shirt}, pose="pose_map.png", face="ben_head.png").images[0]

The general call names what to generate and what is given; ``try_on``, ``try_off``, ``transfer`` and ``turntable`` are
thin wrappers. ``B`` batch, ``C`` latent channels, ``H W`` pixels, ``h w`` latents of the canvas.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from omfa import images
from omfa.backbone import canvas_multiple, decode, encode, input_channels, vae_factor
from omfa.bodies.body import load_body
from omfa.canvas import PERSON, PORTRAIT, Canvas
from omfa.components import ACCESSORIES, State
from omfa.composer import Composer
from omfa.conditioning import SlotTokens
from omfa.drafting import composed, composed_size, draw, known_pictures
from omfa.hub import CARD, fetched, plain_card, unloadable, write_loader
from omfa.images import OutputType
from omfa.network import Network
from omfa.prompts import Prompts, TextEncoders
from omfa.records.latents import DRAFTS
from omfa.request import Bodies, Pictures, Pose, Request, Worn
from omfa.rows import cross_rows, row_size
from omfa.sampling import GUIDANCE, STEPS, denoise
from omfa.tasks import OMFAPipelineOutput, PoseEstimator, Tasks, as_garments
from omfa.tuning import TUNED
from omfa.weights import check_parts, not_finite

MODELS = Path(str(files("omfa"))) / "models"
MOST_PIXELS = 8192  # on a side
POSE_STYLES = ("parts_blend", "surface")  # the first where a saved config has no word on it: new recipes say "surface"


class OMFAPipeline(Network, Tasks, DiffusionPipeline):
    """Try-on and try-off with one partial-diffusion model (OMFA, arXiv 2508.04559).

    Args:
        vae: pixels to latents and back, each component alone.
        unet: diffusers' network with ``3C + 1`` input channels; text-conditioned (SDXL) or by slot tokens (compact).
        scheduler: any of ``omfa.partial_diffusion.SCHEDULERS``.
        slot_tokens: the compact model's context; None for a text-conditioned model.
        tokenizer, tokenizer_2, text_encoder, text_encoder_2: SDXL's, or None.
        composer: puts pictures together from what was decoded, drafts and a portrait; for ``draft: surface``, or None.
        prompts: phrases encoded ahead; with them the text encoders are needed for captions alone.
        person_size: (height, width) of a person or garment picture in pixels.
        garment_slots: 1 (the paper's) or 2.
        unconditional_on: what the unconditional pass runs over: "canvas", or "targets" alone, cut out of the canvas.
            All else is zero in it anyway, so a model that was trained so guides for less: a try-on by an SDXL with
            one garment slot for two thirds of the price.
        default_steps, default_guidance: what a call takes that names none.
        join: how components meet in the network: "canvas" (the paper's) or "rows" (:mod:`omfa.rows`).
        draft: what a target's known channels hold: "none" (the paper's zeros), or "surface", what the given pictures
            show of it (:mod:`omfa.bodies.drafts`).
        pose_style: of the pose maps it reads: "parts_blend", or "surface", given garments' maps as well.
        portraits: whether it has learned to change the clothes in a photo (PORTRAIT), in rows alone.
        accessories: what it has learned beside clothes: some of "shoes", "bag", "hat", in rows alone.
        distilled: whether it was distilled to few steps (:mod:`omfa.few_steps`) and so takes no guidance.

    Raises:
        ValueError: parts that don't fit together.
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->slot_tokens->unet->vae"
    _optional_components = [  # noqa: RUF012
        *("slot_tokens", "tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2", "prompts", "composer")
    ]
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        scheduler: Any,
        slot_tokens: SlotTokens | None = None,
        tokenizer: Any = None,
        tokenizer_2: Any = None,
        text_encoder: Any = None,
        text_encoder_2: Any = None,
        prompts: Prompts | None = None,
        composer: Composer | None = None,
        person_size: list | tuple = (1024, 768),
        garment_slots: int = 2,
        unconditional_on: str = "canvas",
        default_steps: int = STEPS,
        default_guidance: float = GUIDANCE,
        join: str = "canvas",
        draft: str = "none",
        pose_style: str = "parts_blend",
        portraits: bool = False,
        distilled: bool = False,
        accessories: list | tuple = (),
    ) -> None:
        super().__init__()
        if unconditional_on not in ("canvas", "targets"):
            raise ValueError(f"unconditional_on is {unconditional_on!r}; give 'canvas' or 'targets'")
        if join not in ("canvas", "rows") or (join == "rows" and unconditional_on == "targets"):
            raise ValueError(
                f"join is {join!r}; give 'canvas', or 'rows' (whose unconditional pass runs over targets anyway)"
            )
        if draft not in DRAFTS or pose_style not in POSE_STYLES:
            raise ValueError(f"draft {draft!r} must be one of {DRAFTS}, pose_style {pose_style!r} one of {POSE_STYLES}")
        if portraits and (join != "rows" or (slot_tokens is not None and PORTRAIT not in slot_tokens.kinds)):
            raise ValueError("portraits need join: rows and, in a compact model, slot tokens of a portrait")
        if accessories and (join != "rows" or not set(accessories) <= {*ACCESSORIES}):
            raise ValueError(
                f"accessories {list(accessories)} must be of {', '.join(ACCESSORIES)}, and need join: rows"
            )
        if slot_tokens is not None and not {f"garment:{a}" for a in accessories} <= {*slot_tokens.kinds}:
            raise ValueError(f"accessories {list(accessories)} need slot tokens: widen them (SlotTokens.widened)")
        if unet.config.in_channels != input_channels(vae.config.latent_channels):
            raise ValueError(
                f"the UNet takes {unet.config.in_channels} channels, a canvas of {vae.config.latent_channels}-channel "
                f"latents needs {input_channels(vae.config.latent_channels)}: widen it with omfa.backbone.widen_unet"
            )
        if (slot_tokens is None) == (unet.config.addition_embed_type is None):
            raise ValueError("a UNet with text_time embeddings (SDXL) takes text encoders, any other takes slot_tokens")
        if prompts is not None and prompts.config.width != unet.config.cross_attention_dim:
            raise ValueError(
                f"the prompts are {prompts.config.width} wide, the UNet reads {unet.config.cross_attention_dim}: they "
                "were made by other text encoders; encode them with this model's"
            )
        self.register_modules(
            vae=vae,
            unet=unet,
            scheduler=scheduler,
            slot_tokens=slot_tokens,
            tokenizer=tokenizer,
            tokenizer_2=tokenizer_2,
            text_encoder=text_encoder,
            text_encoder_2=text_encoder_2,
            prompts=prompts,
            composer=composer,
        )
        self.register_to_config(
            person_size=[int(n) for n in person_size],
            garment_slots=garment_slots,
            unconditional_on=unconditional_on,
            default_steps=default_steps,
            default_guidance=default_guidance,
            join=join,
            draft=draft,
            pose_style=pose_style,
            portraits=portraits,
            distilled=distilled,
            accessories=[str(a) for a in accessories],
        )
        if join == "rows":
            cross_rows(unet)
        self.vae_scale_factor = vae_factor(vae)
        self.canvas = _canvas(vae, unet, person_size, garment_slots)
        self.pose_estimator: PoseEstimator | None = None
        self._interrupt = False
        self.card: str | None = None  # of the folder it was loaded from
        self.vae_is_new = False  # made from nothing, so that it is nowhere else
        self.origin: dict[str, str | None] = {"base": None, "vae": None}  # hub ids of what training began with
        self.texts = TextEncoders(
            (tokenizer, tokenizer_2), (text_encoder, text_encoder_2), [] if prompts is None else [prompts]
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> OMFAPipeline:
        """Load a model that ships ("compact"), a folder that :meth:`save_pretrained` wrote, or a hub id ("owner/name").

        Only safetensors are read. ``kwargs`` go to diffusers (``dtype``, ``cache_dir``, ``token``, ...).

        Raises:
            ValueError: no such shipped model or folder, or one that can't be loaded.
        """
        kwargs.setdefault("use_safetensors", True)
        where = cls._where(pretrained_model_name_or_path)
        try:
            folder = where if Path(where).exists() else fetched(where, kwargs)
            pipe = super().from_pretrained(folder, **kwargs)
            check_parts(pipe.components, where)
            card = Path(folder, CARD)
            pipe.card = card.read_text(encoding="utf-8") if card.is_file() else None
            return pipe
        except Exception as e:  # loaders raise almost anything
            raise unloadable(where, e) from e

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write a folder that :meth:`from_pretrained` reads; and so does plain diffusers, by ``custom_pipeline``."""
        super().save_pretrained(str(save_directory), **kwargs)
        write_loader(Path(save_directory))

    def _upload_folder(self, working_dir: str | Path, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        """The last step of diffusers' ``push_to_hub``: with this model's card instead of a general one."""
        write_loader(Path(working_dir))
        (Path(working_dir) / CARD).write_text(self.card or plain_card(repo_id), encoding="utf-8")
        return super()._upload_folder(working_dir, repo_id, *args, **kwargs)

    @staticmethod
    def _where(model: str | Path) -> str:
        name = str(model)
        shipped = sorted(p.parent.name for p in MODELS.glob("*/model_index.json"))
        if name in shipped:
            name = str(MODELS / name)
        elif Path(name, TUNED).is_file():
            raise ValueError(f"{name!r} holds small weights, for a base: omfa.sdxl.load_small({name!r}) reads them")
        elif not Path(name, "model_index.json").is_file() and (
            Path(name).exists() or name.count("/") != 1 or name[0] in "./~"
        ):
            raise ValueError(
                f"{name!r} is no model folder (it holds no model_index.json); give one that save_pretrained wrote, "
                f"a hub id 'owner/name'" + (f", or a model that ships: {', '.join(shipped)}" if shipped else "")
            )
        return name

    @classmethod
    def sampler_defaults(cls, pretrained_model_name_or_path: str | Path) -> tuple[int, float]:
        """``default_steps`` and ``default_guidance`` of a model, from its config alone; errors as above."""
        where = cls._where(pretrained_model_name_or_path)
        try:
            config = cls.load_config(where)
            return int(config.get("default_steps", STEPS)), float(config.get("default_guidance", GUIDANCE))
        except Exception as e:  # as above
            raise unloadable(where, e) from e

    # ------------------------------------------------------------------------------------------------ the call

    @torch.no_grad()
    def __call__(
        self,
        targets: Collection[str],
        person: Pictures | None = None,
        garments: Mapping[str, Worn] | None = None,
        face: Pictures | None = None,
        pose: Pose | Sequence[Pose | None] | None = None,
        caption: str | None = None,
        portrait: Pictures | None = None,
        garment_poses: Mapping[str, Bodies] | None = None,
        face_pose: Bodies | None = None,
        portrait_mask: Pictures | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        eta: float = 0.0,
        latents: Tensor | None = None,
        compose: bool = True,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> OMFAPipelineOutput:
        """Generate the targets from whatever is given.

        Every picture may be one or a list of B; one is used for the whole batch. Models in rows wear any number of
        garments of a category, from inside to outside: {"upper": [shirt, jacket], "shoes": boots}. A list of n is a
        batch's where all else (person, portrait, face, poses, generators, lists of lists) makes a batch of n, else it
        is worn at once. Lists of lists say it themselves: [[shirt, jacket]] for all, [[shirt, jacket], [top, coat]]
        for a batch of two. On a canvas, whose slot holds one garment, a list is always a batch's: {"upper": [a, b],
        "lower": [c, d]} is two people, one picture each.

        Args:
            targets: what to generate: "person" and/or categories ("upper", "lower", "dress", accessories).
            person: photo of a dressed person, to take garments from.
            garments: category to garment picture or pictures, to put on. Over a dress goes an upper garment, in rows.
            face: head crop of the person to generate.
            pose: pose map aligned with the person picture, or :class:`BodyParameters` (or their ``.npz``) to render.
            caption: a few words for a text-conditioned model's prompt.
            portrait: photo to change the clothes in, of a model that knows portraits; ``pose`` is then its own, and
                needed (:meth:`try_on` estimates it).
            garment_poses: category to how a body would stand in the garment's picture, given or to be made, for a model
                with drafts, in the shape of ``garments``; predicted of clothes where it is not said (or None in a list
                of lists), while accessories are then in no draft.
            face_pose: the body whose head ``face`` shows, before that picture's camera, for a model with drafts; the
                face is in no draft without it.
            portrait_mask: white where the portrait shows the person, as far as a composer goes by it: what is beside
                them and beside the new clothes then stays the portrait's.
            num_inference_steps: steps of the scheduler; None takes the model's ``default_steps``. A distilled model
                refuses steps that it has not learned.
            guidance_scale: classifier-free guidance; 1 or less turns it off (half the work). None takes the model's
                ``default_guidance``. A distilled model has its guidance in its weights and refuses any other.
            generator: one generator, or one per sample (then a sample depends on its batch by rounding alone).
            eta: DDIM's noise, for schedulers that take it.
            latents: start noise (B, C, h, w), standard normal; None draws it.
            compose: whether a composer, where the model has one and there is a draft, puts pictures together, at the
                size of the photo they go by; else they are as they were decoded.
            output_type: "pil", "np", "pt" or "latent".
            return_dict: False gives a plain tuple.
            callback_on_step_end: called as ``f(pipe, step, timestep, {"latents": ...})`` after every step; may return
                changed latents. Set ``pipe._interrupt = True`` in it to stop early.
            callback_on_step_end_tensor_inputs: what it is handed; only "latents".

        Returns:
            :class:`OMFAPipelineOutput`. Persons come at the aspect of their pose map.

        Raises:
            ValueError: a call that asks for the impossible, or a picture that can't be used (``ImageError``).
        """
        # 1. Check the call and read the pictures, before any long work.
        generator = list(generator) if isinstance(generator, tuple) else generator
        given: dict[str, Any] = {"person": person, "garments": garments, "face": face, "pose": pose, "caption": caption}
        given |= {"portrait": portrait, "garment_poses": garment_poses, "face_pose": face_pose}
        sampler = (num_inference_steps, guidance_scale, generator, eta, output_type, callback_on_step_end_tensor_inputs)
        request, steps, scale = self._asked(targets, *sampler, portrait_mask=portrait_mask, **given)
        self._interrupt = False
        device = self._execution_device

        # 2. Encode everything given; lay it on the canvas, or in rows.
        known, planes, drafts = self._encode(request, device)
        layouts = [request.layout] * request.batch
        if self.config.join == "rows":
            rows = self.row_guide(layouts, known, planes, device, drafts)
            guide, predict = rows.targets.guide, self.guided_rows(rows, layouts, scale)
        else:
            guide = self.guide(layouts, known, planes, device, drafts)
            predict = self.guided(guide, request.layout, scale)

        # 3. Noise on the targets, and steps of the scheduler until they are clean.
        shape, channels = guide.known.shape, guide.known.shape[1]
        if latents is None:  # an example's targets in rows share its generator
            joint_shape = (request.batch, len(guide.known) // request.batch * channels, *shape[2:])
            latents = randn_tensor(joint_shape, generator=generator, device=device, dtype=torch.float32).view(shape)
        elif latents.shape != shape or not latents.isfinite().all():
            raise ValueError(f"latents are {tuple(latents.shape)}; this call needs finite ones of {tuple(shape)}")
        self.scheduler.set_timesteps(steps, device=device)
        with self.progress_bar(total=len(self.scheduler.timesteps)) as bar:

            def after(i: int, t: Tensor, x: Tensor) -> tuple[Tensor, bool]:
                bar.update()
                if callback_on_step_end is not None:
                    x = (callback_on_step_end(self, i, t, {"latents": x}) or {}).get("latents", x)
                return x, self._interrupt

            if isinstance(generator, list):  # an example's targets in rows share its generator
                generator = [g for g in generator for _ in range(shape[0] // request.batch)]
            noise, options = latents.to(device, torch.float32), {"eta": eta, "generator": generator}
            joint = denoise(self.scheduler, predict, noise, guide.target, guide.known, after, **options)

        if not joint.isfinite().all():
            networks = {n: p for n, p in self.components.items() if isinstance(p, torch.nn.Module)}
            raise ValueError(
                f"the sampler made NaN or infinity, of which no picture can be made: {not_finite(networks)}"
            )

        # 4. Decode the targets; hand back what was given as it came.
        output = (
            OMFAPipelineOutput(images=joint)
            if output_type == "latent"
            else self._output(request, joint, output_type, compose and self.composer is not None)
        )
        self.maybe_free_model_hooks()
        return output if return_dict else cast(Any, output.to_tuple())

    @property
    def interrupt(self) -> bool:
        """Whether a callback has asked to stop (``pipe._interrupt = True``)."""
        return self._interrupt

    # ------------------------------------------------------------------------------------------- steps of the call

    def _encode(
        self, request: Request, device: torch.device
    ) -> tuple[dict[str, Tensor], dict[str, list[Tensor | None]], dict[str, list[Tensor | None]]]:
        """By slot, latents of everything given, of pose maps and of drafts."""
        factor = self.vae_scale_factor

        def pixels(slot: str, pictures: list[Image.Image]) -> Tensor:
            height, width = row_size(self.canvas, slot)
            size = (height * factor, width * factor)
            fill: images.Fill = "white" if slot.startswith("garment") else "edge"
            fitted = [images.fit_picture(p, size, fill) for p in pictures]
            return torch.stack([f[0] for f in fitted]).to(device)

        def encoded(several: list[Tensor | None]) -> list[Tensor | None]:
            some = [p for p in several if p is not None]
            made = iter(encode(self.vae, torch.stack(some).to(device)) if some else ())
            return [None if p is None else next(made) for p in several]

        latents = {slot: encode(self.vae, pixels(slot, pictures)) for slot, pictures in request.given.items()}
        planes: dict[str, list[Tensor | None]] = {}
        drafts: dict[str, list[Tensor | None]] = {}
        if request.pose:
            planes[PERSON] = encoded([None if p is None else pixels(PERSON, [p])[0] for p in request.pose])
        if "surface" in (self.config.draft, self.config.pose_style):
            height, width = self.config.person_size
            drawn = draw(request, (height, width), load_body())
            if self.config.pose_style == "surface":
                planes |= {slot: encoded(maps) for slot, maps in drawn.maps(load_body()).items()}
            if self.config.draft == "surface":
                size = height, width
                drafts = {slot: encoded(known_pictures(request, slot, drawn, size)) for slot in drawn.drafts}
        return latents, planes, drafts

    def _output(self, request: Request, joint: Tensor, output_type: OutputType, compose: bool) -> OMFAPipelineOutput:
        """Pictures of every component: targets decoded and freed of their padding, given ones as they came."""
        wanted = [slot for slot, state in request.layout.states.items() if state is State.TARGET]
        made: dict[str, list[Image.Image]] = {}
        in_rows = self.config.join == "rows"
        parts = {s: joint[i :: len(wanted)] for i, s in enumerate(wanted)} if in_rows else self.canvas.split(joint)
        for slot in sorted(wanted):
            several = list(decode(self.vae, parts[slot]))
            if compose:
                size = composed_size(request, slot, tuple(self.config.person_size))
                several = composed(self.composer, request, slot, torch.stack(several), size, load_body())
            made[slot] = []
            for i, picture in enumerate(several):
                pixels = images.tensor_to_pixels(picture[None])[0]
                pose = request.pose[i] if slot == PERSON and request.pose else None
                if pose is not None:
                    pixels = pixels[images.fitted_box((pose.height, pose.width), pixels.shape[:2]).window]
                made[slot].append(Image.fromarray(pixels))
        pictures = request.given | made
        garments = {str(c): as_garments(pictures, slots, output_type) for c, slots in request.layout.worn().items()}
        person = images.as_output(pictures[PERSON], output_type) if PERSON in pictures else None
        first = person if PERSON in made else next(garments[str(request.layout.categories[s])] for s in made)
        return OMFAPipelineOutput(images=first, person=person, garments=garments)


def _canvas(vae: AutoencoderKL, unet: UNet2DConditionModel, person_size: Sequence[int], garment_slots: int) -> Canvas:
    factor = vae_factor(vae)
    if len(person_size) != 2 or any(n % factor or not 0 < n <= MOST_PIXELS for n in person_size):
        most = f"multiples of {factor} pixels up to {MOST_PIXELS}"
        raise ValueError(f"person_size {list(person_size)} must be (height, width) in {most}")
    return Canvas((person_size[0] // factor, person_size[1] // factor), garment_slots, canvas_multiple(unet))
