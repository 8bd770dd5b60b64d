"""How surfaces look: painters that give every visible point its colour, its folds, seams and hems, and its label.

A painter takes :class:`Points` and returns a :class:`Painted`; all of it is a function of rest coordinates, so a thing
looks the same in every picture. Legend: n points.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.wardrobe.cuts import COLLAR, GROUND_Y, LEGS, SKIRT, SLEEVE, TORSO, WAIST_Y, Cut
from data_prep.wardrobe.fields import mix, noise
from data_prep.wardrobe.heads import Person, paint_skin
from data_prep.wardrobe.meshes import smoothstep, unit
from data_prep.wardrobe.outfits import Outfit, Worn
from data_prep.wardrobe.patterns import luminance
from omfa.components import Category
from omfa.records.labels import LABEL_OF, Label

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Points:
    """Visible points of one surface: rows (n, 6) and region (n,) as :class:`data_prep.wardrobe.scene.Layer` has them,
    unit normals (n, 3) towards the camera."""

    rows: Array
    region: Array
    normal: Array


@dataclass(frozen=True, eq=False)
class Painted:
    """albedo (n, 3), gain (n,) on it, gloss (n,), normals (n, 3), label (n,) of Label."""

    albedo: Array
    gain: Array
    gloss: Array
    normal: Array
    label: Array


def _painted(p: Points, albedo: Array, label: int | Array, gain: Array | None = None, gloss: float = 0.0) -> Painted:
    n = len(p.rows)
    gain = np.ones(n, np.float32) if gain is None else gain.astype(np.float32)
    full = np.broadcast_to(np.asarray(albedo, np.float32), (n, 3))
    return Painted(full, gain, np.full(n, gloss, np.float32), p.normal, np.broadcast_to(np.uint8(label), (n,)))


def line(distance: Array, width: float, strength: float) -> Array:
    """(n,) brightness of a seam or crease drawn where ``distance`` is near zero."""
    return 1 - strength * smoothstep(width, 0.0, np.abs(distance))


# ---------------------------------------------------------------------------------------------------- bodies


def paint_body(p: Points, person: Person, outfit: Outfit) -> Painted:
    """Skin and socks; skin under cloth takes the cloth's colour, so nobody is ever bare where there is cloth."""
    rest, eyeball, depth, under = p.rows[:, :3], p.rows[:, 3] > 0.5, p.rows[:, 4], p.rows[:, 5]
    albedo = paint_skin(person, rest, eyeball)
    label = np.where(rest[:, 1] > 0.53, Label.FACE, Label.SKIN).astype(np.uint8)
    for g, worn in enumerate(outfit.worn):
        lining = (depth > 0.010) & (np.abs(under - g) < 0.5)
        albedo[lining] = worn.pattern.palette[0] * 0.8
        label[lining] = LABEL_OF[worn.category]
    sock = rest[:, 1] < GROUND_Y + outfit.shoe_height + 0.045
    albedo[sock], label[sock] = outfit.sock_colour, Label.SHOES
    return _painted(p, albedo, label, gloss=0.10)


def paint_hair(p: Points, person: Person) -> Painted:
    """Strands along the hair, or curls."""
    u, v = p.rows[:, 3], p.rows[:, 4]
    curly = person.hair in ("afro", "curly")
    fine = noise(person.seed % 61 + 11, u, v * (1.0 if curly else 0.12), 0.022 if curly else 0.016, 3)
    broad = noise(person.seed % 61 + 12, u, v * (0.8 if curly else 0.2), 0.06, 2)
    tone = (1 + 0.16 * fine + 0.10 * broad)[:, None]
    albedo = np.clip((np.array(person.hair_colour, np.float32) + 0.012) * tone, 0, 1)
    return _painted(p, albedo, Label.HAIR, gloss=0.10 if curly else 0.22)


def paint_shoes(p: Points, outfit: Outfit) -> Painted:
    """A sole, an upper, and the line between them."""
    height, edge = p.rows[:, 4], p.rows[:, 5]
    albedo = np.where(height[:, None] < 0.026, outfit.sole_colour, outfit.shoe_colour)
    gain = line(np.maximum(edge, 0), 0.004, 0.35) * line(height - 0.027, 0.003, 0.25)
    return _painted(p, albedo, Label.SHOES, gain, gloss=0.12)


def paint_plain(p: Points, colour: tuple[float, float, float]) -> Painted:
    """A prop of one colour."""
    return _painted(p, np.array(colour), Label.PROP)


# ---------------------------------------------------------------------------------------------------- clothes


_STITCH = np.array((0.72, 0.50, 0.24), np.float32)  # the thread of denim's seams


def paint_cloth(p: Points, worn: Worn) -> Painted:
    """A garment: its pattern, its seams and hems, folds that bend the light."""
    cut, pattern = worn.cut, worn.pattern
    uv, edge = p.rows[:, 3:5], p.rows[:, 5]
    albedo = pattern.albedo(uv, second_tone(cut, uv, p.region))
    gain = line(edge - 0.018, 0.003, 0.16) * line(np.maximum(edge, 0), 0.004, 0.25)
    details = {
        "shirt": _buttons, "hoodie": _pocket_and_cords, "trousers": _fly_and_pockets, "shorts": _fly_and_pockets,
        "dress": _waist, "t-shirt": _rib, "long-sleeve top": _rib,
    }  # fmt: skip
    if cut.kind in details:
        albedo, gain = details[cut.kind](p, worn, albedo, gain)
    gain = gain * (1 + 0.012 * noise(pattern.seed % 59 + 30, uv[:, 0], uv[:, 1], 0.03, 2))
    gain = gain * worn.fabric.gain(uv[:, 0], uv[:, 1])
    if worn.fabric.weave == "denim":
        albedo = mix(albedo, _STITCH, 0.7 * smoothstep(0.004, 0.002, np.abs(edge - 0.018)))
    dull, label = np.zeros(len(uv), np.float32), np.full(len(uv), np.uint8(LABEL_OF[worn.category]))
    return Painted(albedo, gain.astype(np.float32), dull, folds(p, worn), label)


def folds(p: Points, worn: Worn) -> Array:
    """(n, 3) normals bent by soft folds: longer ones where cloth hangs freely, deeper ones where it is loose."""
    u, v = p.rows[:, 3], p.rows[:, 4]
    long = 0.35 if worn.cut.fit > 0.3 or worn.category == Category.DRESS else 0.7
    depth = 0.10 + 0.16 * worn.cut.fit
    seed = worn.pattern.seed % 59 + 20
    n = p.normal.copy()
    n[:, 0] += depth * noise(seed, u, v * long, 0.11, 1)
    n[:, 1] += 0.6 * depth * noise(seed + 1, u, v * long, 0.11, 1)
    n[:, :2] += worn.fabric.bend(u, v)
    return unit(n)


def second_tone(cut: Cut, uv: Array, region: Array) -> Array:
    """(n,) bool: what of a garment a two-tone pattern has in its second colour."""
    if cut.category == "upper" and cut.sleeve:
        return np.isin(region, [SLEEVE, COLLAR])
    if cut.category == "upper":
        return uv[:, 1] < 0.5 * (cut.hem + 0.42)
    if cut.kind == "dress":
        return region == SKIRT
    if cut.kind == "skirt":
        return uv[:, 1] < 0.55 * cut.hem + 0.45 * WAIST_Y
    side = np.sign(uv[:, 0])  # trousers: a band down the outside of each leg
    angle = (uv[:, 0] - side) * side / 0.095
    return (region == LEGS) & (np.abs(angle - np.pi / 2) < 0.55)


def _buttons(p: Points, worn: Worn, albedo: Array, gain: Array) -> tuple[Array, Array]:
    front = (p.region == TORSO) & (p.rows[:, 2] > 0) & (p.rows[:, 1] < 0.47)
    u, v = p.rows[:, 3], p.rows[:, 4]
    button = front & (np.hypot(u, np.mod(v, 0.085) - 0.042) < 0.0068)
    light = luminance(worn.pattern.colours[0]) > 0.5
    albedo[button] = (0.25, 0.22, 0.20) if light else (0.92, 0.90, 0.85)
    return albedo, gain * np.where(front, line(np.abs(u) - 0.016, 0.0028, 0.22), 1)


def _pocket_and_cords(p: Points, worn: Worn, albedo: Array, gain: Array) -> tuple[Array, Array]:
    front = (p.region == TORSO) & (p.rows[:, 2] > 0)
    u, v, edge = np.abs(p.rows[:, 3]), p.rows[:, 4], p.rows[:, 5]
    above = v - worn.cut.hem
    outline = np.maximum(u - 0.155 + 0.35 * np.maximum(above - 0.11, 0), np.maximum(0.055 - above, above - 0.21))
    cord = front & (np.abs(u - 0.030) < 0.0042) & (v > 0.31) & (v < 0.46)
    albedo[cord] = (0.93, 0.93, 0.92) if luminance(worn.pattern.colours[0]) < 0.6 else (0.20, 0.20, 0.22)
    gain = gain * np.where(front, line(outline, 0.004, 0.30), 1)
    return albedo, gain * np.where((edge < 0.035) & (p.region == TORSO), 0.93, 1)


def _fly_and_pockets(p: Points, worn: Worn, albedo: Array, gain: Array) -> tuple[Array, Array]:
    x, v, front = p.rows[:, 0], p.rows[:, 4], p.rows[:, 2] > 0
    gain = gain * line(v - (WAIST_Y - 0.038), 0.003, 0.22)
    gain = gain * np.where(front & (v > -0.09), line(x, 0.004, 0.35), 1)
    slit = front & (v < WAIST_Y - 0.04) & (v > -0.07)
    return albedo, gain * np.where(slit, line((np.abs(x) - 0.115 - 0.5 * v) / 1.1, 0.0035, 0.28), 1)


def _waist(p: Points, worn: Worn, albedo: Array, gain: Array) -> tuple[Array, Array]:
    return albedo, gain * np.where(np.isin(p.region, [TORSO, SKIRT]), line(p.rows[:, 4] - 0.09, 0.004, 0.2), 1)


def _rib(p: Points, worn: Worn, albedo: Array, gain: Array) -> tuple[Array, Array]:
    collar = (p.rows[:, 5] < 0.016) & (p.rows[:, 1] > 0.2) & (np.abs(p.rows[:, 0]) < 0.16)
    return albedo, gain * np.where(collar, 0.92, 1)
