"""What people wear: garments drawn at random, put together to outfits, and said in words."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data_prep.wardrobe.cuts import WAIST_Y, Cut
from data_prep.wardrobe.fabrics import DENIM, PLAIN, Fabric, draw_fabric
from data_prep.wardrobe.patterns import Pattern, draw_colour, draw_pattern, enrich
from data_prep.wardrobe.skirts import HEMS
from omfa.components import Category


@dataclass(frozen=True)
class Worn:
    """A garment's shape and look."""

    cut: Cut
    pattern: Pattern
    phase: float
    fabric: Fabric = PLAIN

    @property
    def category(self) -> Category:
        """Its category."""
        return Category(self.cut.category)


@dataclass(frozen=True)
class Outfit:
    """What a person wears: one dress, or an upper and a lower garment (in this order); always shoes."""

    worn: tuple[Worn, ...]
    tucked: bool
    shoe_height: float
    shoe_colour: tuple[float, ...]
    sole_colour: tuple[float, ...]
    sock_colour: tuple[float, ...]
    shoe_name: str

    def __post_init__(self) -> None:
        categories = [w.category for w in self.worn]
        if categories not in ([Category.DRESS], [Category.UPPER, Category.LOWER]):
            raise ValueError(f"an outfit is a dress, or upper and lower; got {[c.value for c in categories]}")


_TOPS = {"t-shirt": 0.30, "long-sleeve top": 0.20, "tank top": 0.13, "shirt": 0.19, "hoodie": 0.18}
_ALL_TOPS = {**_TOPS, "tank top": 0.09, "strap top": 0.10, "hoodie": 0.12}
_BOTTOMS = {"trousers": 0.52, "shorts": 0.20, "skirt": 0.28}


def _draw_cut(rng: np.random.Generator, kind: str) -> Cut:
    """A garment's shape: fit, lengths, neckline, flare."""

    def between(low: float, high: float) -> float:
        return round(float(rng.uniform(low, high)), 3)

    def one_of(*choices: Any) -> Any:
        return choices[rng.integers(len(choices))]

    fit = between(0, 1)
    if kind == "t-shirt":
        return Cut(kind, fit, between(-0.10, -0.04), between(0.29, 0.41), one_of("crew", "crew", "scoop", "v"))
    if kind == "long-sleeve top":
        return Cut(kind, fit, between(-0.10, -0.04), between(0.58, 0.715), one_of("crew", "v", "boat"))
    if kind == "tank top":
        return Cut(kind, 0.7 * fit, between(-0.09, -0.03), 0.0, one_of("scoop", "crew", "v"))
    if kind == "strap top":
        return Cut(kind, 0.5 * fit, between(-0.09, -0.03), 0.0, "straps")
    if kind == "shirt":
        return Cut(kind, 0.2 + 0.6 * fit, between(-0.11, -0.06), one_of(0.37, 0.70), "collar")
    if kind == "hoodie":
        return Cut(kind, 0.6 + 0.4 * fit, between(-0.10, -0.05), between(0.68, 0.715), "hood")
    if kind == "trousers":
        return Cut(kind, fit, between(-0.97, -0.86), 0.0)
    if kind == "shorts":
        return Cut(kind, 0.25 + 0.75 * fit, between(-0.50, -0.28), 0.0)
    folds = int(rng.integers(5, 10))
    if kind == "skirt":
        return Cut(kind, fit, between(*HEMS["skirt"]), 0.0, flare=one_of(0.0, 0.12, 0.25, 0.40), folds=folds)
    sleeve = one_of(0.0, 0.0, between(0.28, 0.40), between(0.28, 0.40), between(0.60, 0.70))
    neck = one_of("crew", "scoop", "v", "boat" if sleeve else "crew")
    return Cut("dress", fit, between(*HEMS["dress"]), sleeve, neck, one_of(0.08, 0.20, 0.34), folds)


def _draw_worn(rng: np.random.Generator, kind: str, skin: tuple[float, ...] | None, photographic: bool) -> Worn:
    cut = _draw_cut(rng, kind)
    span = {"upper": (cut.hem, 0.45), "lower": (cut.hem, WAIST_Y), "dress": (cut.hem, 0.45)}[cut.category]
    worn = Worn(cut, draw_pattern(rng, kind, span, skin), float(rng.uniform(0, 2 * np.pi)))
    if not photographic:
        return worn
    fabric, pattern = draw_fabric(rng, kind), enrich(rng, worn.pattern, skin)
    if fabric.weave == "denim":
        blue = DENIM[rng.integers(len(DENIM))]
        pattern = replace(pattern, kind="plain", names=("denim",), colours=(blue,), variant="", motif="disc", text="")
    return replace(worn, pattern=pattern, fabric=fabric)


def draw_outfit(rng: np.random.Generator, skin: tuple[float, ...] | None = None, photographic: bool = False) -> Outfit:
    """An outfit at random, a dress one time in five.

    Args:
        rng: the outfit's.
        skin: the wearer's (RGB), which nobody can take the cloth's colours for.
        photographic: of all that the wardrobe has: strap tops, richer patterns, visible weaves, creases.
    """
    if rng.random() < 0.2:
        worn: tuple[Worn, ...] = (_draw_worn(rng, "dress", skin, photographic),)
    else:
        tops = _ALL_TOPS if photographic else _TOPS
        top = str(rng.choice(list(tops), p=list(tops.values())))
        bottom = str(rng.choice(list(_BOTTOMS), p=list(_BOTTOMS.values())))
        worn = (_draw_worn(rng, top, skin, photographic), _draw_worn(rng, bottom, skin, photographic))
    tucked = len(worn) > 1 and worn[0].cut.kind != "hoodie" and worn[0].cut.fit < 0.6 and rng.random() < 0.35
    name, shoe = draw_colour(rng)
    sole = (0.93, 0.93, 0.91) if rng.random() < 0.6 else (0.12, 0.11, 0.10)
    sock = (0.92, 0.92, 0.92) if rng.random() < 0.5 else (0.12, 0.12, 0.13)
    height = float(rng.choice([0.085, 0.11, 0.17]))
    return Outfit(worn, bool(tucked), height, shoe, sole, sock, f"{name} {'boots' if height > 0.15 else 'shoes'}")


def caption(outfit: Outfit) -> str:
    """The outfit in plain words."""

    def say(w: Worn) -> str:
        sleeve = ""
        if w.cut.kind == "dress":
            sleeve = "sleeveless " if w.cut.sleeve == 0 else "long-sleeved " if w.cut.sleeve > 0.5 else ""
        name = w.cut.kind
        words = f"{w.pattern.words()} {sleeve}{name}"
        article = "" if name in ("trousers", "shorts") else "an " if words[0] in "aeiou" else "a "
        return article + words

    return ", ".join([" and ".join(say(w) for w in outfit.worn), outfit.shoe_name])
