"""Which weights of the UNet are trained, and small files of those that are.

``attention`` trains every self- and cross-attention, ``lora`` adds low-rank matrices to their projections (Hu et al.
2021, arXiv 2106.09685; by peft). Both train ``conv_in`` whole, for the canvas's new channels start at zero.

A small folder holds ``tuned.json``, ``conv_in.safetensors`` and either ``pytorch_lora_weights.safetensors`` (diffusers'
``load_lora_weights`` reads it) or ``attention.safetensors`` (keys of the UNet's state dict).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders import StableDiffusionXLLoraLoaderMixin
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.utils import is_peft_available
from safetensors import safe_open
from safetensors.torch import save_file

from omfa.backbone import fingerprint
from omfa.files import read_text
from omfa.weights import read_state

Train = Literal["all", "attention", "lora"]
TUNED, LORA, ATTENTION, CONV_IN = (
    *("tuned.json", "pytorch_lora_weights.safetensors", "attention.safetensors", "conv_in.safetensors"),
)
BUILT = {  # how a pipeline is built beyond its canvas, and what that was before tuned.json said it
    "unconditional_on": "canvas", "join": "canvas", "draft": "none", "pose_style": "parts_blend",
    "portraits": False, "accessories": []
}  # fmt: skip
LATER = {**BUILT, "fingerprint": None, "few_steps": None}
ADAPTED = ("to_q", "to_k", "to_v", "to_out.0")


class Mismatch(ValueError):
    """Weights, checkpoints and settings that don't go together; the message says what would."""


def choose_trained(unet: UNet2DConditionModel, train: Train, rank: int = 16, frozen_bf16: bool = False) -> None:
    """Mark what is trained by ``requires_grad``; add LoRA matrices where asked (their product is zero at first).

    Args:
        unet: a widened UNet, float32; changed in place.
        train: "all", "attention" or "lora".
        rank: of the LoRA matrices.
        frozen_bf16: keep what is not trained in bfloat16; needs autocast to run.

    Raises:
        ValueError: "lora" and peft is not installed, or a rank below 1.
    """
    unet.requires_grad_(train == "all")
    if train == "lora":
        _add_lora(unet, rank)
    for name, p in unet.named_parameters():
        if name.startswith("conv_in.") or (train == "attention" and (".attn1." in name or ".attn2." in name)):
            p.requires_grad_(True)
        elif frozen_bf16 and not p.requires_grad:
            p.data = p.data.to(torch.bfloat16)


def _add_lora(unet: UNet2DConditionModel, rank: int) -> None:
    if rank < 1:
        raise ValueError(f"LoRA rank {rank} must be 1 or more")
    if not is_peft_available():
        raise ValueError("LoRA needs peft: pip install 'omfa[lora]'")
    from peft import LoraConfig

    # alpha = rank: the matrices' product is added as it is, and the learning rate means the same at every rank
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(ADAPTED)))


def save_tuned(unet: UNet2DConditionModel, train: Train, folder: Path, about: Mapping[str, Any]) -> None:
    """Write a small folder; ``about`` goes into ``tuned.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().cpu().contiguous() for k, v in unet.named_parameters() if v.requires_grad}
    conv_in = {k: v for k, v in state.items() if k.startswith("conv_in.")}
    save_file(conv_in, folder / CONV_IN, {"format": "pt"})
    if train == "lora":
        from peft.utils import get_peft_model_state_dict

        layers = {k: v.detach().cpu() for k, v in get_peft_model_state_dict(unet).items()}
        config = unet.peft_config["default"]
        StableDiffusionXLLoraLoaderMixin.save_lora_weights(
            folder, layers, weight_name=LORA, unet_lora_adapter_metadata=config.to_dict()
        )
    else:
        save_file({k: v for k, v in state.items() if k not in conv_in}, folder / ATTENTION, {"format": "pt"})
    (folder / TUNED).write_text(json.dumps({"version": 1, "train": train, **about}, indent=2) + "\n")


def read_tuned(folder: Path) -> dict[str, Any]:
    """``tuned.json`` of a small folder; ``fingerprint`` is that of the widened base, or None; ``few_steps`` is how a
    distilled one is sampled, else None.

    Raises:
        ValueError: no such folder.
    """
    try:
        tuned = json.loads(read_text(folder / TUNED))
        needed = {k: tuned[k] for k in ("train", "base", "vae", "person_size", "garment_slots")}
        return needed | {name: tuned.get(name, first) for name, first in LATER.items()}
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"{folder} holds no small weights (no {TUNED}): give what a LoRA or attention-only run wrote; a whole "
            "model is read by OMFAPipeline.from_pretrained"
        ) from None


def load_tuned(unet: UNet2DConditionModel, folder: Path) -> None:
    """Lay a small folder's weights onto the widened UNet they were trained from, in place.

    Raises:
        ValueError: files that are missing or don't fit this UNet, or were trained from another one.
    """
    tuned = read_tuned(folder)
    train, made_from = tuned["train"], tuned["fingerprint"]
    if made_from is not None and made_from != (given := fingerprint(unet, dtype=torch.float16)):
        raise Mismatch(
            f"{folder} was trained from other weights than these (base {made_from}, given {given}): give base= the "
            f"very SDXL it began with{'' if tuned['base'] is None else ', ' + tuned['base']}"
        )
    names = [name for name, _ in unet.named_parameters()]
    conv_in = read_state(folder / CONV_IN, [n for n in names if n.startswith("conv_in.")])
    if train == "lora":
        adapted = [n for n, _ in unet.named_modules() if n.endswith(tuple(f".{a}" for a in ADAPTED))]
        layers = read_state(folder / LORA, [f"unet.{n}.lora_{side}.weight" for n in adapted for side in "AB"])
    else:
        attention = read_state(folder / ATTENTION, [n for n in names if ".attn1." in n or ".attn2." in n])
    try:
        unet.load_state_dict(conv_in, strict=False)
        if train == "lora":
            unet.load_lora_adapter(layers, prefix="unet", metadata=_adapter(folder / LORA))
        else:
            unet.load_state_dict(attention, strict=False)
    except (OSError, RuntimeError, KeyError) as e:
        raise ValueError(
            f"{folder} does not fit this UNet: {str(e).splitlines()[0]}; give the base it began with"
        ) from e


def _adapter(path: Path) -> dict[str, Any] | None:
    """Peft's settings, as diffusers keeps them beside the matrices; None where they are not kept."""
    with safe_open(path, "pt") as file:
        said = (file.metadata() or {}).get(LORA_ADAPTER_METADATA_KEY)
    settings: dict[str, Any] | None = None if said is None else json.loads(said)
    return settings


def merge_lora(unet: UNet2DConditionModel) -> None:
    """Add the LoRA products to the weights they adapt, in float32, and forget the matrices; a plain UNet is left."""
    dtype = unet.dtype
    unet.float().fuse_lora(safe_fusing=True)
    unet.unload_lora()
    if dtype != torch.float32:
        unet.to(dtype)
