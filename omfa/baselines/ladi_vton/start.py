"""What training starts from: Stable Diffusion 2's parts with new ones of LaDI-VTON, or all of it new and small."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig, CLIPVisionModel

from omfa.baselines.ladi_vton.checkpoints import CONDITIONED, widen
from omfa.baselines.ladi_vton.emasc import EMASC
from omfa.baselines.ladi_vton.inversion import WORDS, InversionAdapter
from omfa.baselines.ladi_vton.masks import Rules
from omfa.baselines.ladi_vton.pipeline import LaDIVTONPipeline, base_parts, channels
from omfa.baselines.ladi_vton.refinement import Refinement
from omfa.baselines.ladi_vton.warping import TPSWarping
from omfa.partial_diffusion import ddim
from omfa.weights import read_part

LETTERS = [chr(c) for c in range(ord("!"), ord("~") + 1)]


def saved(folder: str, refined: bool = True) -> LaDIVTONPipeline:
    """What the stage before has left, for a config.

    Args:
        folder: that it wrote.
        refined: take the refinement; without it the garment stays as the spline laid it.
    """
    without: dict[str, Any] = {} if refined else {"refinement": None}
    return LaDIVTONPipeline.from_pretrained(folder, **without)


def fresh(
    base: str = "stabilityai/stable-diffusion-2-inpainting",
    vision: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    rules: Rules = "vitonhd",
    size: Sequence[int] = (512, 384),
) -> LaDIVTONPipeline:
    """The published starting point: Stable Diffusion 2 for inpainting, widened; LaDI-VTON's own parts new.

    Args:
        base, vision: folders or hub ids.
        rules: of the data set.
        size: (height, width) of the pictures.

    Raises:
        ValueError: a model that can't be loaded.
    """
    parts = base_parts(base, vision)
    unet = read_part(UNet2DConditionModel, base, subfolder="unet")
    eyes, width = parts["vision_encoder"].config, parts["text_encoder"].config.hidden_size
    adapter = InversionAdapter(
        input_dim=eyes.hidden_size,
        intermediate_size=eyes.intermediate_size,
        heads=eyes.num_attention_heads,
        output_dim=WORDS * width,
        hidden_act=eyes.hidden_act,
    )
    return LaDIVTONPipeline(
        **parts,
        unet=widen(unet, CONDITIONED[0]),
        inversion_adapter=adapter,
        tps=TPSWarping(),
        refinement=Refinement(),
        emasc=EMASC(parts["vae"].config.block_out_channels),
        size=list(size),
        rules=rules,
    )


def compact(
    vae: str | dict[str, Any],
    unet: dict[str, Any],
    size: Sequence[int] = (256, 192),
    width: int = 64,
    words: int = WORDS,
    warp_width: int = 32,
    refine_width: int = 16,
    rules: Rules = "dresscode",
) -> LaDIVTONPipeline:
    """All of it new and small: no CLIP, so the encoders are trained along (``train_encoders``).

    Args:
        vae: folder of a trained AutoencoderKL, or the arguments of a new one.
        unet: arguments of :class:`UNet2DConditionModel`, whose channels and context's width are filled in.
        size: (height, width) of the pictures, multiples of 16 for the spline.
        width: of the text and the vision model.
        words: that a garment becomes.
        warp_width, refine_width: channels of the first layers of spline and refinement, 64 as published.
        rules: whose masks.

    Raises:
        ValueError: sizes that don't fit.
    """
    codec = read_part(AutoencoderKL, vae) if isinstance(vae, str) else AutoencoderKL(**vae)
    latents = codec.config.latent_channels
    network = UNet2DConditionModel(
        **unet, in_channels=channels(latents)[0], out_channels=latents, cross_attention_dim=width
    )
    tokenizer = letters()
    layers = {"hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": 4, "num_hidden_layers": 2}
    text = CLIPTextConfig(
        **layers,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LaDIVTONPipeline(
        vae=codec,
        unet=network,
        scheduler=ddim(  # published: of the noise, whose errors after a short training fill pictures with noise
            prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        vision_encoder=CLIPVisionModel(CLIPVisionConfig(**layers, image_size=64, patch_size=8)),
        inversion_adapter=InversionAdapter(width, 2 * width, 4, 4 * width, words * width, words, dropout=0.0),
        tps=TPSWarping(size, width=warp_width),
        refinement=Refinement(width=refine_width),
        emasc=EMASC(codec.config.block_out_channels),
        size=list(size),
        rules=rules,
    )


def letters() -> CLIPTokenizer:
    """A tokenizer of CLIP's kind that knows single letters: prompts of this method fit its 77 places."""
    names = [*LETTERS, *(x + "</w>" for x in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
        Path(folder, "merges.txt").write_text("#version: 0.2\n")
        return cast(CLIPTokenizer, CLIPTokenizer.from_pretrained(folder, model_max_length=77))
