"""TryOffDiff's networks: SigLIP's tokens of the photo, through a small adapter, are the context of SD 1.4's UNet.

Three versions. v1 mixes the tokens by a transformer layer first and knows upper-body garments. v2 leaves that layer
out, one model a category. MGT is v2 with an embedding of the category, one model for all.

``B`` batch, ``N`` tokens of the photo (1,024), ``K`` tokens of context (77), ``D`` their width (768).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from diffusers import ConfigMixin, EulerDiscreteScheduler, ModelMixin, PNDMScheduler, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from omfa.components import Category

Version = Literal["v1", "v2", "mgt"]
Encoder = SiglipVisionModel
CLASSES = {Category.UPPER: 0, Category.LOWER: 1, Category.DRESS: 2}  # rows of MGT's class embedding
SD14_UNET: dict[str, Any] = {  # the rest are diffusers' defaults
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
SIGLIP: dict[str, Any] = {  # siglip-base-patch16-512
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 512,
    "patch_size": 16,
}
BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


class ImageAdapter(ModelMixin, ConfigMixin):
    """Tokens of the photo (B, N, D) to the UNet's context (B, K, D): N tokens are blended into K, then normed.

    Args:
        mixes: v1's transformer layer before the blending; v2 and MGT have none.
        tokens: N.
        context: K.
        width: D.
    """

    @register_to_config
    def __init__(self, mixes: bool = False, tokens: int = 1024, context: int = 77, width: int = 768) -> None:
        super().__init__()
        self.transformer = nn.TransformerEncoderLayer(width, 8, 2048, batch_first=True) if mixes else None
        self.proj = nn.Linear(tokens, context)
        self.norm = nn.LayerNorm(width)
        if not mixes:
            nn.init.xavier_uniform_(self.proj.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, K, D)."""
        if self.transformer is not None:
            tokens = self.transformer(tokens)
        blended = self.proj(rearrange(tokens, "b n d -> b d n"))
        return self.norm(rearrange(blended, "b d k -> b k d"))


def make_unet(version: Version, config: Mapping[str, Any] = SD14_UNET) -> UNet2DConditionModel:
    """A UNet of a version's layout; ``config``: arguments of diffusers' class."""
    return UNet2DConditionModel(**config, **({"num_class_embeds": len(CLASSES)} if version == "mgt" else {}))


def make_adapter(version: Version, tokens: int = 1024, width: int = 768) -> ImageAdapter:
    """A version's adapter."""
    return ImageAdapter(version == "v1", tokens, width=width)


def make_encoder(config: Mapping[str, Any] = SIGLIP) -> SiglipVisionModel:
    """A fresh vision transformer of SigLIP's kind, without its pooling head, which nothing here looks at."""
    return SiglipVisionModel(SiglipVisionConfig(**{"vision_use_head": False, **config}))


def make_scheduler(version: Version) -> PNDMScheduler | EulerDiscreteScheduler:
    """SD 1.4's noise with the sampler of a version: PNDM (v1), Euler on Karras' noise levels (v2, MGT)."""
    if version == "v1":
        return PNDMScheduler(**BETAS, skip_prk_steps=True, set_alpha_to_one=False)
    return EulerDiscreteScheduler(**BETAS, timestep_spacing="linspace", use_karras_sigmas=True)


def version_of(unet: UNet2DConditionModel, adapter: ImageAdapter) -> Version:
    """Which version two networks are.

    Raises:
        ValueError: none: a class embedding behind v1's adapter, or one of another size.
    """
    classes = unet.config.num_class_embeds
    if classes not in (None, len(CLASSES)) or (classes and adapter.transformer is not None):
        raise ValueError(
            f"a UNet of {classes} classes and an adapter {'with' if adapter.transformer else 'without'} a transformer "
            f"layer are no version of TryOffDiff: v1 has the layer, v2 neither, MGT {len(CLASSES)} classes"
        )
    return "mgt" if classes else "v1" if adapter.transformer is not None else "v2"


def add_classes(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Give a UNet without classes MGT's embedding of the category, added to that of time; in place."""
    width = unet.time_embedding.linear_2.out_features
    unet.class_embedding = nn.Embedding(len(CLASSES), width, device=unet.device, dtype=unet.dtype)
    unet.register_to_config(num_class_embeds=len(CLASSES))
    return unet


def labels_of(unet: UNet2DConditionModel, categories: list[Category], device: torch.device) -> Tensor | None:
    """Rows of MGT's embedding (B,) for the categories of B examples; None for a UNet without."""
    if unet.config.num_class_embeds is None:
        return None
    return torch.tensor([CLASSES[c] for c in categories], device=device)
