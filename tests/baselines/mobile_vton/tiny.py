"""A whole Mobile-VTON at tiny size: the real classes, random weights."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, Dinov2Config, Dinov2Model

from omfa.baselines.mobile_vton.decoder import SmallDecoder
from omfa.baselines.mobile_vton.folder import Parts
from omfa.baselines.mobile_vton.light_unet import LightUNet
from omfa.baselines.mobile_vton.prompts import TextEncoders
from tests.baselines.mobile_vton import golden
from tests.conftest import make_tokenizer

SIZE = (64, 32)
WIDTH = 40  # of contexts


def networks(seed: int = 0) -> tuple[LightUNet, LightUNet]:
    """TryonNet and GarmentNet for :data:`SIZE`."""
    torch.manual_seed(seed)
    about = golden.notes("mobile_pair")
    small = {"block_out_channels": [16, 32, 48], "attention_head_dim": [1, 2, 3], "norm_num_groups": 4}
    shape = {**small, "sample_size": 8, "width": SIZE[1]}
    tryon = {**about["tryonnet_config"], **shape, "height": 2 * SIZE[0], "in_channels": 8, "out_channels": 4}
    garment = {**about["garmentnet_config"], **shape, "height": SIZE[0], "in_channels": 4, "out_channels": 4}
    adapter = {**golden.ADAPTER, "in_width": 16}
    return LightUNet(**tryon, adapter=adapter), LightUNet(**garment)


def one_stage() -> tuple[LightUNet, LightUNet]:
    """The same with one stage, for what takes long by the number of weights and of their shapes."""
    tryon, garment = (dict(network.config) for network in networks())
    crossed = {"down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"]}
    attends = {"down_block_use_self_attention": True, "up_block_use_self_attention": True}
    one = {"block_out_channels": [16], "attention_head_dim": [1], "transformer_layers_per_block": 1}
    one |= {"time_embedding_dim": 16, **crossed, **attends}
    adapter = {**tryon["adapter"], "depth": 1, "width": 16, "heads": 2}
    return LightUNet.from_config({**tryon, **one, "adapter": adapter}), LightUNet.from_config({**garment, **one})


def parts(folder: Path, seed: int = 0, text_encoders: bool = True) -> Parts:
    """All parts; ``folder`` is for the tokenizer's files."""
    tryon, garment = networks(seed)
    vae = AutoencoderKL(
        block_out_channels=[8, 8, 8, 8],
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        latent_channels=4,
        norm_num_groups=4,
        layers_per_block=1,
        scaling_factor=1.5305,
        shift_factor=0.0609,
    )
    decoder = SmallDecoder(4, 3, block_out_channels=(8, 8, 8, 16), layers_per_blocks=(1, 1, 1, 1), norm_num_groups=4)
    texts = None
    if text_encoders:
        tokenizer = make_tokenizer(folder / "letters")
        ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        shared = {
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "projection_dim": 12,
            **ids,
        }
        encoders = [
            CLIPTextModelWithProjection(CLIPTextConfig(vocab_size=len(tokenizer), hidden_size=width, **shared))
            for width in (16, 24)
        ]
        texts = TextEncoders(encoders, [tokenizer, tokenizer])
    eye = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=224, patch_size=56)
    every = Parts(tryon, garment, vae, Dinov2Model(eye), decoder, texts)
    for part in (tryon, garment, vae, every.image_encoder, decoder):
        part.requires_grad_(False).eval()
    return every
