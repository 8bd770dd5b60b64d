"""What the networks are told: the phrases, and SD3's two CLIP encoders' view of them, kept so that none need be loaded.

``B`` phrases, ``L`` = 77 tokens, ``M`` = 333 context tokens (those 77 and the 256 of a third encoder, left at zero),
``E`` width of both encoders together, ``D`` width of the context.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from omfa.components import Category
from omfa.files import whole

LENGTH, UNUSED = 77, 256
PLACES = {Category.UPPER: "upper body", Category.LOWER: "lower body", Category.DRESS: "whole body"}
PLAIN = {Category.UPPER: "a top", Category.LOWER: "a lower garment", Category.DRESS: "a dress"}
"""Descriptions of garments that have none."""
NEGATIVE = (
    "deformed, distorted, disfigured, poorly drawn, bad anatomy, wrong anatomy, extra limb, missing limb, "
    "floating limbs, mutated hands and fingers, disconnected limbs, mutation, mutated, ugly, disgusting, blurry, "
    "amputation, NSFW"
)
"""The other side of guidance, as published."""


def try_on_phrase(category: Category, description: str) -> str:
    """What TryonNet is told: "a red shirt" on the upper body is "Replace the upper body with red shirt"."""
    return " ".join([f"Replace the {PLACES[category]} with", *description.split()[1:]])


@dataclass(frozen=True)
class TextEmbeds:
    """Phrases as both encoders see them.

    Args:
        tokens: last hidden states but one, side by side (B, L, E).
        pooled: of both, side by side (B, P); SD3-like teachers want it, the student does not.
    """

    tokens: Tensor
    pooled: Tensor

    def context(self, width: int, length: int = LENGTH + UNUSED) -> Tensor:
        """The tokens among zeros, as networks take them: (B, length, width)."""
        return widened(self.tokens, width, length)


def widened(tokens: Tensor, width: int, length: int = LENGTH + UNUSED) -> Tensor:
    """Tokens (B, L, E) to (B, length, width) with zeros behind.

    Raises:
        ValueError: the tokens are wider or more than that.
    """
    if tokens.shape[1] > length or tokens.shape[2] > width:
        raise ValueError(f"{tokens.shape[1]} tokens of {tokens.shape[2]} don't fit into {length} of {width}")
    return F.pad(tokens, (0, width - tokens.shape[2], 0, length - tokens.shape[1]))


class TextEncoders:
    """SD3's CLIP-L and CLIP-G.

    Args:
        encoders: two ``CLIPTextModelWithProjection``.
        tokenizers: theirs.
    """

    def __init__(self, encoders: Sequence[Any], tokenizers: Sequence[Any]) -> None:
        self.encoders, self.tokenizers = tuple(encoders), tuple(tokenizers)
        for encoder in self.encoders:
            encoder.requires_grad_(False).eval()

    @torch.no_grad()
    def __call__(self, phrases: Sequence[str]) -> TextEmbeds:
        """Encode phrases; longer ones are cut at 77 tokens."""
        tokens, pooled = [], []
        for encoder, tokenizer in zip(self.encoders, self.tokenizers, strict=True):
            ids = tokenizer(
                list(phrases), padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
            ).input_ids
            out = encoder(ids.to(encoder.device), output_hidden_states=True)
            tokens.append(out.hidden_states[-2])
            pooled.append(out.text_embeds)
        return TextEmbeds(torch.cat(tokens, -1), torch.cat(pooled, -1))


class PromptBook:
    """Phrases that were encoded ahead, in float16.

    Args:
        pages: phrase to its tokens (L, E) and pooled vector (P).
    """

    def __init__(self, pages: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        self.pages = dict(pages)

    @classmethod
    def of(cls, phrases: Iterable[str], encoders: TextEncoders) -> PromptBook:
        """Encode phrases, one at a time."""
        made = {}
        for phrase in dict.fromkeys(phrases):
            embeds = encoders([phrase])
            made[phrase] = (embeds.tokens[0].half().cpu(), embeds.pooled[0].half().cpu())
        return cls(made)

    @classmethod
    def read(cls, path: Path) -> PromptBook:
        """What :meth:`write` wrote.

        Raises:
            ValueError: no such file, or it holds something else.
        """
        try:
            with safe_open(path, "pt") as file:
                phrases = file.metadata() or {}
                return cls(
                    {p: (file.get_tensor(f"{k}.tokens"), file.get_tensor(f"{k}.pooled")) for k, p in phrases.items()}
                )
        except Exception as e:  # safetensors has an error of its own for each kind of damage
            raise ValueError(f"{path}: no phrases encoded ahead ({type(e).__name__}: {e}); encode them again") from None

    def write(self, path: Path) -> None:
        """One safetensors file, whole or not at all."""
        keys = {phrase: hashlib.sha256(phrase.encode()).hexdigest()[:16] for phrase in self.pages}
        tensors = {f"{keys[p]}.tokens": tokens.contiguous() for p, (tokens, _) in self.pages.items()}
        tensors |= {f"{keys[p]}.pooled": pooled.contiguous() for p, (_, pooled) in self.pages.items()}
        with whole(path) as part:
            save_file(tensors, part, {k: p for p, k in keys.items()})

    def __call__(self, phrases: Sequence[str]) -> TextEmbeds:
        """Look phrases up, float32.

        Raises:
            ValueError: one that was not encoded.
        """
        lacking = [p for p in phrases if p not in self.pages]
        if lacking:
            raise ValueError(
                f"{lacking[0]!r} is not among the {len(self.pages)} phrases encoded ahead; load the text encoders, or "
                "encode it with them"
            )
        tokens, pooled = zip(*(self.pages[p] for p in phrases), strict=True)
        return TextEmbeds(torch.stack(tokens).float(), torch.stack(pooled).float())
