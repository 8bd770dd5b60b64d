"""OMFAPipeline: garments onto people and off them, in diffusers' manner.

    pipe = OMFAPipeline.from_pretrained("runs/demo/model")
    shirt = pipe.try_off("anna.jpg", "upper").images[0]
    ben = pipe.try_on(garments={"upper": shirt}, pose="pose_map.png", face="ben_head.png").images[0]

The general call names what to generate and what is given; ``try_on``, ``try_off``, ``transfer`` and ``turntable`` are
thin wrappers. ``B`` batch, ``C`` latent channels, ``H W`` pixels, ``h w`` latents of the canvas.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from omfa import images
from omfa.backbone import canvas_multiple, decode, encode, input_channels, vae_factor
from omfa.bodies.body import BodyParameters, load_body, turned
from omfa.bodies.pose_render import render_pose_map
from omfa.canvas import FACE, PERSON, Canvas
from omfa.components import Category, Component, State, Task, TaskKind
from omfa.conditioning import (
    Guide,
    Layout,
    SlotTokens,
    assemble,
    guided,
    look_size,
    size_ids,
    stack,
    unconditional,
)
from omfa.images import Box, Picture
from omfa.partial_diffusion import check_scheduler, network_latents, start, step
from omfa.prompts import Prompts, TextEncoders
from omfa.tuning import TUNED

MODELS = Path(str(files("omfa"))) / "models"
STEPS, GUIDANCE = 50, 2.0  # the paper's
Pictures = Picture | Sequence[Picture]
Pose = Picture | BodyParameters
OutputType = Literal["pil", "np", "pt", "latent"]


class Estimate(NamedTuple):
    """What a pose estimator says of a photo: body parameters for its camera, and a head crop (None: no face seen)."""

    params: BodyParameters
    face: Image.Image | None


PoseEstimator = Callable[[Image.Image], Estimate]


@dataclass
class OMFAPipelineOutput(BaseOutput):
    """What a call made, and what it was given.

    Args:
        images: the pictures generated for the first target (the person, if it is one): a list of B PIL pictures; for
            ``np`` an array (B, H, W, 3) and for ``pt`` a tensor (B, 3, H, W) in [0, 1] (lists where sizes differ); for
            ``latent`` the whole canvas (B, C, h, w).
        person: the person pictures, generated or the caller's own; None where there is none.
        garments: category to garment pictures, generated or the caller's own.
    """

    images: Any
    person: Any = None
    garments: Any = None


@dataclass(frozen=True)
class _Request:
    """One checked call: what is wanted, and pictures as read. ``given`` and ``pose``: slot name to B pictures."""

    layout: Layout
    batch: int
    given: dict[str, list[Image.Image]]
    pose: list[Image.Image]


class OMFAPipeline(DiffusionPipeline):
    """Try-on and try-off with one partial-diffusion model (OMFA, arXiv 2508.04559).

    Args:
        vae: pixels to latents and back, each component alone.
        unet: diffusers' network with ``3C + 1`` input channels; text-conditioned (SDXL) or by slot tokens (compact).
        scheduler: any of ``omfa.partial_diffusion.SCHEDULERS``.
        slot_tokens: the compact model's context; None for a text-conditioned model.
        tokenizer, tokenizer_2, text_encoder, text_encoder_2: SDXL's, or None.
        prompts: phrases encoded ahead; with them the text encoders are needed for captions alone.
        person_size: (height, width) of a person or garment picture in pixels.
        garment_slots: 1 (the paper's) or 2.
        unconditional_on: what the unconditional pass runs over: "canvas", or "targets" alone, cut out of the canvas.
            All else is zero in it anyway, so a model that was trained so guides for less: a try-on by an SDXL with
            one garment slot for two thirds of the price.
        default_steps, default_guidance: what a call takes that names none.

    Raises:
        ValueError: parts that don't fit together.
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->slot_tokens->unet->vae"
    _optional_components = [  # noqa: RUF012
        *("slot_tokens", "tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2", "prompts")
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
        person_size: list | tuple = (1024, 768),
        garment_slots: int = 2,
        unconditional_on: str = "canvas",
        default_steps: int = STEPS,
        default_guidance: float = GUIDANCE,
    ) -> None:
        super().__init__()
        if unconditional_on not in ("canvas", "targets"):
            raise ValueError(f"unconditional_on is {unconditional_on!r}; give 'canvas' or 'targets'")
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
        )
        self.register_to_config(
            person_size=[int(n) for n in person_size],
            garment_slots=garment_slots,
            unconditional_on=unconditional_on,
            default_steps=default_steps,
            default_guidance=default_guidance,
        )
        self.vae_scale_factor = vae_factor(vae)
        self.canvas = _canvas(vae, unet, person_size, garment_slots)
        self.pose_estimator: PoseEstimator | None = None
        self._interrupt = False
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
            return super().from_pretrained(where, **kwargs)
        except Exception as e:  # loaders raise almost anything
            first = next(iter(str(e).splitlines()), "")
            cure = "export or fetch it again" if Path(where).exists() else "check name and network, or give a folder"
            raise ValueError(f"{where!r} can't be loaded ({type(e).__name__}: {first}); {cure}") from e

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
        config = cls.load_config(cls._where(pretrained_model_name_or_path))
        return int(config.get("default_steps", STEPS)), float(config.get("default_guidance", GUIDANCE))

    # ------------------------------------------------------------------------------------------------ the call

    @torch.no_grad()
    def __call__(
        self,
        targets: Collection[str],
        person: Pictures | None = None,
        garments: Mapping[str, Pictures] | None = None,
        face: Pictures | None = None,
        pose: Pose | Sequence[Pose] | None = None,
        caption: str | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        eta: float = 0.0,
        latents: Tensor | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> OMFAPipelineOutput:
        """Generate the targets from whatever is given.

        Every picture may be one or a list of B; one is used for the whole batch.

        Args:
            targets: what to generate: "person" and/or categories ("upper", "lower", "dress").
            person: photo of a dressed person, to take garments from.
            garments: category to garment picture, to put on.
            face: head crop of the person to generate.
            pose: pose map aligned with the person picture, or :class:`BodyParameters` (or their ``.npz``) to render.
            caption: a few words for a text-conditioned model's prompt.
            num_inference_steps: steps of the scheduler; None takes the model's ``default_steps``.
            guidance_scale: classifier-free guidance; 1 or less turns it off (half the work). None takes the model's
                ``default_guidance``.
            generator: one generator, or one per sample (then a sample depends on its batch by rounding alone).
            eta: DDIM's noise, for schedulers that take it.
            latents: start noise (B, C, h, w), standard normal; None draws it.
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
        check_scheduler(self.scheduler)
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type {output_type!r} must be 'pil', 'np', 'pt' or 'latent'")
        if set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs):
            raise ValueError(f"callback_on_step_end_tensor_inputs may only hold {self._callback_tensor_inputs}")
        steps = self.config.default_steps if num_inference_steps is None else num_inference_steps
        scale = self.config.default_guidance if guidance_scale is None else guidance_scale
        generator = list(generator) if isinstance(generator, tuple) else generator
        _check_sampler(steps, scale, eta, generator)
        request = self._check(targets, person, garments, face, pose, caption)
        if isinstance(generator, list) and len(generator) != request.batch:
            raise ValueError(f"{len(generator)} generators for {request.batch} pictures; give one, or one per picture")
        self._interrupt = False
        device = self._execution_device

        # 2. Lay everything given on the canvas.
        guide, boxes = self._encode(request, device)
        guided_pass = scale > 1
        nothing = self.unconditional(guide) if guided_pass else guide

        # 3. Noise on the targets.
        shape = guide.known.shape
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        elif latents.shape != shape or not latents.isfinite().all():
            raise ValueError(f"latents are {tuple(latents.shape)}; this call needs finite ones of {tuple(shape)}")
        self.scheduler.set_timesteps(steps, device=device)
        x = start(self.scheduler, latents.to(device, torch.float32), guide.target)
        accepted = inspect.signature(self.scheduler.step).parameters
        options = {k: v for k, v in {"eta": eta, "generator": generator}.items() if k in accepted}

        # 4. Denoise.
        with self.progress_bar(total=len(self.scheduler.timesteps)) as bar:
            for i, t in enumerate(self.scheduler.timesteps):
                if self._interrupt:
                    break
                seen = network_latents(self.scheduler, x, t, guide.target, guide.known)
                if not guided_pass:
                    prediction = self.predict(seen, t, guide)
                elif self.config.unconditional_on == "targets":
                    without = self.predict_on_targets(seen, t, nothing, request.layout)
                    prediction = guided(torch.cat([without, self.predict(seen, t, guide)]), scale)
                else:  # the unconditional half sees nothing that is given
                    doubled = torch.cat([torch.where(guide.target, seen, 0.0), seen])
                    prediction = guided(self.predict(doubled, t, stack(nothing, guide)), scale)
                x = step(self.scheduler, prediction.float(), t, x, guide.target, **options)
                if callback_on_step_end is not None:
                    changed = callback_on_step_end(self, i, t, {"latents": x}) or {}
                    if (new := changed.get("latents", x)).shape != x.shape:
                        raise ValueError(f"the callback returned latents {tuple(new.shape)}; {tuple(x.shape)} it got")
                    x = torch.where(guide.target, new, 0.0)
                bar.update()

        # 5. Decode the targets; hand back what was given as it came.
        joint = torch.where(guide.target, x, guide.known)
        output = (
            OMFAPipelineOutput(images=joint)
            if output_type == "latent"
            else self._output(request, joint, boxes, output_type)
        )
        self.maybe_free_model_hooks()
        return output if return_dict else cast(Any, output.to_tuple())

    @property
    def interrupt(self) -> bool:
        """Whether a callback has asked to stop (``pipe._interrupt = True``)."""
        return self._interrupt

    def predict(self, latents: Tensor, t: Tensor, guide: Guide) -> Tensor:
        """One forward pass of the network, the same in training and sampling.

        Args:
            latents: noised targets and clean given slots (B, C, h, w).
            t: timestep, a scalar or (B,).
            guide: for the same B.

        Returns:
            The prediction (B, C, h, w).
        """
        dtype = self.unet.dtype
        added = guide.added()
        return self.unet(
            guide.network_input(latents).to(dtype),
            t,
            encoder_hidden_states=guide.context.to(dtype),
            class_labels=None if guide.look is None else guide.look.to(dtype),
            added_cond_kwargs=None if added is None else {k: v.to(dtype) for k, v in added.items()},
            return_dict=False,
        )[0]

    def predict_on_targets(self, latents: Tensor, t: Tensor, nothing: Guide, layout: Layout) -> Tensor:
        """:meth:`predict` of an unconditional guide over the window of its targets, zero elsewhere.

        Args:
            latents: noised targets (B, C, h, w); all else is left out.
            t: timestep, a scalar or (B,).
            nothing: of :meth:`unconditional`.
            layout: whose targets, the same for all B.
        """
        window = self.canvas.window(layout.slots(State.TARGET))
        narrow = nothing.cut(window)
        made = self.predict(torch.where(narrow.target, latents[..., *window], 0.0), t, narrow)
        whole = made.new_zeros(latents.shape)
        whole[..., *window] = made
        return whole

    def guide(
        self,
        layouts: Sequence[Layout],
        latents: Mapping[str, Tensor],
        pose: Tensor | None,
        has_pose: Tensor | None,
        device: torch.device | str,
    ) -> Guide:
        """What the network is given, the same in training and sampling; see :func:`omfa.conditioning.assemble`."""
        context, pooled = self.context(layouts, device)
        sizes = None if pooled is None else size_ids(self.config.person_size, len(layouts)).to(pooled)
        channels = self.vae.config.latent_channels
        looks = self.unet.config.class_embed_type is not None
        return assemble(self.canvas, layouts, latents, channels, pose, has_pose, context, pooled, sizes, looks)

    def unconditional(self, guide: Guide) -> Guide:
        """The guide with everything given dropped, the same in training and sampling."""
        null, _ = self.context([Layout(TaskKind.TRY_ON, {}, prompted=False)], guide.context.device)
        return unconditional(guide, self.canvas, null)

    def context(self, layouts: Sequence[Layout], device: torch.device | str) -> tuple[Tensor, Tensor | None]:
        """Slot tokens or encoded prompts of each layout: context (B, N, D) and, for SDXL, pooled (B, P)."""
        if self.slot_tokens is not None:
            return self.slot_tokens(self.slot_tokens.rows(self.canvas, layouts).to(device)), None
        return self.texts([layout.prompt() for layout in layouts], device)

    # ---------------------------------------------------------------------------------------------- the wrappers

    def try_off(
        self,
        person: Pictures,
        categories: str | Collection[str] = "upper",
        pose: Pose | Sequence[Pose] | None = None,
        **options: Any,
    ) -> OMFAPipelineOutput:
        """Take garments off a photo, as shop pictures. One photo is enough.

        Args:
            person: photo of a dressed person, or B of them.
            categories: which garments: "upper", "lower", "dress", or several.
            pose: not needed.
            options: of the general call.
        """
        names = [categories] if isinstance(categories, str) else list(categories or ())
        return self(targets=names, person=person, pose=pose, **options)

    def try_on(
        self,
        portrait: Pictures | None = None,
        garments: Mapping[str, Pictures] | None = None,
        pose: Pose | Sequence[Pose] | None = None,
        face: Pictures | None = None,
        keep: Literal["others"] | None = "others",
        **options: Any,
    ) -> OMFAPipelineOutput:
        """Put garments on a person.

        Args:
            portrait: photo of the person, or B of them; None to go by ``face`` and ``pose`` alone.
            garments: category to garment picture; none keeps what the portrait wears.
            pose: pose map or body parameters to take; None takes the portrait's.
            face: head crop; None takes the portrait's.
            keep: "others" fills the garment slots left open by try-off from the portrait; None leaves them open.
            options: of the general call.

        Raises:
            ValueError: a pose or face is to be taken from the portrait and the pipeline has no ``pose_estimator``.
        """
        if keep not in ("others", None):
            raise ValueError(f"keep={keep!r} must be 'others' or None")
        worn = _worn(garments)
        if portrait is not None and (pose is None or face is None):
            looks = [self._estimate(p) for p in images.as_list(portrait)]
            pose = [look.params for look in looks] if pose is None else pose
            heads = [look.face for look in looks if look.face is not None]
            face = heads if face is None and len(heads) == len(looks) else face
        if portrait is not None and keep == "others":
            left = self._left_open(worn)
            if left:
                several = options.get("generator")
                batch = len(several) if isinstance(several, list | tuple) else 1
                worn |= self.try_off(_repeated(portrait, batch), left, **_shared(options)).garments
        return self(targets=["person"], garments=worn, face=face, pose=pose, **options)

    def transfer(
        self,
        source: Pictures,
        target: Pictures,
        categories: str | Collection[str] = "upper",
        pose: Pose | Sequence[Pose] | None = None,
        face: Pictures | None = None,
        keep: Literal["others"] | None = "others",
        **options: Any,
    ) -> OMFAPipelineOutput:
        """Take garments off one person and put them on another.

        Args:
            source: photo of who wears the garments.
            target: photo of who shall wear them.
            categories: which garments.
            pose, face, keep, options: as in :meth:`try_on`.
        """
        batch = max(len(images.as_list(source)), len(images.as_list(target)))
        taken = self.try_off(_repeated(source, batch), categories, **_shared(options)).garments
        return self.try_on(_repeated(target, batch), taken, pose=pose, face=face, keep=keep, **options)

    def turntable(
        self,
        portrait: Picture | None = None,
        garments: Mapping[str, Picture] | None = None,
        pose: BodyParameters | str | os.PathLike[str] | None = None,
        face: Picture | None = None,
        views: int = 8,
        keep: Literal["others"] | None = "others",
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> OMFAPipelineOutput:
        """The same person and clothes from all sides: ``views`` pictures over the full turn, the first as in ``pose``.

        Args:
            portrait: photo of the person, or None to go by ``face`` and ``pose``.
            garments: category to garment picture; none keeps what the portrait wears.
            pose: body parameters (or their ``.npz``) to turn; None estimates the portrait's. A flat pose map can't be
                turned.
            face: head crop; None takes the portrait's.
            views: number of pictures; made in one batch.
            keep: as in :meth:`try_on`.
            generator: seeds the noise, which all views share.
            options: of the general call.

        Raises:
            ValueError: several people, or no pose that can be turned.
        """
        if views < 1:
            raise ValueError(f"views={views} must be 1 or more")
        worn = _worn(garments)
        if any(len(images.as_list(p)) > 1 for p in (portrait, face, *worn.values())):
            raise ValueError("a turntable shows one person: give one picture of each, and call again for the next")
        if generator is not None and not isinstance(generator, torch.Generator):
            raise ValueError("a turntable takes one generator: all views share their noise")
        if isinstance(pose, str | os.PathLike) and str(pose).endswith(".npz"):
            pose = BodyParameters.load(Path(pose))
        if portrait is not None and (pose is None or face is None):
            look = self._estimate(portrait)
            pose, face = pose or look.params, face if face is not None else look.face
        if not isinstance(pose, BodyParameters):
            raise ValueError("a turntable needs body parameters to turn: give pose=BodyParameters.load('pose.npz')")
        if portrait is not None and keep == "others" and self._left_open(worn):
            worn |= self.try_off(
                portrait, self._left_open(worn), **_shared(options | {"generator": generator})
            ).garments
        poses = [turned(pose, 360.0 * i / views) for i in range(views)]
        seed = int(
            torch.randint(2**62, (1,), generator=generator, device=None if generator is None else generator.device)
        )
        device = "cpu" if generator is None else generator.device
        alike = [torch.Generator(device=device).manual_seed(seed) for _ in poses]  # all noise, shared by all views
        return self(targets=["person"], garments=worn, face=face, pose=poses, generator=alike, **options)

    def _left_open(self, worn: Mapping[str, Any]) -> list[str]:
        """Categories to take from the portrait so that the person is dressed from head to foot."""
        if Category.DRESS in worn or len(worn) >= self.canvas.garments:
            return []
        return [c.value for c in (Category.UPPER, Category.LOWER) if c.value not in worn][: self.canvas.garments]

    def _estimate(self, portrait: Picture) -> Estimate:
        if self.pose_estimator is None:
            raise ValueError(
                "pose or face is missing and this pipeline has no pose estimator: pass pose= (a pose map or "
                "BodyParameters) and face= (a head crop), or set pipe.pose_estimator (the command line does)"
            )
        return self.pose_estimator(images.read_image(portrait, "portrait"))

    # ------------------------------------------------------------------------------------------- steps of the call

    def _check(
        self,
        targets: Collection[str],
        person: Pictures | None,
        garments: Mapping[str, Pictures] | None,
        face: Pictures | None,
        pose: Pose | Sequence[Pose] | None,
        caption: str | None,
    ) -> _Request:
        """The request behind a call, everything checked and every picture read."""
        wanted = [targets] if isinstance(targets, str) or not isinstance(targets, Collection) else list(targets)
        unknown = set(wanted) - {PERSON, *Category}
        if unknown or not wanted:
            raise ValueError(f"targets {wanted} must be some of 'person', {', '.join(map(repr, map(str, Category)))}")
        worn = {Category(c): g for c, g in _worn(garments).items() if g is not None}
        new = [Category(t) for t in wanted if t != PERSON]
        both = set(new) & set(worn)
        if both or (PERSON in wanted and person is not None):
            named = ", ".join(sorted(both)) or "person"
            raise ValueError(f"{named} is given and a target at once; take it out of targets, or don't give it")
        if PERSON in wanted and not worn and not new:
            raise ValueError(
                "people are always dressed: give at least one garment to put on, like garments={'upper': picture}, "
                "or make one a target too"
            )
        if PERSON not in wanted and person is None:
            raise ValueError("try-off needs person=, the photo to take the garment from")
        places = self.canvas.place([*new, *worn])
        states = {places[c]: State.TARGET for c in new} | {places[c]: State.GIVEN for c in worn}
        pictures: dict[str, list[Any]] = {places[c]: images.as_list(g) for c, g in worn.items()}
        for slot, value in ((PERSON, person), (FACE, face)):
            if value is not None:
                states[slot], pictures[slot] = State.GIVEN, images.as_list(value)
        if PERSON in wanted:
            states[PERSON] = State.TARGET
        poses = [pose] if isinstance(pose, BodyParameters) else images.as_list(cast(Any, pose))
        batch = max([len(p) for p in pictures.values()] + [len(poses), 1])
        for name, several in [*pictures.items(), ("pose", poses)]:
            if not several and not (name == "pose" and pose is None):
                raise ValueError(f"an empty list for {name}; give a picture, or leave it out")
            if len(several) not in (0, 1, batch):
                raise ValueError(f"{len(several)} pictures for {name} in a batch of {batch}; give 1 or {batch}")
        kinds = {Component.PERSON if t == PERSON else Component.GARMENT for t in wanted}
        categories = {places[c]: c for c in [*new, *worn]}
        read = {slot: [images.read_image(p, slot) for p in several] for slot, several in pictures.items()}
        maps = [_pose_picture(p) for p in poses]
        return _Request(
            layout=Layout(Task(frozenset(kinds)).kind, states, categories, caption),
            batch=batch,
            given={slot: several * (batch // len(several)) for slot, several in read.items()},
            pose=maps * (batch // len(maps)) if maps else [],
        )

    def _encode(self, request: _Request, device: torch.device) -> tuple[Guide, list[Box] | None]:
        """Everything given, encoded and laid on the canvas; and where each person lies in its padded picture."""
        factor = self.vae_scale_factor

        def pixels(slot: str, pictures: list[Image.Image]) -> tuple[Tensor, list[Box]]:
            size = (self.canvas[slot].height * factor, self.canvas[slot].width * factor)
            fill: images.Fill = "white" if slot.startswith("garment") else "edge"
            fitted = [images.fit(images.pixels_to_tensor(np.asarray(p)), size, fill) for p in pictures]
            return torch.stack([f[0] for f in fitted]).to(device), [f[1] for f in fitted]

        latents = {slot: encode(self.vae, pixels(slot, pictures)[0]) for slot, pictures in request.given.items()}
        pose, boxes = None, None
        if request.pose:
            pose_pixels, boxes = pixels(PERSON, request.pose)
            pose = encode(self.vae, pose_pixels)
        return self.guide([request.layout] * request.batch, latents, pose, None, device), boxes

    def _output(
        self, request: _Request, joint: Tensor, boxes: list[Box] | None, output_type: OutputType
    ) -> OMFAPipelineOutput:
        """Pictures of every component: targets decoded and freed of their padding, given ones as they came."""
        parts, made = self.canvas.split(joint), {}
        for slot in sorted(request.layout.slots(State.TARGET)):
            pixels = images.tensor_to_pixels(decode(self.vae, parts[slot]))
            cut = boxes if slot == PERSON else None
            made[slot] = [Image.fromarray(p[cut[i].window] if cut else p) for i, p in enumerate(pixels)]
        pictures = request.given | made
        garments = {str(c): _as(pictures[slot], output_type) for slot, c in request.layout.categories.items()}
        person = _as(pictures[PERSON], output_type) if PERSON in pictures else None
        first = person if PERSON in made else next(garments[str(request.layout.categories[s])] for s in made)
        return OMFAPipelineOutput(images=first, person=person, garments=garments)


def _check_sampler(steps: Any, scale: Any, eta: Any, generator: Any) -> None:
    """ValueError for numbers no scheduler can use."""
    if isinstance(steps, bool) or not isinstance(steps, Integral) or steps < 1:
        raise ValueError(f"num_inference_steps is {steps!r}; give a whole number, 1 or more")
    for name, value in (("guidance_scale", scale), ("eta", eta)):
        if not isinstance(value, Real) or not math.isfinite(value):
            raise ValueError(f"{name} is {value!r}; give a finite number")
    several = generator if isinstance(generator, list) else [generator]
    if generator is not None and not all(isinstance(g, torch.Generator) for g in several):
        raise ValueError(f"generator is {generator!r}; give a torch.Generator, or a list of one per picture")


def _repeated(pictures: Pictures, batch: int) -> Pictures:
    """One picture as a batch of the same; several stay as they are."""
    several = images.as_list(pictures)
    return several * batch if len(several) == 1 else several


def _as(pictures: list[Image.Image], output_type: OutputType) -> Any:
    """Pictures in the form the caller asked for; arrays and tensors are stacked where sizes agree."""
    if output_type == "pil":
        return pictures
    arrays = [np.asarray(p).astype(np.float32) / 255 for p in pictures]
    alike = len({a.shape for a in arrays}) == 1
    if output_type == "np":
        return np.stack(arrays) if alike else arrays
    tensors = [torch.from_numpy(a).permute(2, 0, 1) for a in arrays]
    return torch.stack(tensors) if alike else tensors


def _worn(garments: Any) -> dict[str, Any]:
    """Category to picture, of what was given as garments."""
    if not isinstance(garments, Mapping | None) or set(garments or ()) - set(Category):
        got = ", ".join(map(repr, garments)) if isinstance(garments, Mapping) else type(garments).__name__
        raise ValueError(f"garments must map 'upper', 'lower' or 'dress' to a picture; got {got}")
    return {str(c): g for c, g in (garments or {}).items()}


def _pose_picture(pose: Pose) -> Image.Image:
    """A pose map as a picture; body parameters (or their ``.npz``) are rendered with the body that ships."""
    if isinstance(pose, str | os.PathLike) and str(pose).endswith(".npz"):
        pose = BodyParameters.load(Path(pose))
    if isinstance(pose, BodyParameters):
        return Image.fromarray(render_pose_map(load_body(), pose))
    return images.read_image(pose, "pose")


def _shared(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a try-on that its own try-off takes over."""
    names = ("num_inference_steps", "guidance_scale", "generator", "eta", "callback_on_step_end")
    return {k: v for k, v in options.items() if k in names}


def _canvas(vae: AutoencoderKL, unet: UNet2DConditionModel, person_size: Sequence[int], garment_slots: int) -> Canvas:
    factor = vae_factor(vae)
    if len(person_size) != 2 or any(n % factor for n in person_size):
        raise ValueError(f"person_size {list(person_size)} must be (height, width) in multiples of {factor} pixels")
    return Canvas((person_size[0] // factor, person_size[1] // factor), garment_slots, canvas_multiple(unet))


# ------------------------------------------------------------------------------------------------------ beginning


def compact_pipeline(
    vae: str | dict[str, Any],
    unet: str | dict[str, Any],
    person_size: Sequence[int] = (256, 192),
    garment_slots: int = 2,
    token_dim: int = 256,
    unconditional_on: str = "canvas",
    default_steps: int = STEPS,
    default_guidance: float = GUIDANCE,
) -> OMFAPipeline:
    """A new compact model: slot tokens, v-prediction, zero terminal SNR.

    Zero terminal SNR and trailing steps (Lin et al. 2023, arXiv 2305.08891) keep white shop backgrounds white.

    Args:
        vae: folder of a trained AutoencoderKL, or the arguments of a new one.
        unet: arguments of :class:`UNet2DConditionModel`, whose channels in and out and context's width are filled in;
            or folder of a trained compact model to go on from, with its slot tokens, perhaps at another size.
        person_size: (height, width) in pixels.
        garment_slots: 1 or 2.
        token_dim: width of a new model's slot token.
        unconditional_on, default_steps, default_guidance: see :class:`OMFAPipeline`. A model that is trained at few
            ``timesteps`` (:class:`omfa.training.examples.RecordsDataset`) is to be sampled in as few steps.

    Raises:
        ValueError: no VAE or model there, or sizes that don't fit.
    """
    codec = AutoencoderKL.from_pretrained(_folder(vae)) if isinstance(vae, str) else AutoencoderKL(**vae)
    channels = codec.config.latent_channels
    if isinstance(unet, str):
        network = UNet2DConditionModel.from_pretrained(_folder(f"{unet}/unet"), use_safetensors=True)
        tokens = SlotTokens.from_pretrained(_folder(f"{unet}/slot_tokens"), use_safetensors=True)
    else:
        network = UNet2DConditionModel(
            **unet,
            in_channels=input_channels(channels),
            out_channels=channels,
            cross_attention_dim=token_dim,
            class_embed_type="projection",
            projection_class_embeddings_input_dim=look_size(garment_slots + 2, channels),
        )
        tokens = SlotTokens(token_dim)
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )
    sizes: dict[str, Any] = {
        "person_size": list(person_size),
        "garment_slots": garment_slots,
        "unconditional_on": unconditional_on,
        "default_steps": default_steps,
        "default_guidance": default_guidance,
    }
    return OMFAPipeline(codec, network, scheduler, tokens, **sizes)


def _folder(path: str) -> str:
    if not Path(path, "config.json").is_file():
        raise ValueError(f"{path!r} holds no weights (no config.json); train them first, or give another folder")
    return path
