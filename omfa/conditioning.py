"""What the network is told: which slot plays which part, prompts or slot tokens, drops, guidance.

``B`` batch, ``C`` latent channels, ``h w`` latents of the canvas, ``N D`` context tokens and width.

A :class:`Layout` says what one example holds. :func:`assemble` turns a batch of layouts and latents into a
:class:`Guide`, the only form in which anything given reaches the network, in training and in sampling alike. Dropped
and absent are the same input because both are a slot that is not in the layout.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from torch import Tensor

from omfa.canvas import FACE, PERSON, PORTRAIT, Canvas
from omfa.components import CLOTHES, Category, State, TaskKind

CELLS = (4, 3)  # rows, columns
KINDS = ("person", *(f"garment:{c}" for c in CLOTHES), "face")
PerExample = Mapping[str, Sequence[Tensor | None]]
"""Slot name to one (C, h, w) of each example, None where it has none."""
GARMENT_WORDS = {
    Category.UPPER: "an upper-body garment",
    Category.LOWER: "a lower-body garment",
    Category.DRESS: "a dress",
    Category.SHOES: "a pair of shoes",
    Category.BAG: "a bag",
    Category.HAT: "a hat",
}


@dataclass(frozen=True)
class Layout:
    """What one example holds.

    Args:
        kind: the family of the task.
        states: slot name to TARGET or GIVEN; a slot that is not named is ABSENT.
        categories: garment slot name to the category it holds.
        caption: a few words for the prompt, or None.
        prompted: False for the null prompt.
    """

    kind: TaskKind
    states: Mapping[str, State]
    categories: Mapping[str, Category] = field(default_factory=dict)
    caption: str | None = None
    prompted: bool = True

    def slots(self, state: State) -> set[str]:
        """Names of the slots in that state."""
        return {name for name, s in self.states.items() if s is state}

    def worn(self) -> dict[Category, list[str]]:
        """Each category's slots, from inside to outside."""
        return {c: [n for n, of in self.categories.items() if of == c] for c in dict.fromkeys(self.categories.values())}

    def without(self, slots: Collection[str], prompt: bool = False) -> Layout:
        """The layout with some given slots absent and, if ``prompt``, without its prompt."""
        states = {n: s for n, s in self.states.items() if n not in slots or s is State.TARGET}
        categories = {n: c for n, c in self.categories.items() if n in states}
        return replace(self, states=states, categories=categories, prompted=self.prompted and not prompt)

    def prompt(self) -> str:
        """The phrase for the text encoders: task, each category once, caption. Empty for the null prompt."""
        if not self.prompted:
            return ""
        worn = " and ".join(GARMENT_WORDS[c] for c in sorted(set(self.categories.values()), key=list(Category).index))
        phrase = {
            TaskKind.TRY_ON: f"try-on: a photo of a person wearing {worn or 'clothes'}",
            TaskKind.TRY_OFF: f"try-off: a shop picture of {worn or 'a garment'}",
            TaskKind.JOINT: f"try-on and try-off: a person wearing {worn or 'clothes'}, and shop pictures of it",
        }[self.kind]
        return f"{phrase}; {self.caption}" if self.caption else phrase


@dataclass(frozen=True)
class Guide:
    """All a forward pass is given besides z_t and t.

    ``target`` (B, 1, h, w) bool; ``mask`` (B, 1, h, w) the mask channel; ``known`` (B, C, h, w) clean latents of given
    slots, zeros elsewhere; ``pose`` (B, C, h, w); ``context`` (B, N, D); ``pooled`` (B, P) and ``time_ids`` (B, 6) for
    SDXL, ``look`` (B, K) of :func:`look` for the compact model, else None.
    """

    target: Tensor
    mask: Tensor
    known: Tensor
    pose: Tensor
    context: Tensor
    pooled: Tensor | None = None
    time_ids: Tensor | None = None
    look: Tensor | None = None

    def network_input(self, latents: Tensor) -> Tensor:
        """z_t | mask | known | pose, (B, 3C + 1, h, w). ``latents``: noised targets, clean elsewhere (B, C, h, w)."""
        return torch.cat([latents, self.mask, self.known, self.pose], dim=1)

    def added(self) -> dict[str, Tensor] | None:
        """``added_cond_kwargs`` of an SDXL UNet, or None."""
        if self.pooled is None or self.time_ids is None:
            return None
        return {"text_embeds": self.pooled, "time_ids": self.time_ids}

    def cut(self, window: tuple[slice, slice]) -> Guide:
        """The same on a part of the canvas."""
        planes = {name: getattr(self, name)[..., *window] for name in ("target", "mask", "known", "pose")}
        return replace(self, **planes)

    def map(self, change: Any, *others: Guide) -> Guide:
        """A guide with ``change(own tensor, tensors of others...)`` in every field that is not None."""
        values: dict[str, Any] = {}
        for name in self.__dataclass_fields__:
            own = getattr(self, name)
            values[name] = None if own is None else change(own, *(getattr(o, name) for o in others))
        return Guide(**values)


def assemble(
    canvas: Canvas,
    layouts: Sequence[Layout],
    latents: Mapping[str, Tensor],
    channels: int,
    planes: PerExample,
    drafts: PerExample,
    context: Tensor,
    pooled: Tensor | None = None,
    time_ids: Tensor | None = None,
    with_look: bool = False,
) -> Guide:
    """Everything given, laid on the canvas.

    Args:
        canvas: where each slot lies.
        layouts: one per example.
        latents: slot name to (B, C, slot height, slot width); only GIVEN slots are looked at.
        channels: C.
        planes: slot name to each example's pose latents (C, slot height, slot width), None where it has none.
        drafts: slot name to each example's latents of a target's draft, likewise; only TARGET slots are looked at.
        context: (B, N, D).
        pooled: (B, P) for SDXL, or None.
        time_ids: (B, 6) for SDXL, or None.
        with_look: whether the network takes a :func:`look` as well.
    """
    device = context.device
    target = canvas.mask([x.slots(State.TARGET) for x in layouts], device)
    given = canvas.mask([x.slots(State.GIVEN) for x in layouts], device)
    known = torch.zeros(len(layouts), channels, *canvas.size, device=device)
    if latents:
        known = torch.where(given, canvas.join(latents), known)
    for slot, several in drafts.items():
        for b, z in enumerate(several):
            if z is not None and layouts[b].states.get(slot) is State.TARGET:
                known[b, :, *canvas[slot].window] = z.to(known)
    return Guide(
        target=target,
        mask=target.to(known.dtype),
        known=known,
        pose=_pose_plane(canvas, known, planes),
        context=context,
        pooled=pooled,
        time_ids=time_ids,
        look=look(canvas, known) if with_look else None,
    )


def look(canvas: Canvas, known: Tensor) -> Tensor:
    """Everything given at one glance: the mean known latents in each of the ``CELLS`` of each slot, (B, K).

    The compact model's UNet adds a projection of it to its timestep embedding, as SDXL's does with the pooled text. So
    a small network finds colours at once, and keeps its attention for shapes and patterns.
    """
    cells = [F.adaptive_avg_pool2d(known[..., *slot.window], CELLS) for slot in canvas.slots]
    return rearrange(cells, "n b c y x -> b (n y x c)")


def look_size(slots: int, channels: int) -> int:
    """K of :func:`look`."""
    return slots * CELLS[0] * CELLS[1] * channels


def _pose_plane(canvas: Canvas, like: Tensor, planes: PerExample) -> Tensor:
    """Pose latents where there are any; else zeros on the person slot, and the slot codes elsewhere. (B, C, h, w)."""
    plane = canvas.slot_codes(like.shape[1]).to(like).expand_as(like).clone()
    for slot, several in planes.items():
        for b, pose in enumerate(several):
            if pose is not None:
                plane[b, :, *canvas[slot].window] = pose.to(plane)
    return plane


def unconditional(guide: Guide, canvas: Canvas, context: Tensor) -> Guide:
    """The guide with everything given dropped: no latents, no mask channel, no pose, the null prompt.

    Training draws it for whole examples, guidance samples with it: one function, the same tensors.

    Args:
        guide: any guide.
        canvas: its canvas.
        context: the null context, (B, N, D) or (1, N, D).
    """
    nothing = torch.zeros_like(guide.known)
    return replace(
        guide,
        mask=torch.zeros_like(guide.mask),
        known=nothing,
        pose=_pose_plane(canvas, nothing, {}),
        context=context.to(guide.context).expand_as(guide.context),
        pooled=None if guide.pooled is None else torch.zeros_like(guide.pooled),
        look=None if guide.look is None else torch.zeros_like(guide.look),
    )


def choose(flags: Tensor, yes: Guide, no: Guide) -> Guide:
    """Example by example: ``yes`` where flags (B,) are True, ``no`` elsewhere."""
    return yes.map(lambda a, b: torch.where(flags.view(-1, *[1] * (a.ndim - 1)).to(a.device), a, b), no)


def stack(first: Guide, second: Guide) -> Guide:
    """Both guides in one batch of 2B: unconditional first, as diffusers does."""
    return first.map(lambda a, b: torch.cat([a, b]), second)


def guided(prediction: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022): u + scale (c - u), from a (2B, ...) batch of [u, c]."""
    without, with_ = prediction.chunk(2)
    return without + scale * (with_ - without)


def size_ids(person_size: Sequence[int], batch: int) -> Tensor:
    """SDXL's size conditioning: original size, crop corner, target size, all of the person picture. (B, 6) float32."""
    h, w = person_size
    return torch.tensor([[h, w, 0, 0, h, w]], dtype=torch.float32).repeat(batch, 1)


class Kept(NamedTuple):
    """What an example keeps: the layout without what was dropped; whether its pose and its drafts are seen; and whether
    everything is dropped."""

    layout: Layout
    pose: bool
    everything: bool
    draft: bool


@dataclass(frozen=True)
class Drops:
    """Probabilities with which training hides what is given, one draw per example.

    Args:
        everything: hide all at once; exactly the unconditional input.
        each: hide each given slot, and the prompt, on their own.
        pose_in_try_off: try-off without a pose, as it is used (one photo and nothing else); it has no draft either.
        draft: hide all drafts.
    """

    everything: float = 0.05
    each: float = 0.05
    pose_in_try_off: float = 0.5
    draft: float = 0.1

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"drop probability {name}={getattr(self, name)} must be in [0, 1]")

    def draw(self, layout: Layout, generator: torch.Generator) -> Kept:
        """One draw. The number of random numbers taken depends on nothing but the number of garments above two."""
        order = ["person", "garment_1", "garment_2", "face"]
        u = torch.rand(len(order) + 3, generator=generator, dtype=torch.float64).tolist()
        dropped = {slot for slot, x in zip(order, u, strict=False) if x < self.each}
        keep_pose = layout.kind is not TaskKind.TRY_OFF or u[-2] >= self.pose_in_try_off
        v = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        if v[0] < self.each:
            dropped.add(PORTRAIT)
        more = [slot for slot in layout.categories if slot not in order]
        w = torch.rand(len(more), generator=generator, dtype=torch.float64).tolist()
        dropped |= {slot for slot, x in zip(more, w, strict=True) if x < self.each}
        # A draft shows what it was made of: it goes where any of that does.
        whole = layout.slots(State.GIVEN).isdisjoint(dropped - {FACE})
        keep_draft = whole and keep_pose and v[1] >= self.draft
        return Kept(layout.without(dropped, prompt=u[-3] < self.each), keep_pose, u[-1] < self.everything, keep_draft)


class SlotTokens(ModelMixin, ConfigMixin):
    """The compact model's context: one learned token per slot, by component, category and state.

    Row 0 is the null row; every slot takes it in the unconditional input.

    Args:
        dim: width of a token, the UNet's ``cross_attention_dim``.
        kinds: what there are tokens for, two each (target, given); :data:`KINDS`, then :data:`PORTRAIT` for a model
            that changes photos, and "garment:shoes" and the like for accessories.
    """

    _ABSENT = ("person", "garment", "face")

    @register_to_config
    def __init__(self, dim: int = 256, kinds: Sequence[str] = KINDS) -> None:
        super().__init__()
        self.kinds = tuple(kinds)
        self.table = torch.nn.Embedding(1 + 2 * len(kinds) + len(self._ABSENT), dim)
        torch.nn.init.normal_(self.table.weight, std=0.5)

    def widened(self, kinds: Sequence[str]) -> SlotTokens:
        """The same tokens and new ones for further kinds; a garment's begin as an upper one's, others as the person's.

        Args:
            kinds: beginning with the old ones.
        """
        assert tuple(kinds[: len(self.kinds)]) == self.kinds
        new, old, ours = SlotTokens(self.config.dim, list(kinds)), 1 + 2 * len(self.kinds), self.table.weight.data
        table = new.table.weight.data
        table[:old], table[-len(self._ABSENT) :] = ours[:old], ours[old:]
        for at, kind in enumerate(kinds[len(self.kinds) :]):
            like = 1 + 2 * self.kinds.index(KINDS[1] if kind.startswith("garment:") else PERSON)
            table[old + 2 * at : old + 2 * at + 2] = ours[like : like + 2]
        return new

    def rows(self, canvas: Canvas, layouts: Sequence[Layout]) -> Tensor:
        """Row numbers, (B, number of slots) int64; all zero (the null row) for a layout without a prompt."""
        return torch.tensor([[self.number(layout, slot.name) for slot in canvas.slots] for layout in layouts])

    def number(self, layout: Layout, slot: str) -> int:
        """Row number of a slot's token; 0, the null row, for a layout without a prompt."""
        if not layout.prompted:
            return 0
        state = layout.states.get(slot, State.ABSENT)
        if state is State.ABSENT:
            return 1 + 2 * len(self.kinds) + self._ABSENT.index(slot.partition("_")[0])
        kind = f"garment:{layout.categories[slot]}" if slot in layout.categories else slot
        return 1 + 2 * self.kinds.index(kind) + (state is State.GIVEN)

    def forward(self, rows: Tensor) -> Tensor:
        """Row numbers (B, N) -> context (B, N, dim)."""
        return self.table(rows)
