"""The LightningModules: encode, delegate, log. The method itself is in partial_diffusion and conditioning."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from einops import rearrange
from torch import Tensor

from omfa import partial_diffusion as pd
from omfa.backbone import fingerprint, latents_from, posterior
from omfa.components import State
from omfa.conditioning import Guide, choose
from omfa.pipeline import OMFAPipeline
from omfa.prompts import Prompts, phrases
from omfa.records.prepared import RecordError
from omfa.training.examples import Example, draw_noise, read_encoding, seeded
from omfa.tuning import Mismatch, Train, choose_trained, merge_lora, save_tuned


class OMFAModule(pl.LightningModule):
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
        super().__init__()
        if train != "all" and pipeline.slot_tokens is not None:
            raise ValueError(f"train={train!r} is for SDXL; the compact model is small: train 'all' of it")
        if learning_rate <= 0 or warmup_steps < 0 or not 0 <= decay_from <= 1:
            raise ValueError(
                f"learning_rate {learning_rate} > 0, warmup_steps {warmup_steps} >= 0 and 0 <= decay_from {decay_from} "
                "<= 1 are needed"
            )
        self.pipe = pipeline  # no nn.Module: what is frozen stays out of checkpoints
        self.unet, self.slot_tokens = pipeline.unet, pipeline.slot_tokens
        self.train_what, self.frozen_bf16 = train, frozen_bf16
        # small files and checkpoints lack what is frozen, so they name it
        self.base = None if train == "all" else fingerprint(self.unet, dtype=torch.float16)
        choose_trained(self.unet, train, rank, frozen_bf16)
        self.unet.train()  # as read from a folder it is not, and Lightning leaves that alone
        if gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        if channels_last:
            self.unet.to(memory_format=torch.channels_last)
        self.learning_rate, self.weight_decay, self.warmup_steps = learning_rate, weight_decay, warmup_steps
        self.decay_from, self.min_snr = decay_from, min_snr
        self.kind = pd.check_scheduler(pipeline.scheduler)
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
        if self.frozen_bf16 and self.trainer.precision != "bf16-mixed":
            raise Mismatch(
                f"frozen_bf16 needs trainer.precision bf16-mixed, not {self.trainer.precision}: change that, or set "
                "model.init_args.frozen_bf16 false"
            )
        if self.pipe.config.unconditional_on == "targets" and getattr(self.trainer.strategy, "zero_stage_3", False):
            raise Mismatch(
                "unconditional_on: targets runs a pass for each example without anything given, and ZeRO-3 needs as "
                "many passes on every device: take stage 2, or unconditional_on: canvas"
            )
        latents = getattr(self.trainer.datamodule, "latents", None)  # type: ignore[attr-defined]
        if latents is not None and read_encoding(Path(latents))["vae"] != fingerprint(self.pipe.vae):
            raise RecordError(f"{latents} was made by another VAE than this model's: encode the records with this one")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Checkpoints hold what is trained; the rest comes from where it came from."""
        kept = checkpoint.get("state_dict", {})
        for name in self._frozen():
            kept.pop(name, None)
        checkpoint["base"] = self.base

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the rates of the config, if the checkpoint fits this module at all."""
        self.check(checkpoint)
        follow_config(checkpoint, self, self.learning_rate, self.weight_decay, self.warmup_steps, self.decay_from)

    def check(self, checkpoint: Mapping[str, Any]) -> None:
        """Refuse a checkpoint of something else.

        Raises:
            Mismatch: trained from another base, with another ``train`` or ``rank``, or another network.
        """
        made_from = checkpoint.get("base")
        if made_from is not None and self.base is not None and made_from != self.base:
            raise Mismatch(
                f"the checkpoint's training began with other weights (base {made_from}, here {self.base}): set the "
                "pipeline's base to the very SDXL it began with"
            )
        frozen = self._frozen()
        own = {name: v.shape for name, v in self.state_dict().items() if name not in frozen}
        theirs = {name: v.shape for name, v in checkpoint["state_dict"].items()}
        differ = [name for name in {**own, **theirs} if own.get(name) != theirs.get(name)]
        if differ:
            here, there = (list(x.get(differ[0], ())) or "not trained" for x in (own, theirs))
            raise Mismatch(
                f"the checkpoint does not fit this model: {len(differ)} weights differ, like {differ[0]}: there "
                f"{there}, here {here}. Go on with the train, rank and network it was made with; config.yaml has them"
            )

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """What a checkpoint holds, over the frozen weights as they are; anything missing or too much is an error."""
        return super().load_state_dict({**self._frozen(), **state_dict}, strict, assign)

    def _frozen(self) -> dict[str, Tensor]:
        return {name: p for name, p in self.named_parameters() if not p.requires_grad}

    def training_step(self, batch: Example, batch_idx: int) -> Tensor:
        """The mean of :meth:`losses`, logged by task."""
        losses = self.losses(batch)
        size = len(losses)
        self.log("loss", losses.mean(), prog_bar=True, batch_size=size)
        by_kind = defaultdict(list)
        for layout, value in zip(batch.layout, losses.detach(), strict=True):
            by_kind[f"loss/{layout.kind}"].append(value)
        self.log_dict({name: torch.stack(v).mean() for name, v in by_kind.items()}, batch_size=size)
        return losses.mean()

    def losses(self, batch: Example) -> Tensor:
        """Each example's loss, (B,): noise the targets, predict, compare on the targets."""
        z0, noise, guide = self.prepare(batch)
        t = torch.tensor(batch.t, device=self.device)
        alpha_bar = self.alphas_cumprod[t]
        z_t = torch.where(guide.target, pd.add_noise(z0, noise, alpha_bar, guide.target), guide.known)
        prediction = self.predict(z_t, t, guide, batch)
        weight = None if self.min_snr is None else pd.min_snr_weight(alpha_bar, self.min_snr, self.kind)
        goal = pd.training_goal(z0, noise, alpha_bar, self.kind)
        return pd.loss(prediction, goal, guide.target, weight)

    def predict(self, z_t: Tensor, t: Tensor, guide: Guide, batch: Example) -> Tensor:
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

    def prepare(self, batch: Example) -> tuple[Tensor, Tensor, Guide]:
        """Clean latents of the whole canvas (B, C, h, w), noise for them (the same), and what the network is given.

        Targets are samples of the VAE's posterior, given components its mode; each picture is encoded alone.
        """
        canvas, vae = self.pipe.canvas, self.pipe.vae
        draws = draw_noise(batch.generator, (2, vae.config.latent_channels, *canvas.size)).to(self.device)
        latents, noise = {}, canvas.split(draws[:, 1])

        def look(pixels: Tensor, noise: Tensor | None) -> Tensor:
            if batch.encoded:
                return latents_from(pixels, noise, vae.config.scaling_factor)
            moments = posterior(vae.to(pixels.device), pixels)
            return latents_from(moments, noise, vae.config.scaling_factor)

        with torch.no_grad():
            for slot, pixels in batch.pixels.items():
                states = [layout.states.get(slot, State.ABSENT) for layout in batch.layout]
                z = torch.zeros_like(noise[slot])
                for state in (State.TARGET, State.GIVEN):
                    rows = [i for i, s in enumerate(states) if s is state]
                    if rows:
                        z[rows] = look(pixels[rows], noise[slot][rows] if state is State.TARGET else None)
                latents[slot] = z
            pose = torch.zeros_like(latents["person"])
            posed = [i for i, has in enumerate(batch.has_pose) if has]
            if posed:
                pose[posed] = look(batch.pose[posed], None)
        guide = self.pipe.guide(batch.layout, latents, pose, torch.tensor(batch.has_pose), self.device)
        guide = choose(torch.tensor(batch.unconditional), self.pipe.unconditional(guide), guide)
        return canvas.join(latents), draws[:, 0], guide

    def configure_optimizers(self) -> Any:
        """AdamW with linear warm-up and a linear fall at the end."""
        return adamw(self, self.learning_rate, self.weight_decay, self.warmup_steps, self.decay_from)

    def save(self, folder: Path, whole: bool = False) -> None:
        """Write what was trained.

        Args:
            folder: for "all" a folder that ``OMFAPipeline.from_pretrained`` reads; else small files that
                ``omfa.sdxl.load_small`` lays onto the base.
            whole: a whole pipeline in any case; LoRA is merged for good, so training can't go on with this object.
        """
        pipe = self.pipe
        if pipe.slot_tokens is None and pipe.prompts is None and pipe.texts.loaded:
            encoders = pipe.text_encoder, pipe.text_encoder_2
            made = Prompts.of(phrases(), pipe.texts, fingerprint(*encoders), pipe.text_encoder.device)
            pipe.register_modules(prompts=made)
        if self.train_what == "all" or whole:
            if self.train_what == "lora":
                merge_lora(self.unet)
            pipe.save_pretrained(folder)
        else:
            canvas = {name: pipe.config[name] for name in ("person_size", "garment_slots", "unconditional_on")}
            save_tuned(self.unet, self.train_what, folder, {**pipe.origin, **canvas, "fingerprint": self.base})
            if pipe.prompts is not None:
                pipe.prompts.save_pretrained(folder / "prompts")
        forget_origins(folder)


def forget_origins(folder: Path) -> None:
    """Take out of a saved model's config files where its parts were read from."""
    for path in folder.rglob("*.json"):
        values = json.loads(path.read_text())
        if isinstance(values, dict) and values.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


class VAEModule(pl.LightningModule):
    """Trains the compact model's own VAE: absolute error of pixels and of their differences, and a little KL.

    Args:
        vae: arguments of diffusers' ``AutoencoderKL``, such as :func:`start_as_averages` can use.
        learning_rate: AdamW's, after warm-up.
        kl_weight: of the KL divergence per latent number.
        edge_weight: of the error of horizontal and vertical differences; keeps stripes and outlines sharp.
        warmup_steps, decay_from: as in :class:`OMFAModule`.
        channels_last: memory format.
    """

    latent_mean: Tensor
    latent_products: Tensor

    def __init__(
        self,
        vae: dict[str, Any],
        learning_rate: float = 1e-3,
        kl_weight: float = 1e-5,
        edge_weight: float = 1.0,
        warmup_steps: int = 100,
        decay_from: float = 0.5,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.vae = start_as_averages(AutoencoderKL(**vae))
        if channels_last:
            self.vae.to(memory_format=torch.channels_last)
        self.learning_rate, self.kl_weight, self.edge_weight = learning_rate, kl_weight, edge_weight
        self.warmup_steps, self.decay_from = warmup_steps, decay_from
        channels = self.vae.config.latent_channels
        self.register_buffer("latent_mean", torch.zeros(channels))  # running means of latents and of their products
        self.register_buffer("latent_products", torch.eye(channels))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """One step on pictures (B, 3, H, W) in [-1, 1]."""
        posterior = self.vae.encode(batch).latent_dist
        error = (
            self.vae.decode(posterior.sample(seeded("posterior", self.global_step, batch_idx, self.global_rank))).sample
            - batch
        ).float()
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        self.measure(posterior.mean.detach().float())
        self.log("psnr", 10 * torch.log10(4 / error.detach().square().mean()), prog_bar=True, batch_size=len(batch))
        self.log("kl", kl.detach(), batch_size=len(batch))
        return error.abs().mean() + self.edge_weight * edges + self.kl_weight * kl

    def configure_optimizers(self) -> Any:
        """AdamW with linear warm-up and a linear fall at the end."""
        return adamw(self, self.learning_rate, 0.0, self.warmup_steps, self.decay_from)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the rates of the config."""
        follow_config(checkpoint, self, self.learning_rate, 0.0, self.warmup_steps, self.decay_from)

    def measure(self, latents: Tensor) -> None:
        """Follow mean and covariance of latents (B, C, h, w)."""
        cells = rearrange(latents, "b c h w -> (b h w) c")
        self.latent_mean.lerp_(cells.mean(0), 0.01)
        self.latent_products.lerp_(cells.T @ cells / len(cells), 0.01)

    def save(self, folder: Path) -> None:
        """Write a plain diffusers folder, its latents evened out and, by ``scaling_factor``, of variance 1."""
        vae = deepcopy(self.vae)  # training goes on with its own
        even_out(vae, self.latent_mean, self.latent_products - torch.outer(self.latent_mean, self.latent_mean))
        vae.save_pretrained(folder)
        forget_origins(folder)


@torch.no_grad()
def even_out(vae: AutoencoderKL, mean: Tensor, covariance: Tensor) -> None:
    """Give a VAE latents of mean 0 whose directions differ less; ``post_quant_conv`` undoes it: the pictures stay.

    Noise hides what is small first and squared errors overlook it. In latents as they come brightness has ten times the
    variance of hue, so a network learns hues late and takes noise for them. Here each eigenvalue of the covariance
    becomes its square root: half-way to white latents, which would make as much of the finest detail as of everything
    else. Log-variances are turned nearly: weighted means of the old ones, plus the log of the stretch.

    Args:
        vae: changed in place, its ``scaling_factor`` too.
        mean: of its latents, before ``scaling_factor``, (C,).
        covariance: (C, C).

    Raises:
        ValueError: a VAE without quant convolutions, which are what changes.
    """
    if vae.quant_conv is None or vae.post_quant_conv is None:
        raise ValueError("the VAE needs use_quant_conv and use_post_quant_conv")
    into, out, c = vae.quant_conv, vae.post_quant_conv, len(mean)
    mean, (values, vectors) = mean.double(), torch.linalg.eigh(covariance.double())
    values = values.clamp(min=values.max() * 1e-6)
    turn, back = (vectors @ torch.diag(values**power) @ vectors.T for power in (-0.25, 0.25))
    stretch = turn.square()
    both = torch.block_diag(turn, stretch / stretch.sum(1, keepdim=True))
    weight, bias = into.weight.double(), into.bias.double()
    into.weight.copy_(torch.einsum("ij,jkhw->ikhw", both, weight))
    into.bias.copy_(both @ (bias - F.pad(mean, (0, c))) + F.pad(stretch.sum(1).log(), (c, 0)))
    weight, bias = out.weight.double(), out.bias.double()
    out.bias.copy_(bias + weight[..., 0, 0] @ mean)
    out.weight.copy_(torch.einsum("ijhw,jk->ikhw", weight, back))
    vae.register_to_config(scaling_factor=float(values.sqrt().mean().rsqrt()))


@torch.no_grad()
def start_as_averages(vae: AutoencoderKL) -> AutoencoderKL:
    """Make a fresh VAE a codec that keeps the mean colour of every f x f square and blurs it back; training adds to it.

    From random weights a small VAE learns brightness first and colour hours later; from here colours are right at step
    0. The trunk (everything but the residual branches, which start at 0) carries r, g, b, their negatives and a pair of
    constants: x and -x keep the last norm's mean at 0 and make ``silu(x) - silu(-x) = x`` linear, the constants keep
    its scale the same for every picture. All other channels start at random.

    Args:
        vae: of at least 8 channels everywhere, 3 or more latent channels, ``norm_num_groups=1``, with quant
            convolutions; changed in place.

    Raises:
        ValueError: another VAE.
    """
    config = vae.config
    quant = vae.quant_conv is not None and vae.post_quant_conv is not None
    if min(config.block_out_channels) < 8 or config.latent_channels < 3 or config.norm_num_groups != 1 or not quant:
        raise ValueError(
            "the VAE needs 8 or more channels in every block, 3 or more latents, norm_num_groups 1, and both quant "
            "convolutions"
        )
    encoder, decoder, trunk, level = vae.encoder, vae.decoder, 8, 8.0
    for part in (encoder, decoder):
        for name, module in part.named_modules():
            if name.endswith("conv_shortcut") or name.endswith(("downsamplers.0.conv", "upsamplers.0.conv")):
                module.weight[:trunk], module.bias[:trunk], module.weight[:, 6:trunk] = 0, 0, 0
                for c in range(trunk):
                    module.weight[c, c] = _kernel(name, constant=c >= 6)
            elif name.endswith("conv2"):  # of a residual branch
                module.weight.zero_()
                module.bias.zero_()
        conv_in, conv_out = part.conv_in, part.conv_out
        conv_in.weight[:trunk], conv_in.bias[:trunk] = 0, 0
        for c in range(3):
            conv_in.weight[c, c, 1, 1], conv_in.weight[3 + c, c, 1, 1] = 1, -1
        conv_in.bias[6], conv_in.bias[7] = level, -level
        scale = level * (2 / conv_out.in_channels) ** 0.5  # what the last norm divides by, nearly
        rows = slice(0, 3) if part is encoder else slice(None)
        conv_out.weight[rows], conv_out.bias[rows] = 0, 0
        for c in range(3):
            conv_out.weight[c, c, 1, 1], conv_out.weight[c, 3 + c, 1, 1] = scale, -scale
    encoder.conv_out.weight[config.latent_channels :] = 0
    encoder.conv_out.bias[config.latent_channels :] = -6  # log-variance: little noise, to begin with
    for conv in (vae.quant_conv, vae.post_quant_conv):
        conv.weight.copy_(torch.eye(conv.weight.shape[0])[..., None, None])
        conv.bias.zero_()
    return vae


def _kernel(name: str, constant: bool) -> Tensor:
    """Trunk kernel of a layer: identity, the mean of 2 x 2 (down) or a smooth interpolation (up)."""
    if name.endswith("conv_shortcut"):
        return torch.ones(1, 1)
    kernel = torch.zeros(3, 3)
    if constant:  # a constant stays one at the borders too
        kernel[0 if "down" in name else 1, 0 if "down" in name else 1] = 1
    elif "down" in name:
        kernel[:2, :2] = 0.25
    else:
        taps = torch.tensor([0.25, 0.5, 0.25])
        kernel = taps[:, None] * taps
    return kernel


def adamw(
    module: pl.LightningModule, rate: float, weight_decay: float, warmup: int, decay_from: float
) -> dict[str, Any]:
    """AdamW over what is trained, its rate stepped by :func:`rate_at`, as Lightning wants it."""
    trained = [p for p in module.parameters() if p.requires_grad]
    fused = trained[0].is_cuda and module.trainer.precision != "16-mixed"  # fp16's scaler and clipping don't go with it
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=weight_decay, fused=fused or None)
    if fused:  # no scaler here, so Lightning may clip
        optimizer._step_supports_amp_scaling = False
    total = module.trainer.max_steps
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, total, warmup, decay_from))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def follow_config(
    checkpoint: dict[str, Any],
    module: pl.LightningModule,
    rate: float,
    weight_decay: float,
    warmup: int,
    decay_from: float,
) -> None:
    """Put the config's rates in place of a checkpoint's, before they are restored, and say what changes.

    Nothing changes, to the last bit, where the config is the one the checkpoint was made with.
    """
    (group,), (schedule,) = checkpoint["optimizer_states"][0]["param_groups"], checkpoint["lr_schedulers"]
    wanted = {"learning_rate": (group["initial_lr"], rate), "weight_decay": (group["weight_decay"], weight_decay)}
    changes = [f"{name} {old:g} -> {new:g}" for name, (old, new) in wanted.items() if old != new]
    if changes and module.trainer.is_global_zero:
        print(f"from step {checkpoint['global_step']} on: {', '.join(changes)}", flush=True)
    now = rate * rate_at(schedule["last_epoch"], module.trainer.max_steps, warmup, decay_from)
    group.update(lr=now, initial_lr=rate, weight_decay=weight_decay)
    schedule.update(base_lrs=[rate], _last_lr=[now])


def rate_at(step: int, total: int, warmup: int, decay_from: float) -> float:
    """Fraction of the learning rate: up over ``warmup`` steps, down to 0 from ``decay_from * total`` on."""
    rise = min(1.0, (step + 1) / (warmup + 1))
    if decay_from >= 1:
        return rise
    return rise * min(1.0, max(0.0, (total - step) / (total * (1 - decay_from))))
