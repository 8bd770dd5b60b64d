"""SDXL's text encoders, and phrases encoded ahead so that they need not be loaded.

A phrase is composed from task and categories (:meth:`omfa.conditioning.Layout.prompt`): without captions there are
few, 5 MB in all, and every saved SDXL model carries them. Phrases with captions are many and stay on disk.

``B`` phrases, ``N`` tokens (77), ``D`` width of both encoders together (2048), ``P`` pooled width (1280).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from safetensors import safe_open
from torch import Tensor

from omfa.components import CLOTHES, Category, TaskKind, clash
from omfa.conditioning import Layout
from omfa.records.prepared import RecordError

KEPT_PHRASES = 256  # in memory, and in a file of phrases with captions
WEIGHTS = "diffusion_pytorch_model.safetensors"


def phrases(worn: Iterable[Category] = CLOTHES, caption: str | None = None) -> list[str]:
    """Every phrase that layouts of some of these garments can compose, dropped garments included."""
    worn = sorted(set(worn), key=list(Category).index)
    some = [c for n in range(len(worn) + 1) for c in combinations(worn, n) if clash(c) is None]
    layouts = [
        Layout(kind, {}, {f"garment_{i}": category for i, category in enumerate(c)}, caption)
        for kind in TaskKind
        for c in some
    ]
    return list(dict.fromkeys(layout.prompt() for layout in layouts))


def check_captions(asked: Mapping[str, Sequence[str]], texts: TextEncoders) -> None:
    """Every phrase that is asked for, by record id, is kept, or can be encoded.

    Raises:
        RecordError: some are not, and can't.
    """
    lacking = [] if texts.loaded else [r for r, several in asked.items() if not all(map(texts.keeps, several))]
    if lacking:
        raise RecordError(
            f"the captions of {len(lacking)} of {len(asked)} records, the first one {lacking[0]!r}, are not encoded "
            "ahead: run python -m omfa.encode again with --captions, or set data.init_args.captions false"
        )


class Kept(Protocol):
    """Phrases encoded ahead."""

    def find(self, phrase: str) -> tuple[Tensor, Tensor] | None:
        """Context (1, N, D) and pooled (1, P) of a phrase, or None."""

    def __contains__(self, phrase: str) -> bool: ...


class Prompts(ModelMixin, ConfigMixin):
    """Encoded phrases as a part of a pipeline, saved beside its UNet.

    Args:
        phrases: the phrases.
        encoders: fingerprint of the encoders that made them.
        tokens, width, pooled_width: N, D, P.
    """

    @register_to_config
    def __init__(self, phrases: list[str], encoders: str, tokens: int, width: int, pooled_width: int) -> None:
        super().__init__()
        self.contexts = torch.nn.Parameter(torch.zeros(len(phrases), tokens, width), requires_grad=False)
        self.pooled = torch.nn.Parameter(torch.zeros(len(phrases), pooled_width), requires_grad=False)

    @classmethod
    def of(cls, phrases: Sequence[str], texts: TextEncoders, encoders: str, device: torch.device | str) -> Prompts:
        """The phrases encoded, in float16."""
        context, pooled = texts.encode(phrases, device)
        made = cls(list(phrases), encoders, *context.shape[1:], pooled.shape[1])
        made.contexts.data, made.pooled.data = context.half(), pooled.half()
        return made

    def __contains__(self, phrase: str) -> bool:
        return phrase in self.config.phrases

    def find(self, phrase: str) -> tuple[Tensor, Tensor] | None:
        """See :class:`Kept`."""
        if phrase not in self:
            return None
        row = self.config.phrases.index(phrase)
        return self.contexts[row, None], self.pooled[row, None]


class PromptFiles:
    """Folders that :meth:`Prompts.save_pretrained` wrote, read phrase by phrase: for many phrases, with captions.

    Args:
        folder: holds ``00000/``, ``00001/``, ...; may be missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.where, self.encoders = folder, dict[str, tuple[Path, int]](), set[str]()
        for config in sorted(folder.glob("[0-9]*[0-9]/config.json")):
            made = json.loads(config.read_text())
            self.encoders.add(made["encoders"])
            self.where |= {phrase: (config.parent / WEIGHTS, row) for row, phrase in enumerate(made["phrases"])}

    def __contains__(self, phrase: str) -> bool:
        return phrase in self.where

    def find(self, phrase: str) -> tuple[Tensor, Tensor] | None:
        """See :class:`Kept`."""
        if phrase not in self:
            return None
        path, row = self.where[phrase]
        with safe_open(path, "pt") as file:
            return file.get_slice("contexts")[row : row + 1], file.get_slice("pooled")[row : row + 1]

    def add(self, prompts: Prompts) -> None:
        """One more folder, whole or not at all."""
        target = self.folder / f"{len(list(self.folder.glob('[0-9]*[0-9]'))):05d}"
        save_whole(prompts, target)
        self.where |= {phrase: (target / WEIGHTS, row) for row, phrase in enumerate(prompts.config.phrases)}


def save_whole(prompts: Prompts, target: Path) -> None:
    """``save_pretrained`` to the side, then swapped in; ``target`` is not there yet."""
    part = target.with_name(f"part-{target.name}")
    prompts.save_pretrained(part)
    os.replace(part, target)


class TextEncoders:
    """SDXL's two text encoders behind one call; what is kept, in memory or ahead, is not encoded again.

    Args:
        tokenizers: both tokenizers, or Nones.
        encoders: both encoders, or Nones; the second one projects.
        kept: phrases encoded ahead.
    """

    def __init__(self, tokenizers: Sequence[Any], encoders: Sequence[Any], kept: Sequence[Kept] = ()) -> None:
        self.tokenizers, self.encoders, self.kept = tokenizers, encoders, list(kept)
        self._known: dict[str, tuple[Tensor, Tensor]] = {}

    @property
    def loaded(self) -> bool:
        """Whether the encoders themselves are here."""
        return all(part is not None for part in (*self.tokenizers, *self.encoders))

    def keeps(self, phrase: str) -> bool:
        """Whether a phrase was encoded ahead."""
        return any(phrase in kept for kept in self.kept)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], device: torch.device | str) -> tuple[Tensor, Tensor]:
        """Phrases -> context (B, N, D) and pooled (B, P), float32; the empty phrase gives zeros (SDXL's null prompt).

        Raises:
            ValueError: a phrase that is not kept, and no encoders.
        """
        asked = [p or phrases()[0] for p in prompts]  # zeros are of the shape of any phrase
        for phrase in dict.fromkeys(asked):
            if phrase not in self._known:
                found = next((f for f in (kept.find(phrase) for kept in self.kept) if f is not None), None)
                context, pooled = found or self.encode([phrase], device)
                self._known[phrase] = context.float().cpu(), pooled.float().cpu()
        rows = [self._known[phrase] for phrase in asked]
        while len(self._known) > KEPT_PHRASES:  # phrases with captions rarely come again
            self._known.pop(next(iter(self._known)))
        keep = torch.tensor([float(bool(p)) for p in prompts])
        context = torch.cat([r[0] for r in rows]) * keep[:, None, None]
        pooled = torch.cat([r[1] for r in rows]) * keep[:, None]
        return context.to(device), pooled.to(device)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], device: torch.device | str) -> tuple[Tensor, Tensor]:
        """The last hidden state but one of both encoders, and the second one's projection: (B, N, D), (B, P), CPU.

        Raises:
            ValueError: the encoders are not loaded.
        """
        if not self.loaded:
            raise ValueError(
                f"the phrase {prompts[0]!r} is not encoded ahead, and the text encoders are not loaded. In training: "
                "run python -m omfa.encode again (captions want --captions). At inference: leave the caption out, or "
                "OMFAPipeline.from_pretrained(folder, **omfa.sdxl.text_encoders(base))"
            )
        hidden = []
        for tokenizer, encoder in zip(self.tokenizers, self.encoders, strict=True):
            length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
            ids = tokenizer(
                list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
            ).input_ids
            out = encoder(ids.to(device), output_hidden_states=True)
            hidden.append(out.hidden_states[-2].float().cpu())
        return torch.cat(hidden, dim=-1), out[0].float().cpu()
