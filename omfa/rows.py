"""Rows: each component is a row of the batch, and what is given runs through the network once.

On a canvas, convolutions, norms and attention mix given and target parts, so every step computes the garments anew.
Here only self-attention crosses rows: a target row reads itself, the other targets of its example and all its given
rows; a given row reads itself alone, at t = 0. So the keys and values of given rows, the :class:`Memory`, are the same
at every step and in every draw of the noise. The same network, the same channels and weights as the canvas's.

This project's own step beyond the paper, kin to the cached references of FastFit and OminiControl2. Memory travels as
an argument, never as state of a module.

Legend: ``B`` examples, ``R`` given rows of one size, ``T`` target rows, ``N`` rows one target reads, ``H`` heads,
``L`` tokens of a row at some layer, ``D`` channels of a head, ``C`` latent channels, ``h w`` latents of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from einops import rearrange
from torch import Tensor

from omfa.canvas import FACE, PERSON, Canvas, code_plane
from omfa.components import ACCESSORIES, Category, State
from omfa.conditioning import CELLS, Guide, Layout, PerExample

Pair = tuple[Tensor, Tensor]
"""Keys and values (R or T, H, L, D) of one layer."""
NOBODY = -2  # owner of a row that no target reads; a target that reads nothing has -1


class Crossing(Protocol):
    """What self-attention reads besides a row itself; passed as ``cross_attention_kwargs={"rows": ...}``."""

    def join(self, layer: str, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values to attend to (rows, H, S, D), and which of them count (rows, S) bool; None for all."""
        ...


@dataclass
class Memory:
    """Keys and values of given rows of one size, filled in by one pass of the network.

    Args:
        owner: (R,) int64, the example each row belongs to.
    """

    owner: Tensor
    layers: dict[str, Pair] = field(default_factory=dict)

    def join(self, layer: str, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keep them; a given row reads itself alone."""
        self.layers.setdefault(layer, (keys, values))  # recomputed activations (checkpointing) are not kept twice
        return keys, values, None


class Recall:
    """What target rows read: themselves, the other targets of their group, and the Memory of their example.

    Everything is gathered here, once for all steps; rows that an example lacks are masked exactly.

    Args:
        memories: of the given rows, one for each size; none for the unconditional pass.
        owner: (T,) int64, the example each target row belongs to; -1 for one that reads no Memory.
        group: (T,) int64, the same number for targets of one example under one draw of the noise.
    """

    def __init__(self, memories: Sequence[Memory], owner: Tensor, group: Tensor) -> None:
        peers = _index(group, group)
        self._peers = peers if peers.shape[1] > 1 else None  # None: every target is alone, and reads itself
        self._memory: dict[str, list[Pair]] = {}
        self._there: dict[str, list[Tensor]] = {}
        for memory in memories:
            index = _index(owner, memory.owner)
            for layer, pair in memory.layers.items():
                self._memory.setdefault(layer, []).append((_gathered(pair[0], index), _gathered(pair[1], index)))
                tokens = pair[0].shape[2]
                self._there.setdefault(layer, []).append((index >= 0).repeat_interleave(tokens, 1))

    def join(self, layer: str, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Own and peers' keys and values first, then the Memory's."""
        there = [keys.new_ones(len(keys), keys.shape[2], dtype=torch.bool)]
        if self._peers is not None:
            there = [(self._peers >= 0).repeat_interleave(keys.shape[2], 1)]
            keys, values = _gathered(keys, self._peers), _gathered(values, self._peers)
        remembered = self._memory.get(layer, [])
        keys = torch.cat([keys, *(k for k, _ in remembered)], 2)
        values = torch.cat([values, *(v for _, v in remembered)], 2)
        mask = torch.cat([*there, *self._there.get(layer, [])], 1)
        return keys, values, None if bool(mask.all()) else mask


def _index(wanted: Tensor, owner: Tensor) -> Tensor:
    """For each of ``wanted`` (T,) the positions in ``owner`` (R,) that hold the same number: (T, N), -1 where none.

    N is at least 1, so that gradients pass through what nobody reads, too.
    """
    same = wanted[:, None] == owner[None, :]
    most = max(1, int(same.sum(1).max()))
    order = torch.where(same, torch.arange(same.shape[1], device=same.device), same.shape[1])
    first = order.sort(1).values[:, :most]
    return torch.where(first < same.shape[1], first, -1)


def _gathered(rows: Tensor, index: Tensor) -> Tensor:
    """(R, H, L, D) by (T, N) to (T, H, N L, D); rows that are not there come as zeros."""
    found = rows[index.clamp(min=0)] * (index >= 0)[..., None, None, None].to(rows.dtype)
    return rearrange(found, "t n h l d -> t h (n l) d")


class RowAttention:
    """diffusers' attention processor that lets self-attention cross rows; cross-attention stays as it is.

    Args:
        layer: name of the attention layer, under which its keys and values are kept.
    """

    def __init__(self, layer: str) -> None:
        self.layer = layer

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        rows: Crossing | None = None,
    ) -> Tensor:
        """(rows, L, channels) to the same."""
        if rows is None or encoder_hidden_states is not None:
            return AttnProcessor2_0()(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        query, keys, values = (
            rearrange(to(hidden_states), "b l (h d) -> b h l d", h=attn.heads)
            for to in (attn.to_q, attn.to_k, attn.to_v)
        )
        keys, values, mask = rows.join(self.layer, keys, values)
        wide = None if mask is None else mask[:, None, None, :]
        out = F.scaled_dot_product_attention(query, keys, values, attn_mask=wide)
        out = rearrange(out, "b h l d -> b l (h d)")
        return attn.to_out[1](attn.to_out[0](out))


def cross_rows(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Give every attention layer of a network a :class:`RowAttention`, in place; without rows it computes as before."""
    unet.set_attn_processor({name: RowAttention(name) for name in unet.attn_processors})
    return unet


# ------------------------------------------------------------------------------------------------ what a row is given


@dataclass(frozen=True)
class Rows:
    """Rows of one size.

    Args:
        guide: what the network is given, R rows.
        owner: (R,) int64, the example of each.
        slots: slot name of each.
    """

    guide: Guide
    owner: Tensor
    slots: tuple[str, ...]

    def repeated(self, draws: int) -> Rows:
        """Every row ``draws`` times over: all rows, then all again."""
        return Rows(
            self.guide.map(lambda x: x.repeat(draws, *[1] * (x.ndim - 1))), self.owner.repeat(draws), self.slots * draws
        )


@dataclass(frozen=True)
class RowGuide:
    """All rows of a batch of examples: the targets, all of one size, and the given ones by size."""

    targets: Rows
    given: tuple[Rows, ...]

    def in_step(self, canvas: Canvas) -> RowGuide:
        """With a blank row of every size of which none is given: as many passes in every process, as ZeRO-3 needs.

        Nobody reads it, though gradients (zeros) flow back through it as through the others.
        """
        here = {tuple(rows.guide.known.shape[-2:]) for rows in self.given}
        missing = {row_size(canvas, slot.name) for slot in canvas.slots} - here
        blank = [_blank(self.targets.guide.map(lambda x: x[:1]), size) for size in sorted(missing)]
        return replace(self, given=(*self.given, *blank))


def _blank(guide: Guide, size: tuple[int, int]) -> Rows:
    """One row that nobody owns, empty; of ``guide``, of a single row, it takes the words."""
    mask, empty = (guide.known.new_zeros(1, n, *size) for n in (1, guide.known.shape[1]))
    nobody = torch.full((1,), NOBODY, device=guide.known.device)
    return Rows(replace(guide, target=mask.bool(), mask=mask, known=empty, pose=empty), nobody, ("",))


def row_size(canvas: Canvas, slot: str) -> tuple[int, int]:
    """(height, width) in latents: the face slot's for a face, the person's for everything else."""
    return (canvas[FACE].height, canvas[FACE].width) if slot == FACE else canvas.person


def kind_slot(canvas: Canvas, layout: Layout, slot: str) -> str:
    """The canvas's slot for what a row holds, whose code and place in :func:`omfa.conditioning.look` the row takes.

    Accessories have none on a canvas; theirs are named as they are.
    """
    if slot in layout.categories:
        category = layout.categories[slot]
        if category in ACCESSORIES:
            return category.value
        return "garment_2" if category is Category.LOWER and canvas.garments > 1 else "garment_1"
    return FACE if slot == FACE else PERSON


def layer_of(layout: Layout, slot: str) -> int:
    """How many garments of the same category are worn under this one."""
    return layout.worn()[layout.categories[slot]].index(slot) if slot in layout.categories else 0


def row_code(canvas: Canvas, layout: Layout, slot: str, channels: int, layer: int | None = None) -> Tensor:
    """The pose plane of a row without a body of its own: zero for people, else the slot's code. (C, h, w).

    ``layer`` 0 is that of a garment worn under all others of its category; None: this one's own, :func:`layer_of`.
    """
    kind, (height, width) = kind_slot(canvas, layout, slot), row_size(canvas, slot)
    if kind == PERSON:
        return torch.zeros(channels, height, width)
    names, layer = [s.name for s in canvas.slots], layer_of(layout, slot) if layer is None else layer
    above = layer / (layer + 3)  # less than 1, however many are worn
    if kind in names:
        turn = names.index(kind) + above
    else:  # between the face and a full turn
        turn = len(names) - 1 + (1 + [*ACCESSORIES].index(Category(kind)) + above) / (len(ACCESSORIES) + 1)
    return code_plane(turn / len(names), height, width, channels)


def pose_plane(canvas: Canvas, layout: Layout, slot: str, channels: int, seen: Tensor | None) -> Tensor:
    """A row's pose: its pose or surface map ``seen`` (C, h, w), else its code. (C, h, w).

    Maps of two tops look alike, so to that of an outer one is added how far its code lies from the innermost one's.
    """
    if seen is not None and layer_of(layout, slot) == 0:
        return seen
    code = row_code(canvas, layout, slot, channels)
    return code if seen is None else seen + (code - row_code(canvas, layout, slot, channels, layer=0)).to(seen)


Words = Callable[[Sequence[tuple[int, str]]], tuple[Tensor, Tensor | None]]
"""Example and slot of R rows to their context (R, N, D) and pooled embedding (R, P) or None."""


def lay_rows(
    canvas: Canvas,
    layouts: Sequence[Layout],
    latents: Mapping[str, Tensor],
    planes: PerExample,
    drafts: PerExample,
    words: Words,
    channels: int,
    time_ids: Tensor | None = None,
    with_look: bool = False,
) -> RowGuide:
    """Everything given and all targets, as rows.

    Args:
        canvas: sizes of person and face.
        layouts: one per example; garment slots may have any names, in the order they are worn.
        latents: slot name to (B, C, h, w), clean; only GIVEN slots are looked at.
        planes: slot name to each example's pose latents (C, h, w), None where it has none: a pose or surface map.
        drafts: slot name to each example's latents (C, h, w) of a target's draft, None where it has none.
        words: of the rows.
        channels: C.
        time_ids: (1, 6) for SDXL, or None.
        with_look: whether the network takes a look at the given latents' mean colours.

    Raises:
        ValueError: no target.
    """
    here = [(b, slot, state) for b, layout in enumerate(layouts) for slot, state in layout.states.items()]

    def known_of(b: int, slot: str) -> Tensor | None:
        if layouts[b].states[slot] is State.GIVEN:
            return latents[slot][b]
        return drafts[slot][b] if slot in drafts else None

    def rows(some: Sequence[tuple[int, str]], target: bool) -> Rows:
        context, pooled = words(some)
        device, size = context.device, row_size(canvas, some[0][1])
        known = torch.zeros(len(some), channels, *size, device=device)
        pose: list[Tensor] = []
        looks: list[Tensor] = []
        for row, (b, slot) in enumerate(some):
            seen = layouts[b].states if target else [slot]  # a given row knows of itself alone
            if with_look:
                looks.append(_look(canvas, layouts[b], {s: known_of(b, s) for s in seen}, channels))
            if (there := known_of(b, slot)) is not None:
                known[row] = there
            seen_map = planes[slot][b] if slot in planes else None
            pose.append(pose_plane(canvas, layouts[b], slot, channels, seen_map).to(known))
        owner = torch.tensor([b for b, _ in some], device=device)
        mask = known.new_full((len(some), 1, *size), float(target))
        guide = Guide(
            target=mask.bool(),
            mask=mask,
            known=known,
            pose=torch.stack(pose),
            context=context,
            pooled=pooled,
            time_ids=None if time_ids is None else time_ids.to(known).expand(len(some), -1),
            look=torch.stack(looks).to(known) if with_look else None,
        )
        return Rows(guide, owner, tuple(slot for _, slot in some))

    targets = [(b, slot) for b, slot, state in here if state is State.TARGET]
    if not targets:
        raise ValueError("no slot is a target")
    by_size: dict[tuple[int, int], list[tuple[int, str]]] = {}
    for b, slot, state in here:
        if state is State.GIVEN:
            by_size.setdefault(row_size(canvas, slot), []).append((b, slot))
    return RowGuide(rows(targets, True), tuple(rows(some, False) for some in by_size.values()))


def _look(canvas: Canvas, layout: Layout, known: Mapping[str, Tensor | None], channels: int) -> Tensor:
    """Some rows at one glance, as :func:`omfa.conditioning.look`: the mean of those that share a slot of the canvas."""
    cells = torch.zeros(len(canvas.slots), channels, *CELLS)
    for i, place in enumerate(canvas.slots):
        here = [z for slot, z in known.items() if z is not None and kind_slot(canvas, layout, slot) == place.name]
        if here:
            cells[i] = torch.stack([F.adaptive_avg_pool2d(z.float(), CELLS) for z in here]).mean(0)
    return rearrange(cells, "n c y x -> (n y x c)")


def without_anything(rows: Rows, canvas: Canvas, layouts: Sequence[Layout], context: Tensor) -> Rows:
    """Target rows with everything given dropped: no latents, no mask channel, no pose, the null prompt, no Memory.

    Training draws it for whole examples, guidance samples with it: one function, the same tensors.

    Args:
        rows: targets.
        canvas: sizes.
        layouts: of all examples.
        context: the null context (1, N, D).
    """
    guide, channels = rows.guide, rows.guide.known.shape[1]
    code = [row_code(canvas, layouts[b], s, channels) for b, s in zip(rows.owner.tolist(), rows.slots, strict=True)]
    nothing = replace(
        guide,
        mask=torch.zeros_like(guide.mask),
        known=torch.zeros_like(guide.known),
        pose=torch.stack(code).to(guide.pose),
        context=context.to(guide.context).expand_as(guide.context),
        pooled=None if guide.pooled is None else torch.zeros_like(guide.pooled),
        look=None if guide.look is None else torch.zeros_like(guide.look),
    )
    return replace(rows, guide=nothing)
