"""The LightningModule: encode, delegate, log. The method itself is in partial_diffusion and conditioning."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from omfa import images
from omfa import partial_diffusion as pd
from omfa.backbone import fingerprint, latents_from, posterior
from omfa.bodies.parameters import BodyParameters
from omfa.canvas import PERSON, PORTRAIT, Canvas
from omfa.components import CLOTHES, Category, State
from omfa.conditioning import Guide, choose
from omfa.pipeline import OMFAPipeline
from omfa.prompts import Prompts, phrases
from omfa.records.latents import Latents
from omfa.records.prepared import Record, RecordError
from omfa.records.shards import Source
from omfa.records.stream import draw_noise
from omfa.records.worn import wearable
from omfa.rows import Rows
from omfa.training.examples import Batch
from omfa.training.in_rows import row_losses
from omfa.training.model_card import About, forget_origins
from omfa.training.parts import Sampling, TrainedModule
from omfa.training.rates import Rates
from omfa.tuning import BUILT, LORA, TUNED, Mismatch, Train, choose_trained, merge_lora, save_tuned


class Encoded(NamedTuple):
    """A batch as latents: ``noise`` of every draw (K, B, C, h, w), ``latents`` of every slot (B, C, h, w).

    In rows the noise of garments that a canvas has no slots for lies to the right of the canvas's.
    ``planes`` of poses and ``drafts``: by slot, each example's (C, h, w) or None.
    """

    noise: Tensor
    latents: dict[str, Tensor]
    planes: dict[str, list[Tensor | None]]
    drafts: dict[str, list[Tensor | None]]


def _beyond(canvas: Canvas, slots: Iterable[str]) -> list[str]:
    """The slots, in rows, of garments that the canvas has none for."""
    own = {slot.name for slot in canvas.slots}
    return [slot for slot in slots if slot not in own and slot != PORTRAIT]


def _split(canvas: Canvas, plane: Tensor, slots: Iterable[str]) -> dict[str, Tensor]:
    """Views of a plane (..., h, w) by slot; see :class:`Encoded`."""
    (height, width), left = canvas.person, canvas.size[1]
    more = {s: plane[..., :height, left + i * width :][..., :width] for i, s in enumerate(_beyond(canvas, slots))}
    return canvas.split(plane) | more


class OMFAModule(TrainedModule):
    """Trains a pipeline's UNet (and slot tokens) by partial diffusion; VAE and text encoders stay frozen.

    Args:
        pipeline: what to train: ``omfa.compact.compact_pipeline`` or ``omfa.sdxl.sdxl_pipeline`` in a config.
        learning_rate: AdamW's, after warm-up.
        weight_decay: AdamW's.
        warmup_steps: steps of linear warm-up.
        decay_from: fraction of ``max_steps`` after which the rate falls linearly to zero; 1 never.
        min_snr: gamma of min-SNR loss weights (5 is usual); None for none. With v-prediction the step of
            pure noise then has weight 0 and learns from its neighbours alone.
        channels_last: memory format of the UNet; faster convolutions on most machines.
        train: "all", "attention" or "lora" (:mod:`omfa.tuning`); the last two for SDXL.
        rank: of LoRA's matrices.
        frozen_bf16: keep what is not trained in bfloat16, half the memory; needs ``trainer.precision: bf16-mixed``.
        gradient_checkpointing: compute activations twice rather than keep them: a third slower, far less memory.

    Raises:
        ValueError: a number out of range, or a part of the compact model to be trained.
    """

    alphas_cumprod: Tensor

    def __init__(
        self,
        pipeline: OMFAPipeline,
        learning_rate: float = 1e-4,
        weight_decay: float = 0.01,
        warmup_steps: int = 100,
        decay_from: float = 1.0,
        min_snr: float | None = None,
        channels_last: bool = False,
        train: Train = "all",
        rank: int = 16,
        frozen_bf16: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__(Rates(learning_rate, weight_decay, warmup_steps, decay_from))
        if train != "all" and pipeline.slot_tokens is not None:
            raise ValueError(f"train={train!r} is for SDXL; the compact model is small: train 'all' of it")
        self.pipe = pipeline  # no nn.Module: what is frozen stays out of checkpoints
        self.unet, self.slot_tokens = pipeline.unet, pipeline.slot_tokens
        if pipeline.vae_is_new:
            self.vae = pipeline.vae  # a part, so that checkpoints keep what can't be read again from anywhere
        self.train_what, self.frozen_bf16 = train, frozen_bf16
        # small files and checkpoints lack what is frozen, so they name it
        self.base = None if train == "all" else fingerprint(self.unet, dtype=torch.float16)
        choose_trained(self.unet, train, rank, frozen_bf16)
        self.unet.train()  # as read from a folder it is not, and Lightning leaves that alone
        if gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        if channels_last:
            self.unet.to(memory_format=torch.channels_last)
        self.min_snr = min_snr
        self.kind = pd.check_scheduler(pipeline.scheduler)
        self.in_step = False  # whether every process must run the network as often as the others: ZeRO-3
        self.register_buffer("alphas_cumprod", pipeline.scheduler.alphas_cumprod.clone(), persistent=False)
        for frozen in (pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2):
            if frozen is not None:
                frozen.requires_grad_(False).eval()

    def on_fit_start(self) -> None:
        """Bring the text encoders to the device (the VAE comes when a picture does) and check what was encoded ahead.

        Raises:
            RecordError: latents of another VAE.
            Mismatch: frozen weights in bfloat16 without autocast, or passes that ZeRO-3 can't keep in step.
        """
        for encoder in (self.pipe.text_encoder, self.pipe.text_encoder_2):
            if encoder is not None:
                encoder.to(self.device)
        self.in_step = getattr(self.trainer.strategy, "zero_stage_3", False)
        if self.frozen_bf16 and self.trainer.precision != "bf16-mixed":
            raise Mismatch(
                f"frozen_bf16 needs trainer.precision bf16-mixed, not {self.trainer.precision}: change that, or set "
                "model.init_args.frozen_bf16 false"
            )
        if self.pipe.config.unconditional_on == "targets" and self.pipe.config.join == "canvas" and self.in_step:
            raise Mismatch(
                "unconditional_on: targets runs a pass for each example without anything given, and ZeRO-3 needs as "
                "many passes on every device: take stage 2, or unconditional_on: canvas"
            )
        latents = getattr(self.trainer.datamodule, "latents", None)  # type: ignore[attr-defined]
        if latents is not None and Latents(latents).vae != fingerprint(self.pipe.vae):
            raise RecordError(f"{latents} was made by another VAE than this model's: encode the records with this one")

    def frozen(self) -> dict[str, Tensor]:
        """See :class:`TrainedModule`; a VAE made from nothing is not among them."""
        return {name: p for name, p in super().frozen().items() if not name.startswith("vae.")}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Checkpoints hold what is trained; the rest comes from where it came from."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["base"] = self.base

    def check(self, checkpoint: Mapping[str, Any]) -> None:
        """Refuse a checkpoint of something else.

        Raises:
            Mismatch: trained from another base, with another ``train`` or ``rank``, or another network.
        """
        state = checkpoint["state_dict"]
        if self.pipe.vae_is_new and not any(name.startswith("vae.") for name in state):
            # of older versions, which kept no VAE made from nothing: the same seed has made the same one here
            state |= {f"vae.{name}": value for name, value in self.pipe.vae.state_dict().items()}
        made_from = checkpoint.get("base")
        if made_from is not None and self.base is not None and made_from != self.base:
            raise Mismatch(
                f"the checkpoint's training began with other weights (base {made_from}, here {self.base}): set the "
                "pipeline's base to the very SDXL it began with"
            )
        super().check(checkpoint)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The mean of :meth:`losses`, logged by task."""
        losses = self.losses(batch)
        size = len(losses)
        self.log("loss", losses.mean(), prog_bar=True, batch_size=size)
        by_kind = defaultdict(list)
        for layout, value in zip(batch.layout, losses.detach(), strict=True):
            by_kind[f"loss/{layout.kind}"].append(value)
        self.log_dict({name: torch.stack(v).mean() for name, v in by_kind.items()}, batch_size=size)
        return losses.mean()

    def losses(self, batch: Batch) -> Tensor:
        """Each example's loss, (B,): noise the targets, predict, compare on the targets."""
        if self.pipe.config.join == "rows":
            return self._losses_in_rows(batch)
        z0, noise, guide = self.prepare(batch)
        t = torch.tensor([t for (t,) in batch.t], device=self.device)
        alpha_bar = self.alphas_cumprod[t]
        z_t = torch.where(guide.target, pd.add_noise(z0, noise, alpha_bar, guide.target), guide.known)
        prediction = self.predict(z_t, t, guide, batch)
        weight = None if self.min_snr is None else pd.min_snr_weight(alpha_bar, self.min_snr, self.kind)
        goal = pd.training_goal(z0, noise, alpha_bar, self.kind)
        return pd.loss(prediction, goal, guide.target, weight)

    def predict(self, z_t: Tensor, t: Tensor, guide: Guide, batch: Batch) -> Tensor:
        """The pipeline's prediction; examples without anything given over their targets alone where it samples so."""
        alone = [i for i, is_so in enumerate(batch.unconditional) if is_so]
        if not alone or self.pipe.config.unconditional_on == "canvas":
            return self.pipe.predict(z_t, t, guide)
        rest = [i for i in range(len(z_t)) if i not in alone]
        rows = [guide.map(lambda x, i=i: x[i : i + 1]) for i in alone]
        made = [
            self.pipe.predict_on_targets(z_t[i : i + 1], t[i : i + 1], row, batch.layout[i])
            for i, row in zip(alone, rows, strict=True)
        ]
        if rest:
            made.append(self.pipe.predict(z_t[rest], t[rest], guide.map(lambda x: x[rest])))
        return torch.cat(made)[torch.tensor([*alone, *rest]).argsort()]

    def prepare(self, batch: Batch) -> tuple[Tensor, Tensor, Guide]:
        """Clean latents of the whole canvas (B, C, h, w), noise for them (the same), and what the network is given.

        Targets are samples of the VAE's posterior, given components its mode; each picture is encoded alone.
        """
        made = self.encode(batch)
        guide = self.pipe.guide(batch.layout, made.latents, made.planes, self.device, made.drafts)
        guide = choose(torch.tensor(batch.unconditional), self.pipe.unconditional(guide), guide)
        return self.pipe.canvas.join(made.latents), made.noise[0], guide

    def encode(self, batch: Batch) -> Encoded:
        """All of a batch that no trained weight has touched yet."""
        canvas, channels = self.pipe.canvas, self.pipe.vae.config.latent_channels
        width = canvas.size[1] + canvas.person[1] * len(_beyond(canvas, batch.pixels))
        shape = (len(batch.t[0]) + 1, channels, canvas.size[0], width)
        *noise, last = draw_noise(batch.generator, shape).to(self.device).unbind(1)
        return Encoded(
            torch.stack(noise), self._latents(batch, _split(canvas, last, batch.pixels)), *self._drawn(batch)
        )

    @torch.no_grad()
    def _encoded(self, batch: Batch, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents (N, C, h, w) of pictures, or of posteriors that were encoded ahead; ``noise`` samples them."""
        vae = self.pipe.vae
        moments = pixels if batch.encoded else posterior(vae.to(pixels.device), pixels)
        return latents_from(moments, noise, vae.config.scaling_factor)

    def _latents(self, batch: Batch, noise: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Latents of every slot (B, C, h, w); ``noise`` samples the targets' posteriors."""
        latents = {}
        for slot, pixels in batch.pixels.items():
            states = [layout.states.get(slot, State.ABSENT) for layout in batch.layout]
            z = torch.zeros_like(noise[PERSON if slot == PORTRAIT else slot])
            for state in (State.TARGET, State.GIVEN):
                rows = [i for i, s in enumerate(states) if s is state]
                if rows:
                    z[rows] = self._encoded(batch, pixels[rows], noise[slot][rows] if state is State.TARGET else None)
            latents[slot] = z
        return latents

    def _drawn(self, batch: Batch) -> tuple[dict[str, list[Tensor | None]], dict[str, list[Tensor | None]]]:
        """Latents of pose planes and of drafts, by slot, for each example (C, h, w) or None."""
        posed = zip(batch.there, batch.has_pose, strict=True)
        there = [{*names, *([f"{PERSON}_map"] if has else [])} for names, has in posed]
        found: dict[str, list[Tensor | None]] = {}
        for name, pixels in {**batch.drawn, f"{PERSON}_map": batch.pose}.items():
            rows = [i for i, names in enumerate(there) if name in names]
            encoded = iter(self._encoded(batch, pixels[rows]) if rows else ())
            found[name] = [next(encoded) if name in names else None for names in there]
        planes, drafts = (
            {n.removesuffix(end): z for n, z in found.items() if n.endswith(end)} for end in ("_map", "_draft")
        )
        return planes, drafts

    def _losses_in_rows(self, batch: Batch) -> Tensor:
        """The same in rows, the mean over several draws of the noise; see :func:`omfa.training.in_rows.row_losses`."""
        made = self.encode(batch)
        guide = self.pipe.row_guide(batch.layout, made.latents, made.planes, self.device, made.drafts)
        guide = guide.in_step(self.pipe.canvas) if self.in_step else guide
        z0, noise = self.of_targets(guide.targets, made)
        dropped, steps = torch.tensor(batch.unconditional), torch.tensor(batch.t)
        how = (self.alphas_cumprod, self.kind, self.min_snr)
        return row_losses(self.pipe, guide, batch.layout, z0, noise, steps, dropped, *how)

    def of_targets(self, targets: Rows, made: Encoded) -> tuple[Tensor, Tensor]:
        """Clean latents of target rows (T, C, h, w) and the draws of their noise (K, T, C, h, w)."""
        here = list(zip(targets.owner.tolist(), targets.slots, strict=True))

        def of(by_slot: Mapping[str, Tensor]) -> Tensor:
            return torch.stack([by_slot[slot][b] for b, slot in here])

        canvas = self.pipe.canvas
        return of(made.latents), torch.stack([of(_split(canvas, draw, made.latents)) for draw in made.noise])

    def save(self, folder: Path, whole: bool = False, dtype: torch.dtype | None = None) -> None:
        """Write what was trained; see :class:`omfa.training.parts.Saves`.

        For "all" and where ``whole`` the folder is one that ``OMFAPipeline.from_pretrained`` reads (LoRA is merged for
        good), else small files that ``omfa.sdxl.load_small`` lays onto the base.
        """
        if dtype is not None:
            self._cast(dtype)
        pipe = self.pipe
        if pipe.slot_tokens is None and pipe.prompts is None and pipe.texts.loaded:
            encoders = pipe.text_encoder, pipe.text_encoder_2
            known = phrases((*CLOTHES, *map(Category, pipe.config.accessories)))
            made = Prompts.of(known, pipe.texts, fingerprint(*encoders), pipe.text_encoder.device)
            pipe.register_modules(prompts=made)
        if self.train_what == "all" or whole:
            if self.train_what == "lora":
                merge_lora(self.unet)
            pipe.save_pretrained(folder)
        else:
            save_tuned(self.unet, self.train_what, folder, self.told())
            if pipe.prompts is not None:
                pipe.prompts.save_pretrained(folder / "prompts")
        forget_origins(folder)

    def told(self) -> dict[str, Any]:
        """What small files say of themselves: where they began, and how the pipeline around them is built."""
        built = ("person_size", "garment_slots", *BUILT)
        return {**self.pipe.origin, **{name: self.pipe.config[name] for name in built}, "fingerprint": self.base}

    def _cast(self, dtype: torch.dtype) -> None:
        self.to(dtype)
        for part in self.pipe.components.values():
            if isinstance(part, torch.nn.Module):
                torch.nn.Module.to(part, dtype)  # diffusers' own warns of nothing

    def about(self, folder: Path) -> About:
        """See :class:`omfa.training.parts.Describes`."""
        code = "from omfa.pipeline import OMFAPipeline\n\npipe = OMFAPipeline.from_pretrained(FOLDER)"
        use = f"```python\n{code}\n```"
        if (folder / TUNED).is_file():
            lora = (folder / LORA).is_file()
            what = "LoRA matrices, which diffusers' `load_lora_weights` reads too," if lora else "Attention weights"
            code = (
                "from omfa.sdxl import load_small\n\n"
                "pipe = load_small(FOLDER)  # base=... if it began with a local folder"
            )
            use = f"{what} and `conv_in`, small files for the base it began with:\n\n```python\n{code}\n```"
        return About(
            title="OMFA model",
            tags=("virtual-try-on", "virtual-try-off", "image-to-image"),
            what="Try-on and try-off by partial diffusion ([arXiv 2508.04559](https://arxiv.org/abs/2508.04559)).",
            use=use,
            terms="SDXL: CreativeML Open RAIL++-M; ",
        )

    @property
    def picture_size(self) -> tuple[int, int]:
        """See :class:`omfa.training.parts.Samples`."""
        slot, factor = self.pipe.canvas[PERSON], self.pipe.vae_scale_factor
        return slot.height * factor, slot.width * factor

    def sample(self, source: Source, record: Record, how: Sampling) -> list[list[Image.Image]]:
        """A row of try-on and one of try-off by the pipeline users call; see :class:`omfa.training.parts.Samples`."""

        def read(path: str) -> Image.Image:
            return images.decode(source.read(path), source.where(path))

        pipe = self.pipe
        pipe.vae.to(self.device)
        person = read(record.file_name)
        taken = list(wearable(record, pipe.config.join, pipe.config.accessories).values())
        taken = taken if pipe.config.join == "rows" else taken[: pipe.canvas.garments]
        worn, bodies = defaultdict[str, list[Any]](list), defaultdict[str, list[Any]](list)
        for garment in taken:
            worn[garment.category.value].append(read(garment.path))
            bodies[garment.category.value].append(self._body(source, garment.pose))
        pose = read(record.pose.map) if record.pose is not None and record.pose.map is not None else None
        body = self._body(source, None if record.pose is None else record.pose.params)
        stands = {c: [several] for c, several in bodies.items() if len(several) > 1 or several[0] is not None}
        face = None if record.face is None else read(record.face.path)
        head = None if record.face is None else self._body(source, record.face.pose)
        options: dict[str, Any] = {"num_inference_steps": how.steps, "guidance_scale": how.guidance}
        bodies_of: dict[str, Any] = {"garment_poses": stands, "face_pose": head}
        pipe.set_progress_bar_config(disable=True)
        seed = torch.Generator().manual_seed
        dressed = {c: [several] for c, several in worn.items()}
        on = pipe(["person"], None, dressed, face, body or pose, generator=seed(how.seed), **bodies_of, **options)
        off = pipe(list(worn), person, pose=body, generator=seed(how.seed), **options)
        pipe.set_progress_bar_config(disable=False)
        return [
            [*chain(*worn.values()), *([pose] if pose is not None else []), on.person[0], person],
            [person, *(p[0] for p in off.garments.values()), *(several[-1] for several in worn.values())],
        ]

    def _body(self, source: Source, path: str | None) -> BodyParameters | None:
        """What a model with drafts looks pictures up by; None for other models."""
        if path is None or "surface" not in (self.pipe.config.draft, self.pipe.config.pose_style):
            return None
        return BodyParameters.load(Path(source.where(path)), source.read(path))
