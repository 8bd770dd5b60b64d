"""A whole LaDI-VTON of a few thousand weights: real classes, real wiring."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

from omfa.baselines.ladi_vton.emasc import EMASC
from omfa.baselines.ladi_vton.inversion import InversionAdapter
from omfa.baselines.ladi_vton.pipeline import LaDIVTONPipeline
from omfa.baselines.ladi_vton.refinement import Refinement
from omfa.baselines.ladi_vton.warping import TPSWarping
from tests.baselines.ladi_vton.golden import BLOCKS, tiny_vae
from tests.conftest import make_tokenizer

SIZE = (128, 96)
UNET = {
    "sample_size": 8,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [16, 32],
    "layers_per_block": 1,
    "attention_head_dim": [2, 4],
    "cross_attention_dim": 32,
    "norm_num_groups": 4,
    "use_linear_projection": True,
}


def tiny_unet(channels: int = 31) -> UNet2DConditionModel:
    return UNet2DConditionModel(**UNET, in_channels=channels)


def scheduler() -> DDIMScheduler:
    """Stable Diffusion 2's for inpainting."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def tiny_pipeline(folder: Path, unet_channels: int = 31, with_emasc: bool = True) -> LaDIVTONPipeline:
    torch.manual_seed(0)
    tokenizer = make_tokenizer(folder / "letters")
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, image_size=28, patch_size=14
    )
    pipe = LaDIVTONPipeline(
        vae=tiny_vae(),
        unet=tiny_unet(unet_channels),
        scheduler=scheduler(),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        vision_encoder=CLIPVisionModel(vision),
        inversion_adapter=InversionAdapter(32, 48, 4, 64, 4 * 32, words=4),
        tps=TPSWarping(SIZE, width=4),
        refinement=Refinement(width=4),
        emasc=EMASC(BLOCKS) if with_emasc else None,
        size=SIZE,
    )
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    return pipe


def person(height: int = 256, width: int = 192) -> tuple[Image.Image, np.ndarray, np.ndarray]:
    """A drawn person: photo, ATR labels, 18 keypoints in pixels."""
    labels = np.zeros((256, 192), np.uint8)
    labels[20:50, 80:112] = 11
    labels[50:140, 66:126] = 4
    labels[60:150, 46:66], labels[60:150, 126:146] = 15, 14
    labels[140:230, 70:122] = 6
    labels[230:250, 66:126] = 9
    colours = np.random.default_rng(0).integers(0, 255, (18, 3), np.uint8)
    points = np.zeros((18, 3))
    for joint, at in {0: (96, 35), 1: (96, 52), 2: (70, 58), 3: (56, 100), 4: (56, 140)}.items():
        points[joint] = *at, 1
    for joint, at in {5: (122, 58), 6: (136, 100), 7: (136, 140), 8: (80, 142), 11: (112, 142)}.items():
        points[joint] = *at, 1
    photo = Image.fromarray(colours[labels]).resize((width, height))
    points[:, :2] *= [width / 192, height / 256]
    whole = Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST)
    return photo, np.asarray(whole), points


def garment() -> Image.Image:
    pixels = np.full((200, 150, 3), 255, np.uint8)
    pixels[30:170, 30:120] = (200, 30, 60)
    pixels[60:80, 30:120] = (20, 30, 200)
    return Image.fromarray(pixels)
