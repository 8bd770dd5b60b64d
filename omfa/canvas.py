"""The joint latent plane: person | garment | garment | face column.

Sizes are in latents, ``(height, width)``. ``B`` batch, ``C`` latent channels, ``h w`` latents of the whole canvas.

    +----------+-----------+-----------+------+
    |          |           |           | face |
    |  person  | garment_1 | garment_2 +------+
    |          |           |           |filler|
    +----------+-----------+-----------+------+

The canvas joins latents, never pixels: each component is encoded alone, so no target leaks into what is given.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from omfa.components import Category, Component

PERSON, FACE, PORTRAIT = (c.value for c in (Component.PERSON, Component.FACE, Component.PORTRAIT))


@dataclass(frozen=True)
class Slot:
    """A named rectangle of the canvas for one component, in latents."""

    name: str
    component: Component
    left: int
    height: int
    width: int

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns the slot covers (every slot starts at the top)."""
        return slice(0, self.height), slice(self.left, self.left + self.width)


@dataclass(frozen=True)
class Canvas:
    """Where each component lies.

    Args:
        person: (height, width) of the person slot in latents; garment slots have the same size.
        garments: number of garment slots, 1 (the paper's) or 2.
        multiple: every side must be divisible by it: ``2 ** (UNet levels - 1)``.

    Raises:
        ValueError: a side that the UNet cannot halve often enough, or another number of garment slots.
    """

    person: tuple[int, int]
    garments: int = 2
    multiple: int = 4

    def __post_init__(self) -> None:
        object.__setattr__(self, "person", tuple(int(n) for n in self.person))
        if self.garments not in (1, 2):
            raise ValueError(f"a canvas has 1 or 2 garment slots, not {self.garments}")
        for slot in self.slots:
            if slot.height % self.multiple or slot.width % self.multiple or min(slot.height, slot.width) <= 0:
                raise ValueError(
                    f"slot {slot.name!r} is {slot.height}x{slot.width} latents; each side must be a positive multiple "
                    f"of {self.multiple}, so that the UNet can halve it. Choose another picture size."
                )

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """All slots from left to right. The face is a square of half the person's width, rounded up to 4 latents."""
        h, w = self.person
        side = math.ceil(w / 2 / 4) * 4
        names = [f"garment_{i + 1}" for i in range(self.garments)]
        garments = [Slot(name, Component.GARMENT, w * (i + 1), h, w) for i, name in enumerate(names)]
        return (
            Slot(PERSON, Component.PERSON, 0, h, w),
            *garments,
            Slot(FACE, Component.FACE, w * (self.garments + 1), side, side),
        )

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the whole canvas in latents."""
        return self.person[0], sum(s.width for s in self.slots)

    def __getitem__(self, name: str) -> Slot:
        return next(s for s in self.slots if s.name == name)

    def place(self, categories: Iterable[Category]) -> dict[Category, str]:
        """The slot of each garment: upper or dress first, lower second (with one slot: whatever is worn).

        Raises:
            ValueError: a dress with anything else, or more garments than slots.
        """
        worn = [Category(c) for c in categories]
        if Category.DRESS in worn and len(worn) > 1:
            raise ValueError(
                f"garments {[str(c) for c in worn]}: a dress takes the place of upper and lower; give it alone"
            )
        if len(worn) > self.garments:
            raise ValueError(
                f"{len(worn)} garments for {self.garments} garment slot(s): this model takes {self.garments}; one in "
                "rows (join: rows) takes any number"
            )
        if self.garments == 1:
            return {c: "garment_1" for c in worn}
        return {c: "garment_2" if c is Category.LOWER else "garment_1" for c in worn}

    def window(self, slots: Collection[str]) -> tuple[slice, slice]:
        """Rows and columns of the smallest rectangle around the named slots; at least one."""
        around = [self[name] for name in slots]
        right = max(s.left + s.width for s in around)
        return slice(0, max(s.height for s in around)), slice(min(s.left for s in around), right)

    def join(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Lay parts side by side; slots without a part, and the filler, are zero.

        Args:
            parts: slot name to (B, C, slot height, slot width); at least one.

        Returns:
            (B, C, h, w).

        Raises:
            ValueError: no part, or a part of the wrong size.
        """
        if not parts:
            raise ValueError("join needs at least one part")
        some = next(iter(parts.values()))
        joint = some.new_zeros(*some.shape[:2], *self.size)
        for name, part in parts.items():
            slot = self[name]
            if part.shape[-2:] != (slot.height, slot.width):
                raise ValueError(f"{name} is {tuple(part.shape[-2:])}, its slot {(slot.height, slot.width)} latents")
            joint[..., *slot.window] = part
        return joint

    def split(self, joint: Tensor) -> dict[str, Tensor]:
        """Views of all slots of a joint plane (..., h, w); ``split(join(parts))`` gives the parts back."""
        return {s.name: joint[..., *s.window] for s in self.slots}

    def mask(self, slots: Sequence[Collection[str]], device: torch.device | str | None = None) -> Tensor:
        """Where the named slots lie.

        Args:
            slots: per example, the slot names to mark.
            device: where to make it.

        Returns:
            (B, 1, h, w) bool.
        """
        mask = torch.zeros(len(slots), 1, *self.size, dtype=torch.bool, device=device)
        for row, names in zip(mask, slots, strict=True):
            for name in names:
                row[..., *self[name].window] = True
        return mask

    def slot_codes(self, channels: int) -> Tensor:
        """A fixed code on each slot but the person's: which slot it is (2 channels), and where in it one is (the rest).

        Two garment targets start from noise alike; the code tells the network which is which, and where a collar goes.
        Channels come as y, x, y, x, ...: half a sine wave over the slot, then a whole one, two, ...

        Args:
            channels: C, 2 or more.

        Returns:
            (channels, h, w) float32 in [-1, 1]; zero on the person slot and the filler.
        """
        codes = torch.zeros(channels, *self.size)
        for i, slot in enumerate(self.slots[1:], 1):
            codes[:, *slot.window] = code_plane(i / len(self.slots), slot.height, slot.width, channels)
        return codes


def code_plane(turn: float, height: int, width: int, channels: int) -> Tensor:
    """A fixed code: which slot it is, as a fraction of a turn (2 channels), and where in it one is (the rest).

    Returns:
        (channels, height, width) float32 in [-1, 1].
    """
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    angle = 2 * math.pi * turn
    which = [torch.full_like(y, math.cos(angle)), torch.full_like(y, math.sin(angle))]
    where = [torch.sin(math.pi / 2 * 2 ** (k // 2) * (x if k % 2 else y)) for k in range(channels - 2)]
    return torch.stack(which + where)
