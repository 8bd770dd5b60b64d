"""What cloth looks like: patterns as functions of the cloth's own coordinates, so every picture of it agrees.

Coordinates are metres on the cloth: u around the body (0: the front's middle), v up. Legend: n points.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.wardrobe import prints
from data_prep.wardrobe.fields import edge, mix, noise, sample, wave
from omfa.evaluation.judges import KINDS

Array = NDArray[Any]


MOTIFS = ("letters", "star", "heart", "disc", "ring", "triangle", "bolt", "bars")

NAMED_COLOURS = {
    "white": (0.95, 0.95, 0.94), "black": (0.07, 0.07, 0.08), "grey": (0.52, 0.53, 0.55), "red": (0.78, 0.12, 0.14),
    "burgundy": (0.42, 0.07, 0.14), "orange": (0.92, 0.48, 0.13), "mustard": (0.80, 0.61, 0.13),
    "yellow": (0.96, 0.84, 0.28),
    "beige": (0.84, 0.76, 0.63), "brown": (0.42, 0.27, 0.17), "olive": (0.42, 0.43, 0.20),
    "green": (0.18, 0.52, 0.27), "mint": (0.64, 0.87, 0.76), "teal": (0.08, 0.45, 0.47),
    "light blue": (0.58, 0.76, 0.92),
    "blue": (0.16, 0.36, 0.74), "navy": (0.09, 0.13, 0.29), "purple": (0.43, 0.24, 0.58), "lilac": (0.76, 0.67, 0.88),
    "pink": (0.95, 0.64, 0.74), "magenta": (0.78, 0.16, 0.49),
}  # fmt: skip


def luminance(colour: Array | tuple[float, ...]) -> float:
    """Perceived lightness in [0, 1] of an RGB colour in [0, 1]."""
    return float(np.asarray(colour, np.float64) @ np.array([0.299, 0.587, 0.114]))


def draw_colour(rng: np.random.Generator) -> tuple[str, tuple[float, float, float]]:
    """A named colour and a shade near it."""
    name = list(NAMED_COLOURS)[rng.integers(len(NAMED_COLOURS))]
    h, s, v = colorsys.rgb_to_hsv(*NAMED_COLOURS[name])
    h, s, v = h + rng.uniform(-0.015, 0.015), s * rng.uniform(0.85, 1.1), v * rng.uniform(0.9, 1.06)
    r, g, b = colorsys.hsv_to_rgb(h % 1, min(s, 1), min(v, 0.97))
    return name, (round(r, 4), round(g, 4), round(b, 4))


def like_skin(colour: Array | tuple[float, ...], skin: Array | tuple[float, ...]) -> bool:
    """Whether cloth of this colour could be taken for bare skin: nearly the same hue, about as light."""
    a, b = np.asarray(colour, np.float64), np.asarray(skin, np.float64)
    return bool(a @ b > 0.988 * np.linalg.norm(a) * np.linalg.norm(b) and abs(luminance(a) - luminance(b)) < 0.3)


def draw_palette(
    rng: np.random.Generator, count: int, skin: tuple[float, ...] | None = None
) -> tuple[tuple[str, ...], tuple[tuple[float, ...], ...]]:
    """Names and colours, well apart so that a pattern can be seen, none like the wearer's skin."""
    names, colours = [], list[tuple[float, ...]]()
    while len(colours) < count:
        name, colour = draw_colour(rng)
        apart = [np.linalg.norm(np.subtract(colour, c)) > 0.42 for c in colours]
        light = [abs(luminance(colour) - luminance(c)) > 0.16 for c in colours[:1]]
        bare = skin is not None and like_skin(colour, skin)
        if name not in names and all(apart) and all(light) and not bare:
            names.append(name)
            colours.append(colour)
    return tuple(names), tuple(colours)


@dataclass(frozen=True)
class Pattern:
    """How a garment is coloured.

    Args:
        kind: one of KINDS.
        colours: RGB in [0, 1], ground first.
        names: their names, for captions.
        scale: period of the repeat in metres.
        angle: radians; 0: stripes run around the body.
        share: share of the period in the second colour.
        motif: one of MOTIFS, for prints.
        text: letters of a print.
        place: (u, v) of a print's centre, metres.
        span: (low, high) v between which a gradient runs.
        seed: of the noise.
        variant: a richer form of the kind, of :mod:`data_prep.wardrobe.prints`; empty: the simple one.
    """

    kind: str
    colours: tuple[tuple[float, ...], ...]
    names: tuple[str, ...]
    scale: float = 0.06
    angle: float = 0.0
    share: float = 0.5
    motif: str = "disc"
    text: str = ""
    place: tuple[float, float] = (0.0, 0.27)
    span: tuple[float, float] = (-0.1, 0.45)
    seed: int = 0
    variant: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"pattern kind {self.kind!r} must be one of {', '.join(KINDS)}")
        if len(self.colours) < (1 if self.kind == "plain" else 2):
            raise ValueError(f"a {self.kind} pattern needs at least two colours, got {len(self.colours)}")

    @cached_property
    def palette(self) -> Array:
        """(k, 3) float32."""
        return np.array(self.colours, np.float32)

    def albedo(self, uv: Array, second: Array) -> Array:
        """Colours of the cloth.

        Args:
            uv: (n, 2) metres.
            second: (n,) bool, parts that a two-tone garment has in its second colour.

        Returns:
            (n, 3) float32 in [0, 1].
        """
        u, v = uv[:, 0], uv[:, 1]
        c = self.palette
        if self.kind == "plain":
            return np.repeat(c[:1], len(u), 0)
        if self.kind == "two_tone":
            return c[second.astype(np.int64)]
        if self.kind == "gradient":
            low, high = self.span
            t = np.clip((v - low) / (high - low), 0, 1)
            t = t * t * (3 - 2 * t)
            return mix(c[1], c[0], t)
        a = u * np.cos(self.angle) + v * np.sin(self.angle)
        b = -u * np.sin(self.angle) + v * np.cos(self.angle)
        if self.variant in prints.ALL_OVER:
            return prints.ALL_OVER[self.variant](a, b, c, self.scale, self.seed)
        if self.kind == "stripes":
            out = mix(c[0], c[1], wave(b, self.scale, self.share))
            if len(c) > 2:  # a thin line of a third colour between the bands
                line = wave(b - self.scale * (self.share + (1 - self.share) / 2 - 0.06), self.scale, 0.14)
                out = out * (1 - line[:, None]) + c[2] * line[:, None]
            return out
        if self.kind == "checks":
            first, crossing = wave(a, self.scale, self.share), wave(b, self.scale, self.share)
            out = mix(c[0], c[1], (first + crossing) / 2)
            if len(c) > 2:
                shift = self.scale * (self.share + (1 - self.share) / 2 - 0.05)
                line = np.maximum(wave(a - shift, self.scale, 0.1), wave(b - shift, self.scale, 0.1))
                out = out * (1 - 0.8 * line[:, None]) + 0.8 * c[2] * line[:, None]
            return out
        if self.kind == "dots":
            row = np.floor(b / self.scale)
            x = np.mod(a + 0.5 * self.scale * np.mod(row, 2), self.scale) - self.scale / 2
            y = np.mod(b, self.scale) - self.scale / 2
            return mix(c[0], c[1], edge(self.scale * 0.5 * (0.35 + 0.5 * self.share) - np.hypot(x, y)))
        if self.kind == "noise":
            field = noise(self.seed, u + 0.31, v, self.scale * 1.6)
            out = mix(c[0], c[1], edge(field - 0.1, 0.06))
            if len(c) > 2:
                other = noise(self.seed + 1, u, v + 0.17, self.scale * 1.3)
                cover = edge(other - 0.75, 0.06)[:, None]
                out = out * (1 - cover) + c[2] * cover
            return out
        u = np.where(np.abs(u) > 0.5, u - np.sign(u), u) if self.place[1] < 0 else u  # a print on each leg
        if self.variant == "picture":
            colour = self._printed(prints.picture(self.seed), u, v)
            return mix(c[0], colour[:, :3], colour[:, 3])
        shape = prints.words(self.text, self.seed) if self.variant == "words" else motif_mask(self.motif, self.text)
        return mix(c[0], c[1], self._printed(shape[..., None], u, v)[:, 0])

    def _printed(self, texture: Array, u: Array, v: Array) -> Array:
        """(n, d) what of a print (S, S, d) is at each point; zeros beside it."""
        side = len(texture)
        x = ((u - self.place[0]) / self.scale + 0.5) * side
        y = (0.5 - (v - self.place[1]) / self.scale) * side
        inside = (x >= 0) & (x < side - 1) & (y >= 0) & (y < side - 1)
        out = np.zeros((len(u), texture.shape[-1]), np.float32)
        if inside.any():
            planes = np.moveaxis(texture, -1, 0)
            out[inside] = np.stack([sample(plane, x[inside], y[inside]) for plane in planes], 1)
        return out

    def words(self) -> str:
        """The pattern in plain words, colours first: ``red and white striped``."""
        names = self.names
        both = " and ".join(names[:2])
        rich = {"tartan": "tartan", "flowers": "floral", "leopard": "leopard-print", "marble": "marbled"}
        if self.variant in rich:
            return f"{both} {rich[self.variant]}"
        return {
            "plain": names[0],
            "stripes": f"{both} striped",
            "checks": f"{both} checked",
            "dots": f"{names[0]} {names[1]}-dotted" if len(names) > 1 else names[0],
            "gradient": f"{' to '.join(names[:2])} gradient",
            "noise": f"{both} mottled",
            "print": f"{names[0]} printed",
            "two_tone": f"{both} two-tone",
        }[self.kind]


@lru_cache(maxsize=256)
def motif_mask(motif: str, text: str) -> Array:
    """(128, 128) float32 cover of a print, in [0, 1]."""
    big = np.zeros((512, 512), np.uint8)
    centre = (256, 256)
    if motif == "letters":
        font, thick = cv2.FONT_HERSHEY_DUPLEX, 34
        (w, h), _ = cv2.getTextSize(text, font, 8.0, thick)
        scale = 8.0 * min(440 / w, 300 / h)
        thick = max(14, int(thick * scale / 8))
        (w, h), _ = cv2.getTextSize(text, font, scale, thick)
        cv2.putText(big, text, (256 - w // 2, 256 + h // 2), font, scale, 255, thick, cv2.LINE_AA)
    elif motif == "disc":
        cv2.circle(big, centre, 210, 255, -1, cv2.LINE_AA)
    elif motif == "ring":
        cv2.circle(big, centre, 180, 255, 64, cv2.LINE_AA)
    elif motif == "bars":
        for k in range(3):
            cv2.rectangle(big, (60, 90 + 130 * k), (452, 160 + 130 * k), 255, -1)
    else:
        angle = np.arange(10) * np.pi / 5
        radius = np.where(np.arange(10) % 2 == 0, 225, 95)
        t = np.linspace(0, 2 * np.pi, 80)
        outlines = {
            "star": np.stack([np.sin(angle) * radius, -np.cos(angle) * radius], 1),
            "heart": 13.5
            * np.stack(
                [16 * np.sin(t) ** 3, -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))], 1
            ),
            "triangle": np.array([[0, -210], [215, 180], [-215, 180]]),
            "bolt": np.array([[60, -230], [-130, 40], [-15, 40], [-70, 230], [130, -60], [10, -60]]),
        }
        cv2.fillPoly(big, [np.round(outlines[motif] + 256).astype(np.int32)], 255, cv2.LINE_AA)
    return cv2.resize(big, (128, 128), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def draw_pattern(
    rng: np.random.Generator, cut_kind: str, span: tuple[float, float], skin: tuple[float, ...] | None = None
) -> Pattern:
    """A pattern that suits a garment.

    Args:
        rng: the garment's.
        cut_kind: ``t-shirt``, ``trousers``, ...: trousers are plain more often; prints sit where they can be seen.
        span: lowest and highest v of the garment.
        skin: the wearer's, whose colour cloth does not take.
    """
    odds = np.array([0.18, 0.16, 0.12, 0.12, 0.09, 0.10, 0.13, 0.10])
    if cut_kind in ("trousers", "shorts"):
        odds = np.array([0.38, 0.12, 0.12, 0.07, 0.07, 0.08, 0.06, 0.10])
    kind = KINDS[rng.choice(len(KINDS), p=odds / odds.sum())]
    three = kind in ("stripes", "checks", "noise") and rng.random() < 0.35
    names, colours = draw_palette(rng, 1 if kind == "plain" else 3 if three else 2, skin)
    scale, angle, place = rng.uniform(0.045, 0.11), 0.0, (0.0, 0.27)
    if kind == "stripes":
        angle = float(rng.choice([0.0, np.pi / 2, np.pi / 4], p=[0.6, 0.3, 0.1]))
    elif kind == "checks":
        scale = rng.uniform(0.06, 0.13)
    elif kind == "dots":
        scale = rng.uniform(0.05, 0.10)
    elif kind == "noise":
        scale = rng.uniform(0.06, 0.14)
    elif kind == "print":
        scale = rng.uniform(0.19, 0.27)
        place = {"trousers": (0.0, -0.34), "shorts": (0.0, -0.24), "skirt": (0.0, -0.22)}.get(cut_kind, (0.0, 0.25))
        scale = scale * (0.72 if cut_kind in ("trousers", "shorts") else 1.0)
    text = "".join(rng.choice(list("ABCDEFGHKLMNOPRSTUVXYZ23456789"), rng.integers(1, 4)))
    motif = "letters" if rng.random() < 0.4 else MOTIFS[rng.integers(1, len(MOTIFS))]
    share = rng.uniform(0.35, 0.6)
    return Pattern(
        kind, colours, names, round(float(scale), 4), angle, round(float(share), 3),
        motif if kind == "print" else "disc", text if kind == "print" and motif == "letters" else "",
        place, span, int(rng.integers(1 << 16)),
    )  # fmt: skip


def enrich(rng: np.random.Generator, pattern: Pattern, skin: tuple[float, ...] | None = None) -> Pattern:
    """Two times in three, a richer form of a pattern that has one; arguments as those of :func:`draw_pattern`."""
    variants = prints.VARIANTS.get(pattern.kind, ())
    if not variants or rng.random() < 1 / 3:
        return pattern
    variant = str(rng.choice(variants))
    if variant == "words":
        return replace(pattern, variant=variant, motif="letters", text=prints.draw_words(rng))
    if variant == "picture":
        return replace(pattern, variant=variant, motif="picture", text="")
    names, colours = draw_palette(rng, int(rng.integers(2, 4)), skin)
    angle = np.pi / 4 if variant == "tartan" and rng.random() < 0.15 else pattern.angle
    scale = round(pattern.scale * float(rng.uniform(0.6, 1.3)), 4)
    return replace(pattern, variant=variant, names=names, colours=colours, angle=angle, scale=scale)
