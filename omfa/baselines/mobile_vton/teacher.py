"""The teacher, the network that learns the student's samples, and the discriminator on the teacher's features.

``B`` examples, ``C`` latent channels, ``h w`` latents, ``N`` tokens of the teacher, ``D`` their width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn

from omfa.baselines.mobile_vton.prompts import LENGTH, UNUSED, TextEmbeds
from omfa.weights import read_part

CONTEXT = "_context_length"  # in the config of a teacher that was trained with another number of text tokens than SD3


def read_teacher(folder: str, subfolder: str | None = None) -> SD3Transformer2DModel:
    """A teacher from its folder; ``subfolder`` is "transformer" for a whole SD3 pipeline.

    Raises:
        ValueError: there is none.
    """
    where = Path(folder, subfolder or "")
    if not (where / "config.json").is_file():
        raise ValueError(f"{where} holds no network (no config.json); give a folder of an SD3Transformer2DModel")
    return read_part(SD3Transformer2DModel, where)


def velocity_of(
    network: SD3Transformer2DModel, x: Tensor, s: Tensor, texts: TextEmbeds, taps: Sequence[int] = ()
) -> tuple[Tensor, list[Tensor]]:
    """An SD3-like network's velocity for latents (B, C, h, w) at levels s (B), and its tokens behind some blocks.

    Args:
        network: teacher or fake-score network.
        x, s: noised latents and their level.
        texts: phrases; tokens beyond the encoders' are left at zero, as many as the network was trained with.
        taps: blocks whose tokens (B, N, D) are wanted.
    """
    tapped: dict[int, Tensor] = {}

    def tap(block: int) -> torch.utils.hooks.RemovableHandle:
        def keep(_module: nn.Module, _args: object, out: tuple[Tensor, Tensor]) -> None:
            tapped[block] = out[1]

        return network.transformer_blocks[block].register_forward_hook(keep)

    handles = [tap(block) for block in taps]
    context = texts.context(network.config.joint_attention_dim, network.config.get(CONTEXT, LENGTH + UNUSED))
    try:
        velocity = network(x, context, texts.pooled, 1000 * s, return_dict=False)[0]
    finally:
        for handle in handles:
            handle.remove()
    return velocity, [tapped[block] for block in taps]


class Discriminator(nn.Module):
    """Tells real latents from a student's by the teacher's tokens: a small head behind each of some blocks.

    Args:
        width: D of the teacher.
        taps: the blocks.
        hidden: width of a head.
    """

    def __init__(self, width: int, taps: Sequence[int], hidden: int = 128) -> None:
        super().__init__()
        self.taps = tuple(taps)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, 1)) for _ in taps
        )

    @classmethod
    def of(cls, teacher: SD3Transformer2DModel, hidden: int = 128) -> Discriminator:
        """Heads behind the teacher's middle and last block."""
        last = len(teacher.transformer_blocks) - 1
        return cls(teacher.inner_dim, sorted({last // 2, last}), hidden)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Tokens (B, N, D) of each block to logits (B, blocks N)."""
        return torch.cat([head(f)[..., 0] for head, f in zip(self.heads, features, strict=True)], 1)
