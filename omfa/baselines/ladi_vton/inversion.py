"""Textual inversion of a garment: its picture becomes sixteen words, which take the place of ``$`` in a prompt.

LaDI-VTON, arXiv 2305.13501, section 3.2. transformers' CLIP text model stays as it is. ``B`` batch, ``L`` tokens of a
prompt (77), ``D`` width of the text model, ``V`` places of the vision model (257) and ``E`` its width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from omfa.baselines.ladi_vton.warping import resize
from omfa.components import Category

WORDS = 16
DOLLAR = 259  # id of "$" in CLIP's vocabulary
WORN = {Category.UPPER: "an upper body garment", Category.LOWER: "a lower body garment", Category.DRESS: "a dress"}
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CLIP_SIDE = 224


class InversionAdapter(ModelMixin, ConfigMixin):
    """CLIP's view of a garment to the embeddings of words.

    Args:
        input_dim: E, 1280 for CLIP ViT-H.
        intermediate_size, heads: of the one attention layer, 5120 and 16 for ViT-H.
        hidden_dim: of the three linear layers.
        output_dim: words times D.
        words: how many.
        hidden_act: of the attention layer's MLP, the vision model's.
        dropout: between the linear layers, in training.
    """

    @register_to_config
    def __init__(
        self,
        input_dim: int = 1280,
        intermediate_size: int = 5120,
        heads: int = 16,
        hidden_dim: int = 5120,
        output_dim: int = 16384,
        words: int = WORDS,
        hidden_act: str = "gelu",
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        layer = CLIPVisionConfig(
            hidden_size=input_dim,
            intermediate_size=intermediate_size,
            num_attention_heads=heads,
            hidden_act=hidden_act,
            attn_implementation="sdpa",
        )
        self.encoder_layers = nn.ModuleList([CLIPEncoderLayer(layer)])
        self.post_layernorm = nn.LayerNorm(input_dim, eps=1e-5)
        self.layers = nn.Sequential(
            *(nn.Linear(input_dim, hidden_dim), nn.GELU(), nn.Dropout(dropout)),
            *(nn.Linear(hidden_dim, hidden_dim), nn.GELU(), nn.Dropout(dropout)),
            nn.Linear(hidden_dim, output_dim),
        )
        self.words = words

    def forward(self, features: Tensor) -> Tensor:
        """The vision model's last hidden state (B, V, E), before its last norm, to words (B, 16, D)."""
        for layer in self.encoder_layers:
            features = layer(features, attention_mask=None)
        return self.layers(self.post_layernorm(features[:, 0])).unflatten(1, (self.words, -1))


def prompt(category: Category, words: int = WORDS) -> str:
    """What the text model reads: the category, and a place for every word."""
    return f"a photo of a model wearing {WORN[category]}" + " $" * words


def token_ids(tokenizer: Any, prompts: Sequence[str]) -> Tensor:
    """(B, L) ids, padded to the tokenizer's full length."""
    length = tokenizer.model_max_length
    found = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return found.input_ids


def encode_prompts(
    text_encoder: CLIPTextModel, ids: Tensor, words: Tensor | None = None, placeholder: int = DOLLAR
) -> Tensor:
    """Prompts through the text model, a garment's words in the places of ``$``.

    Args:
        text_encoder: left as it is.
        ids: (B, L).
        words: (B, 16, D); they overwrite sixteen embeddings in a row from the first placeholder on, position embeddings
            are added afterwards, and a prompt without placeholder stays as it is. None for plain prompts.
        placeholder: the id that marks the place.

    Returns:
        The last hidden state after the final norm, (B, L, D).

    Raises:
        ValueError: a placeholder too near the end.
    """
    if words is None:
        return text_encoder(ids).last_hidden_state
    there = ids == placeholder
    first = there.int().argmax(1)
    count = words.shape[1]
    if (there.any(1) & (first + count > ids.shape[1])).any():
        raise ValueError(f"{count} words don't fit behind the first placeholder: use a shorter prompt")
    place = torch.arange(ids.shape[1], device=ids.device) - first[:, None]  # which word goes there, if any
    taken = there.any(1, keepdim=True) & (place >= 0) & (place < count)

    def overwrite(_module: nn.Module, _given: Any, embeddings: Tensor) -> Tensor:
        index = place.clamp(0, count - 1)[..., None].expand(-1, -1, words.shape[2])
        return torch.where(taken[..., None], words.gather(1, index).to(embeddings.dtype), embeddings)

    handle = text_encoder.get_input_embeddings().register_forward_hook(overwrite)
    try:
        return text_encoder(ids).last_hidden_state
    finally:
        handle.remove()


def clip_pixels(cloth: Tensor, eight_bit: bool = True, side: int = CLIP_SIDE) -> Tensor:
    """A garment's picture as CLIP's vision model wants it, (B, 3, side, side); the aspect is not kept.

    Args:
        cloth: (B, 3, H, W) in [-1, 1].
        eight_bit: round values down to whole 255ths, as the published system's image processor did: its weights were
            trained so. False keeps them exact.
        side: pixels, 224 for CLIP.
    """
    values = resize(cloth / 2 + 0.5, (side, side)).clamp(0, 1)
    if eight_bit:
        values = (values * 255).floor() / 255
    mean, std = (values.new_tensor(x).view(3, 1, 1) for x in (CLIP_MEAN, CLIP_STD))
    return (values - mean) / std
