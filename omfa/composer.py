"""A short way for the draft: a picture put together, pixel by pixel, from layers that are there already.

    picture = sum over layers of weight x layer,  weights a softmax over the layers that are there

Layers are the composer's own colours, the draft where it is valid (:mod:`omfa.bodies.drafts`), and a photo to be kept.
A small network looks at all of them and at the body's surface map, and says how much each pixel takes from each;
lettering and prints pass through untouched, for copying needs no learning. Own colours are mixed from what a latent
model decoded (if one did), from kept pixels of the draft and of the photo spread out at several distances, and from the
skin in the photo, plus a correction: what no layer shows has the colours of what lies around it. A shop picture is cut
out by a matte of its garment and lies on white.

    composer = Composer.from_pretrained(folder)
    made = composer.compose(given(draft, valid, surface), ["upper"]).picture

Legend: B batch, H W pixels, h w places of the network (PATCH times ``shrink`` pixels a side), D channels, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from omfa.components import CLOTHES

LAYERS = ("own", "draft", "photo")
KINDS = ("person", *(c.value for c in CLOTHES))  # what the target is
TASKS = ("try_off", "try_on", "keep")  # a garment off its photo, a new picture of a person, a photo changed
PATCH = 4  # pixels a side that the network takes for one place
SPREADS = (1, 4, 16)  # places a side over which kept pixels are averaged; and over the whole picture
PREFERENCE = 1.0  # of a person's draft beyond what was learned, a logit: absolute error blurs where it is unsure
_INPUTS = 3 + 1 + 3 + 3 + 1 + 3 + 1 + 3  # channels of Given
_DECODED = slice(3 + 1 + 3, 3 + 1 + 3 + 3 + 1)  # those of decoded and has_decoded among them
_SAID = 3 + len(LAYERS) + 1  # numbers said of each pixel: correction, weights, matte
_MIXED = 2 * (len(SPREADS) + 1) + 2  # what own colours are mixed from: both spread out, skin, decoded
_TOLD = 64  # numbers that say what the target is


class Given(NamedTuple):
    """What a picture is put together from. Make it by :func:`given`.

    draft (B, 3, H, W) in [-1, 1], zero where not valid; valid (B, 1, H, W) 0 or 1; surface (B, 3, H, W) in [-1, 1], the
    surface map of the target's body; decoded and photo (B, 3, H, W) in [-1, 1], zero where there is none; has_decoded
    and has_photo (B, 1, H, W) 0 or 1; likeness (B, 3, H, W) in [0, 1], of :func:`omfa.bodies.likeness.likeness`.
    """

    draft: Tensor
    valid: Tensor
    surface: Tensor
    decoded: Tensor
    has_decoded: Tensor
    photo: Tensor
    has_photo: Tensor
    likeness: Tensor


class Composition(NamedTuple):
    """picture (B, 3, H, W); weights (B, L, H, W) of LAYERS, summing to one; own (B, 3, H, W) the own colours; matte
    (B, 1, H, W) in [0, 1], what of a shop picture is the garment, 1 all over in a person's.
    """

    picture: Tensor
    weights: Tensor
    own: Tensor
    matte: Tensor


def given(
    draft: Tensor,
    valid: Tensor,
    surface: Tensor,
    decoded: Tensor | None = None,
    photo: Tensor | None = None,
    has_decoded: Tensor | None = None,
    has_photo: Tensor | None = None,
    likeness: Tensor | None = None,
) -> Given:
    """Layers as they are, or absent.

    Args:
        draft: (B, 3, H, W) in [-1, 1]; what it holds where it is not valid does not matter.
        valid: (B, 1, H, W) bool.
        surface: (B, 3, H, W) in [-1, 1] the surface map of the target's body; -1 all over: no body.
        decoded: (B, 3, H, W) in [-1, 1] what a latent model made, brought to this size; None: nothing.
        photo: (B, 3, H, W) in [-1, 1] the photo to be kept, in the target's pose; None: nothing.
        has_decoded: (B,) bool, which examples have one; None: all, where ``decoded`` is given.
        has_photo: (B,) bool, likewise.
        likeness: (B, 3, H, W) in [0, 1], how much the draft looks like skin and like the wall, the photo like skin;
            None: 0.

    Raises:
        ValueError: shapes that do not fit.
    """
    if draft.ndim != 4:
        raise ValueError(f"draft is {tuple(draft.shape)}; it must be (B, 3, H, W)")
    batch, _, height, width = draft.shape
    shapes = {
        "draft": (draft, 3),
        "valid": (valid, 1),
        "surface": (surface, 3),
        "decoded": (decoded, 3),
        "photo": (photo, 3),
        "likeness": (likeness, 3),
    }
    for name, (x, channels) in shapes.items():
        if x is not None and tuple(x.shape) != (batch, channels, height, width):
            raise ValueError(
                f"{name} is {tuple(x.shape)}; beside this draft it must be {(batch, channels, height, width)}"
            )
    planes: list[Tensor] = []
    for layer, has in ((decoded, has_decoded), (photo, has_photo)):
        there = torch.full((batch,), layer is not None) if has is None else has & (layer is not None)
        plane = there.to(draft.device)[:, None, None, None].expand(batch, 1, height, width)
        planes += [draft.new_zeros(draft.shape) if layer is None else torch.where(plane, layer, 0), plane.to(draft)]
    planes.append(draft.new_zeros(draft.shape) if likeness is None else likeness)
    known = valid > 0.5
    return Given(torch.where(known, draft, 0), known.to(draft), surface, *planes)


class Composer(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is untyped
    """A pixel UNet without norms, cheap in float32 on a CPU; pictures of any size.

    Args:
        channels: of the UNet, at 1/4, 1/8, ... of the picture it sees.
        size: (H, W) it is trained at. Larger pictures are looked at in about this size, and what is to be done is
            spread over their own pixels: every layer keeps all its detail.
        shrink: how much smaller the UNet sees a picture of that size; the last stage sees it as it is.
        decoded: of TASKS, those in which it has learned to look at what a latent model decoded.

    Raises:
        ValueError: other tasks.
    """

    @register_to_config
    def __init__(
        self,
        channels: Sequence[int] = (48, 96, 128, 160),
        size: Sequence[int] = (256, 192),
        shrink: int = 2,
        decoded: Sequence[str] = (),
    ) -> None:
        super().__init__()
        check_tasks(decoded)
        self.multiple = PATCH * shrink * 2 ** (len(channels) - 1)
        self.kinds = nn.Embedding(len(KINDS), _TOLD)
        self.stem = nn.Conv2d(_INPUTS * PATCH**2, channels[0], 1)
        pairs = list(pairwise(channels))
        self.down = nn.ModuleList(nn.Conv2d(4 * a, b, 1) for a, b in pairs)
        self.before = nn.ModuleList(_Block(b) for _, b in pairs)
        self.middle = _Block(channels[-1])
        self.up = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in reversed(pairs))
        self.after = nn.ModuleList(_Block(a) for a, _ in reversed(pairs))
        self.spread = nn.Conv2d(channels[0], 2 + _MIXED, 1)  # what of draft and photo to keep; how to mix
        self.fine = nn.Conv2d(channels[0], 4 * 16, 1)  # for the last stage, which sees squares of two by two pixels
        self.last = nn.Sequential(
            nn.Conv2d(16 + 4 * _INPUTS, 32, 1), nn.SiLU(), nn.Conv2d(32, 4 * _SAID, 3, padding=1), nn.PixelShuffle(2)
        )
        nn.init.zeros_(self.last[2].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.last[2].bias)  # type: ignore[arg-type]

    def forward(self, layers: Given, kind: Tensor) -> Composition:
        """Pictures put together; nothing is clamped.

        Args:
            layers: see :func:`given`.
            kind: (B,) indices into KINDS.
        """
        height, width = map(int, layers.draft.shape[-2:])
        farther = max(height / self.config.size[0], width / self.config.size[1])
        if farther > 1.4:
            rows, columns = (max(1, round(n / farther / self.multiple)) * self.multiple for n in (height, width))
            said, spread = self.say(_resized(layers, (rows, columns)), kind)
            said = F.interpolate(said, (height, width), mode="bilinear", align_corners=False)
            sharper = torch.cat([torch.ones_like(said[:1, :3]), torch.full_like(said[:1, 3:], farther)], 1)
            return put_together(layers, said * sharper, spread, kind)  # as sharp from pixel to pixel as in the smaller
        pad = [0, -width % self.multiple, 0, -height % self.multiple]
        if any(pad):
            layers = Given(*(F.pad(x, pad, mode="replicate") for x in layers))
        made = put_together(layers, *self.say(layers, kind), kind)
        return Composition(*(x[..., :height, :width] for x in made))

    def say(self, layers: Given, kind: Tensor) -> tuple[Tensor, Tensor]:
        """What is to be done at each pixel: arguments of :func:`put_together`, float32 whatever the weights are.

        Sides are multiples of ``multiple``. In use, unlike in training, a person's draft is preferred a little.
        """
        x, told, shrink = torch.cat(layers, 1).to(self.dtype), self.kinds(kind), self.config.shrink
        h = self.stem(F.pixel_unshuffle(F.avg_pool2d(x, shrink) if shrink > 1 else x, PATCH))
        kept = []
        for down, block in zip(self.down, self.before, strict=True):
            kept.append(h)
            h = block(down(F.pixel_unshuffle(h, 2)), told)
        h = self.middle(h, told)
        for up, block in zip(self.up, self.after, strict=True):
            h = block(kept.pop() + F.interpolate(up(h), scale_factor=2.0), told)
        fine = F.pixel_shuffle(self.fine(h), 2)
        if shrink > 1:
            fine = F.interpolate(fine, scale_factor=float(shrink), mode="bilinear", align_corners=False)
        said = self.last(torch.cat([fine, F.pixel_unshuffle(x, 2)], 1)).float()
        if not self.training:
            draft = torch.eye(_SAID, device=said.device)[3 + LAYERS.index("draft")][:, None, None]
            said = said + PREFERENCE * (kind == 0)[:, None, None, None] * draft
        return said, self.spread(h).float()

    def train_decoded_alone(self) -> None:
        """Let only weights learn that read what was decoded: where there is none, pictures stay as they are.

        Training must not decay weights, for some of them are parts of larger ones.
        """
        planes = torch.zeros(_INPUTS)
        planes[_DECODED] = 1.0
        masks: dict[Any, Tensor] = {
            self.stem.weight: planes.repeat_interleave(PATCH**2)[None, :, None, None],
            self.last[0].weight: torch.cat([torch.zeros(16), planes.repeat_interleave(4)])[None, :, None, None],
            self.spread.weight: torch.eye(len(self.spread.weight))[-1][:, None, None, None],
            self.spread.bias: torch.eye(len(self.spread.weight))[-1],
        }
        self.requires_grad_(False)
        for weight, mask in masks.items():
            weight.requires_grad_(True).register_hook(lambda g, mask=mask: g * mask.to(g))

    def sees_decoded(self, kind: str, keep: bool) -> bool:
        """Whether to give what a latent model decoded for a target of KINDS, a photo changed (``keep``) or not."""
        task = "try_off" if kind != KINDS[0] else "keep" if keep else "try_on"
        return task in self.config.decoded

    @torch.no_grad()
    def compose(self, layers: Given, kinds: Sequence[str]) -> Composition:
        """Pictures put together: in [-1, 1], and bit for bit the photo's where that has weight 1.

        Args:
            layers: see :func:`given`.
            kinds: B words of KINDS.

        Raises:
            ValueError: an unknown kind, or not one for each; or numbers that are not finite.
        """
        if broken := [name for name, x in layers._asdict().items() if not torch.isfinite(x).all()]:
            raise ValueError(
                f"{', '.join(broken)}: numbers that are not finite, of which no picture can be put together"
            )
        if unknown := set(kinds) - set(KINDS):
            raise ValueError(f"kinds {', '.join(sorted(unknown))} are not known; known are {', '.join(KINDS)}")
        if len(kinds) != len(layers.draft):
            raise ValueError(f"{len(kinds)} kinds for {len(layers.draft)} drafts: give one each")
        kind = torch.tensor([KINDS.index(k) for k in kinds], device=layers.draft.device)
        made = self(layers, kind)
        return made._replace(picture=made.picture.clamp(-1, 1))


def check_tasks(decoded: Sequence[str]) -> None:
    """Raise a ValueError unless these are of TASKS."""
    if isinstance(decoded, bool | str) or not set(decoded) <= set(TASKS):
        raise ValueError(f"decoded {decoded} must be a list of tasks: {', '.join(TASKS)}")


def put_together(layers: Given, said: Tensor, spread: Tensor, kind: Tensor) -> Composition:
    """What :meth:`Composer.say` said, done.

    Args:
        layers: (H, W).
        said: (B, 3 + L + 1, H, W) correction of the own colours, logits of the layers' weights and of the matte.
        spread: (B, 2 + N, h, w) logits of what of draft and photo is spread out, and of how to mix own colours.
        kind: (B,) indices into KINDS.
    """
    own = _base(layers, spread) + said[:, :3]
    there = torch.cat([torch.ones_like(layers.valid), layers.valid, layers.has_photo], 1)
    weights = said[:, 3:-1].masked_fill(there == 0, -torch.inf).softmax(1)
    picture = sum(w * x for w, x in zip(weights.split(1, 1), (own, layers.draft, layers.photo), strict=True))
    matte = torch.where(kind[:, None, None, None] == 0, 1.0, said[:, -1:].sigmoid())
    return Composition(matte * picture + (1 - matte), weights, own, matte)


def _base(layers: Given, spread: Tensor) -> Tensor:
    """(B, 3, H, W) kept pixels spread out, mixed with each other, with the skin in the photo and what was decoded."""
    size, cells = layers.draft.shape[-2:], (int(spread.shape[-2]), int(spread.shape[-1]))
    keep, mix = spread[:, :2].sigmoid(), spread[:, 2:]
    draft, photo = (torch.cat(x, 1) for x in ((layers.draft, layers.valid), (layers.photo, layers.has_photo)))
    skin = F.adaptive_avg_pool2d(photo * layers.likeness[:, 2:], 1).expand(-1, -1, *cells)
    means = [
        *_spread(F.adaptive_avg_pool2d(draft, cells) * keep[:, :1]),
        *_spread(F.adaptive_avg_pool2d(photo, cells) * keep[:, 1:]),
        _mean(skin),
    ]
    has_photo, has_decoded = (F.adaptive_avg_pool2d(x, 1) for x in (layers.has_photo, layers.has_decoded))
    there = torch.cat(
        [torch.ones_like(has_photo)] * (len(SPREADS) + 1) + [has_photo] * (len(SPREADS) + 2) + [has_decoded], 1
    )
    mix = mix.masked_fill(there == 0, -torch.inf).softmax(1)
    spreads = sum(w * x for w, x in zip(mix[:, :-1].split(1, 1), means, strict=True))
    both = F.interpolate(torch.cat([spreads, mix[:, -1:]], 1), size, mode="bilinear", align_corners=False)  # type: ignore[list-item]
    return both[:, :3] + both[:, 3:] * layers.decoded


def _spread(known: Tensor) -> list[Tensor]:
    """Means (B, 3, h, w) of (B, 3 + 1, h, w) colours and how much they count, near by to all over."""
    size, means = (int(known.shape[-2]), int(known.shape[-1])), []
    for side in (*SPREADS, None):
        cells = (1, 1) if side is None else (-(-size[0] // side), -(-size[1] // side))
        total = known if side == 1 else F.adaptive_avg_pool2d(known, cells)
        means.append(_mean(total if side == 1 else F.interpolate(total, size, mode="bilinear", align_corners=False)))
    return means


def _mean(total: Tensor) -> Tensor:
    """Colours divided by how much they count."""
    return total[:, :3] / (total[:, 3:] + 1e-3)


def _resized(layers: Given, size: tuple[int, int]) -> Given:
    """Smaller layers; a draft's pixels are averaged where they are valid."""
    small = Given(*(F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False) for x in layers))
    known = small.valid > 0.5
    return small._replace(
        draft=torch.where(known, small.draft / small.valid.clamp_min(1e-3), 0),
        valid=known.to(small.valid),
        has_decoded=(small.has_decoded > 0.5).to(small.valid),
        has_photo=(small.has_photo > 0.5).to(small.valid),
    )


class _Block(nn.Module):
    """x + two convolutions of it, told in between what the target is; nothing but x to begin with."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.told = nn.Linear(_TOLD, 2 * channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        """(B, D, h, w) and (B, 64) -> (B, D, h, w)."""
        scale, shift = self.told(told)[:, :, None, None].chunk(2, 1)
        return x + self.second(F.silu(self.first(F.silu(x)) * (1 + scale) + shift))
