"""The compact model: a small UNet with slot tokens, trained from nothing, small enough to ship."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel

from omfa.backbone import input_channels
from omfa.canvas import PORTRAIT
from omfa.conditioning import KINDS, SlotTokens, look_size
from omfa.partial_diffusion import ddim
from omfa.pipeline import OMFAPipeline
from omfa.sampling import GUIDANCE, STEPS
from omfa.weights import read_part


def compact_pipeline(
    vae: str | dict[str, Any],
    unet: str | dict[str, Any],
    person_size: Sequence[int] = (256, 192),
    garment_slots: int = 2,
    token_dim: int = 256,
    unconditional_on: str = "canvas",
    default_steps: int = STEPS,
    default_guidance: float = GUIDANCE,
    join: str = "canvas",
    draft: str = "none",
    pose_style: str = "parts_blend",
    portraits: bool = False,
    accessories: Sequence[str] = (),
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
        unconditional_on, default_steps, default_guidance, join, draft, pose_style, portraits,
            accessories: see :class:`OMFAPipeline`. A model that is trained at few ``timesteps``
            (:class:`omfa.training.examples.RecordsDataset`) is to be sampled in as few steps. ``pose_style`` is
            "parts_blend" where nothing is said, as old models and the paper's are; recipes of new ones say "surface".

    Raises:
        ValueError: no VAE or model there, or sizes that don't fit.
    """
    for name, arguments in (("vae", vae), ("unet", unet)):
        if isinstance(arguments, dict):
            _check_sizes(name, arguments)
    codec = read_part(AutoencoderKL, _folder(vae)) if isinstance(vae, str) else AutoencoderKL(**vae)
    channels = codec.config.latent_channels
    kinds = (*KINDS, *([PORTRAIT] if portraits else []), *(f"garment:{a}" for a in accessories))
    if isinstance(unet, str):
        network = read_part(UNet2DConditionModel, _folder(f"{unet}/unet"))
        tokens = read_part(SlotTokens, _folder(f"{unet}/slot_tokens"))
        if new := [kind for kind in kinds if kind not in tokens.kinds]:
            tokens = tokens.widened((*tokens.kinds, *new))
    else:
        network = UNet2DConditionModel(
            **unet,
            in_channels=input_channels(channels),
            out_channels=channels,
            cross_attention_dim=token_dim,
            class_embed_type="projection",
            projection_class_embeddings_input_dim=look_size(garment_slots + 2, channels),
        )
        tokens = SlotTokens(token_dim, list(kinds))
    scheduler = ddim(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        set_alpha_to_one=True,
    )
    sizes: dict[str, Any] = {
        "person_size": list(person_size),
        "garment_slots": garment_slots,
        "unconditional_on": unconditional_on,
        "default_steps": default_steps,
        "default_guidance": default_guidance,
        "join": join,
        "draft": draft,
        "pose_style": pose_style,
        "portraits": portraits,
        "accessories": list(accessories),
    }
    pipe = OMFAPipeline(codec, network, scheduler, tokens, **sizes)
    pipe.vae_is_new = not isinstance(vae, str)
    return pipe


def _check_sizes(name: str, arguments: Any) -> None:
    """Refuse a network that no machine holds, before it takes this one's memory."""
    most = {"layers_per_block": 64, "transformer_layers_per_block": 64}
    for key, value in arguments.items():
        numbers = value if isinstance(value, list | tuple) else [value]
        limit = most.get(key, 65536)
        if any(isinstance(n, int | float) and not abs(n) <= limit for n in numbers) or len(numbers) > 64:
            raise ValueError(
                f"{name}: {key} {str(value)[:80]} is out of range: numbers up to {limit}, at most 64 of them"
            )


def _folder(path: str) -> str:
    if not Path(path, "config.json").is_file():
        raise ValueError(f"{path!r} holds no weights (no config.json); train them first, or give another folder")
    return path
