"""OMFA's compact model in rows as graphs that :mod:`omfa.device` runs: garments put on in a photo.

``C`` latent channels, ``h w`` latents of a row, ``H D`` heads and their width, ``M`` tokens of the Memory of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from omfa import images
from omfa.backbone import encode
from omfa.canvas import PERSON, code_plane
from omfa.composer import KINDS, Composer, Given
from omfa.conditioning import CELLS
from omfa.files import write_json
from omfa.graphs.onnx_graph import Numbers, check_numbers, numbered, write_graph
from omfa.pipeline import OMFAPipeline

LARGE = (512, 384)


class _Encode(nn.Module):
    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pixels: Tensor) -> Tensor:
        return encode(self.vae, pixels)


class _Decode(nn.Module):
    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        """:func:`omfa.backbone.decode`, whose check for NaN no graph can hold."""
        return self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False)[0].clamp(-1, 1)


class _Kept:
    """Keeps keys and values of the layers that cross rows, in their order."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []

    def join(self, layer: str, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, None]:
        """As :meth:`omfa.rows.Memory.join`."""
        self.tensors += [keys, values]
        return keys, values, None


class _Given:
    """Hands them out again, behind a row's own."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = list(tensors)

    def join(self, layer: str, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, None]:
        """As :meth:`omfa.rows.Recall.join`."""
        k, v, *self.tensors = self.tensors
        return torch.cat([keys, k], 2), torch.cat([values, v], 2), None


class _Network(nn.Module):
    """The UNet on a row: z_t | mask | known | pose, with the row's token and its look."""

    def __init__(self, pipe: OMFAPipeline) -> None:
        super().__init__()
        self.unet = pipe.unet

    def predict(self, rows: Any, t: Tensor, planes: Sequence[Tensor], context: Tensor, look: Tensor) -> Tensor:
        """The prediction (1, C, h, w)."""
        return self.unet(
            torch.cat(list(planes), 1),
            t,
            encoder_hidden_states=context,
            class_labels=look,
            cross_attention_kwargs={"rows": rows},
            return_dict=False,
        )[0]


class _Remember(_Network):
    def forward(self, known: Tensor, pose: Tensor, context: Tensor, look: Tensor) -> tuple[Tensor, ...]:
        """Keys and values (1, H, h w, D) of a given row."""
        kept = _Kept()
        planes = known, torch.zeros_like(known[:, :1]), known, pose
        self.predict(kept, torch.zeros(1), planes, context, look)
        return tuple(kept.tensors)


class _Step(_Network):
    def forward(
        self, x: Tensor, t: Tensor, mask: Tensor, known: Tensor, pose: Tensor, context: Tensor, look: Tensor,
        memory: Sequence[Tensor],
    ) -> Tensor:  # fmt: skip
        """The prediction for a target row."""
        planes = x, mask.expand_as(known[:, :1]), known, pose
        return self.predict(_Given(memory), t, planes, context, look)


class _Compose(nn.Module):
    """What was decoded, the draft and the photo put together, as :func:`omfa.drafting.composed` does it."""

    def __init__(self, composer: Composer, size: Sequence[int]) -> None:
        super().__init__()
        self.composer, self.size = composer, tuple(size)

    def forward(
        self, decoded: Tensor, photo: Tensor, draft: Tensor, valid: Tensor, surface: Tensor, likeness: Tensor,
        where: Tensor,
    ) -> Tensor:  # fmt: skip
        """(1, 3, h, w) what was decoded, all else (1, 3 or 1, H, W), to (1, 3, H, W)."""
        known, there = valid > 0.5, torch.ones_like(valid)
        large, seen = torch.zeros_like(photo), torch.zeros_like(valid)
        if self.composer.sees_decoded(PERSON, keep=True):
            large, seen = images.enlarged(decoded, self.size), there
        layers = Given(torch.where(known, draft, 0.0), known.to(draft), surface, large, seen, photo, there, likeness)
        made = self.composer(layers, torch.tensor([KINDS.index(PERSON)])).picture.clamp(-1, 1)
        return torch.lerp(photo, made, where)


@torch.no_grad()
def write_graphs(pipe: OMFAPipeline, folder: Path, numbers: Numbers = "float32", large: Sequence[int] = LARGE) -> None:
    """Write everything into a folder.

    Args:
        pipe: a compact model in rows that knows portraits, float32, on the CPU.
        folder: where to.
        numbers: what to store weights in.
        large: (H, W) of the pictures that a composer puts together.

    Raises:
        ValueError: another kind of model, or numbers that are not known.
    """
    check_numbers(numbers)
    config, scheduler = pipe.config, pipe.scheduler
    if pipe.slot_tokens is None or config.join != "rows" or not config.portraits:
        raise ValueError("graphs are for compact models in rows that know portraits (join: rows, portraits: true)")
    told = scheduler.config
    if not isinstance(scheduler, DDIMScheduler) or told.prediction_type != "v_prediction":
        raise ValueError(f"graphs are for DDIM and v-prediction; this model has {type(scheduler).__name__}")
    if told.timestep_spacing != "trailing" or not told.set_alpha_to_one or pipe.unet.config.class_embed_type is None:
        raise ValueError("graphs are for trailing steps that end in the picture, and for a UNet that takes a look")
    height, width = config.person_size
    channels, rows = pipe.vae.config.latent_channels, pipe.canvas.person
    slots = [slot.name for slot in pipe.canvas.slots]
    z, token = torch.randn(1, channels, *rows), pipe.slot_tokens(torch.zeros(1, 1, dtype=torch.long))
    look = torch.zeros(1, len(slots) * CELLS[0] * CELLS[1] * channels)
    arrays = {"tokens": pipe.slot_tokens.table.weight, "alphas": scheduler.alphas_cumprod}
    for i, slot in enumerate(slots):
        if slot.startswith("garment"):
            arrays[f"code_{slot}"] = code_plane(i / len(slots), *rows, channels)[None]
    kept: dict[str, Any] = {name: a.detach().numpy() for name, a in arrays.items()}
    np.savez(folder / "arrays.npz", **kept)

    def write(name: str, module: nn.Module, inputs: dict[str, Any], outputs: list[str], **options: Any) -> None:
        write_graph(module, inputs, outputs, folder / f"{name}.onnx", numbers, **options)

    row = {"known": z, "pose": z, "context": token, "look": look}
    remember = _Remember(pipe)
    memory = remember(**row)
    write("encode", _Encode(pipe.vae), {"pixels": torch.zeros(1, 3, height, width)}, ["latents"])
    write("remember", remember, row, numbered("memory", len(memory)))
    asked = {"x": z, "t": torch.tensor([500.0]), "mask": torch.ones(1), **row, "memory": memory}
    write("step", _Step(pipe), asked, ["prediction"], dynamic={"memory": 2})
    write("decode", _Decode(pipe.vae), {"latents": z}, ["pixels"])
    if pipe.composer is not None:
        plain, one = torch.zeros(1, 3, *large), torch.zeros(1, 1, *large)
        asked = {"decoded": torch.zeros(1, 3, height, width), "photo": plain, "draft": plain}
        asked |= {"valid": one, "surface": plain, "likeness": plain, "where": one}
        write("compose", _Compose(pipe.composer, large), asked, ["picture"])
    about = {
        "kind": "rows", "numbers": numbers, "size": [height, width], "steps": config.default_steps,
        "guidance": config.default_guidance, "trained_steps": len(scheduler.alphas_cumprod), "slots": slots,
        "garment_slots": config.garment_slots, "kinds": list(pipe.slot_tokens.kinds), "cells": list(CELLS),
        "drafts": config.draft == "surface", "composes": pipe.composer is not None, "large_size": list(large),
    }  # fmt: skip
    write_json(folder / "device.json", about)
