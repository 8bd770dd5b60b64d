"""The network's calls, the same in training and sampling: what it is given, its prediction, guidance.

``B`` batch, ``C`` latent channels, ``h w`` latents of the canvas or of a row, ``N D`` context tokens and width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from omfa.canvas import PERSON, Canvas
from omfa.components import State, TaskKind
from omfa.conditioning import Guide, Layout, PerExample, assemble, guided, size_ids, stack, unconditional
from omfa.prompts import TextEncoders
from omfa.rows import Crossing, Memory, Recall, RowGuide, Rows, lay_rows, without_anything
from omfa.sampling import Predict


class Network:
    """The part of :class:`omfa.pipeline.OMFAPipeline` that training shares with sampling."""

    unet: Any
    vae: Any
    slot_tokens: Any
    config: Any
    canvas: Canvas
    texts: TextEncoders

    def predict(self, latents: Tensor, t: Tensor, guide: Guide, rows: Crossing | None = None) -> Tensor:
        """One forward pass of the network, the same in training and sampling.

        Args:
            latents: noised targets and clean given slots (B, C, h, w).
            t: timestep, a scalar or (B,).
            guide: for the same B.
            rows: what self-attention reads besides, where a batch is made of rows.

        Returns:
            The prediction (B, C, h, w).
        """
        dtype = self.unet.dtype
        added = guide.added()
        return self.unet(
            guide.network_input(latents).to(dtype),
            t,
            encoder_hidden_states=guide.context.to(dtype),
            class_labels=None if guide.look is None else guide.look.to(dtype),
            cross_attention_kwargs=None if rows is None else {"rows": rows},
            added_cond_kwargs=None if added is None else {k: v.to(dtype) for k, v in added.items()},
            return_dict=False,
        )[0]

    def guided(self, guide: Guide, layout: Layout, scale: float) -> Predict:
        """The guided prediction as a function of what the network sees (B, C, h, w) and t; unguided for 1 or less.

        Args:
            guide: what is given.
            layout: of every example.
            scale: of classifier-free guidance.
        """
        if scale <= 1:
            return lambda seen, t: self.predict(seen, t, guide)
        nothing = self.unconditional(guide)
        if self.config.unconditional_on == "targets":
            return lambda seen, t: guided(
                torch.cat([self.predict_on_targets(seen, t, nothing, layout), self.predict(seen, t, guide)]), scale
            )
        both = stack(nothing, guide)  # the unconditional half sees nothing that is given

        def predict(seen: Tensor, t: Tensor) -> Tensor:
            return guided(self.predict(torch.cat([torch.where(guide.target, seen, 0.0), seen]), t, both), scale)

        return predict

    def predict_on_targets(self, latents: Tensor, t: Tensor, nothing: Guide, layout: Layout) -> Tensor:
        """:meth:`predict` of an unconditional guide over the window of its targets, zero elsewhere.

        Args:
            latents: noised targets (B, C, h, w); all else is left out.
            t: timestep, a scalar or (B,).
            nothing: of :meth:`unconditional`.
            layout: whose targets, the same for all B.
        """
        window = self.canvas.window(layout.slots(State.TARGET))
        narrow = nothing.cut(window)
        made = self.predict(torch.where(narrow.target, latents[..., *window], 0.0), t, narrow)
        whole = made.new_zeros(latents.shape)
        whole[..., *window] = made
        return whole

    def guide(
        self,
        layouts: Sequence[Layout],
        latents: Mapping[str, Tensor],
        planes: PerExample,
        device: torch.device | str,
        drafts: PerExample | None = None,
    ) -> Guide:
        """What the network is given, the same in training and sampling; see :func:`omfa.conditioning.assemble`."""
        context, pooled = self.context(layouts, device)
        sizes = None if pooled is None else size_ids(self.config.person_size, len(layouts)).to(pooled)
        channels = self.vae.config.latent_channels
        looks = self.unet.config.class_embed_type is not None
        return assemble(self.canvas, layouts, latents, channels, planes, drafts or {}, context, pooled, sizes, looks)

    def unconditional(self, guide: Guide) -> Guide:
        """The guide with everything given dropped, the same in training and sampling."""
        null, _ = self.context([Layout(TaskKind.TRY_ON, {}, prompted=False)], guide.context.device)
        return unconditional(guide, self.canvas, null)

    def context(self, layouts: Sequence[Layout], device: torch.device | str) -> tuple[Tensor, Tensor | None]:
        """Slot tokens or encoded prompts of each layout: context (B, N, D) and, for SDXL, pooled (B, P)."""
        if self.slot_tokens is not None:
            return self.slot_tokens(self.slot_tokens.rows(self.canvas, layouts).to(device)), None
        return self.texts([layout.prompt() for layout in layouts], device)

    # ------------------------------------------------------------------------------------------------------- in rows

    def row_guide(
        self,
        layouts: Sequence[Layout],
        latents: Mapping[str, Tensor],
        planes: PerExample,
        device: torch.device | str,
        drafts: PerExample | None = None,
    ) -> RowGuide:
        """What the network is given in rows, the same in training and sampling; see :func:`omfa.rows.lay_rows`."""
        text = self.slot_tokens is None
        sizes = size_ids(self.config.person_size, 1).to(device) if text else None
        looks = self.unet.config.class_embed_type is not None
        words = partial(self._row_words, layouts, device)
        channels = self.vae.config.latent_channels
        return lay_rows(self.canvas, layouts, latents, planes, drafts or {}, words, channels, sizes, looks)

    def _row_words(
        self, layouts: Sequence[Layout], device: torch.device | str, some: Sequence[tuple[int, str]]
    ) -> tuple[Tensor, Tensor | None]:
        """A row's slot token, or its example's prompt."""
        if self.slot_tokens is None:
            return self.texts([layouts[b].prompt() for b, _ in some], device)
        numbers = [self.slot_tokens.number(layouts[b], slot) for b, slot in some]
        return self.slot_tokens(torch.tensor(numbers, device=device)[:, None]), None

    def remember(self, given: Sequence[Rows]) -> list[Memory]:
        """Keys and values of given rows, one pass for each size; gradients flow into them."""
        memories = []
        for rows in given:
            memories.append(Memory(rows.owner))
            t = torch.zeros((), dtype=torch.long, device=rows.owner.device)
            self.predict(rows.guide.known, t, rows.guide, memories[-1])
        return memories

    def rows_without_anything(self, targets: Rows, layouts: Sequence[Layout]) -> Rows:
        """Target rows with everything given dropped, the same in training and sampling."""
        null, _ = self._row_words([Layout(TaskKind.TRY_ON, {}, prompted=False)], targets.owner.device, [(0, PERSON)])
        return without_anything(targets, self.canvas, layouts, null)

    def guided_rows(self, guide: RowGuide, layouts: Sequence[Layout], scale: float) -> Predict:
        """:meth:`guided` for target rows: given rows run once, here; each step then runs the targets alone."""
        rows = guide.targets
        recall = Recall(self.remember(guide.given), rows.owner, rows.owner)
        if scale <= 1:
            return lambda seen, t: self.predict(seen, t, rows.guide, recall)
        nothing, alone = self.rows_without_anything(rows, layouts), Recall([], rows.owner, rows.owner)

        def predict(seen: Tensor, t: Tensor) -> Tensor:
            without = self.predict(seen, t, nothing.guide, alone)
            return guided(torch.cat([without, self.predict(seen, t, rows.guide, recall)]), scale)

        return predict
