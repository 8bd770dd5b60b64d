"""Heads: who a person is - face, features painted on the skin, hair with a volume of its own.

Frame and metres as in :mod:`data_prep.wardrobe.garment_meshes`. Legend: n points, V body vertices, T angles around
the head, S steps along a strand.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.wardrobe.fields import noise
from data_prep.wardrobe.meshes import Cloth, smoothstep
from data_prep.wardrobe.tailor import tailor

Array = NDArray[Any]

SKIN_TONES = {
    "very light": (0.93, 0.78, 0.69), "light": (0.88, 0.70, 0.58), "tan": (0.78, 0.58, 0.44),
    "brown": (0.60, 0.41, 0.29), "dark brown": (0.46, 0.30, 0.21), "deep": (0.35, 0.22, 0.16),
}  # fmt: skip
HAIR_COLOURS = {
    "black": (0.06, 0.05, 0.05), "dark brown": (0.17, 0.10, 0.07), "brown": (0.31, 0.19, 0.11),
    "auburn": (0.41, 0.17, 0.08), "ginger": (0.66, 0.31, 0.11), "blond": (0.76, 0.59, 0.34),
    "light blond": (0.88, 0.76, 0.53), "grey": (0.52, 0.51, 0.50), "white": (0.84, 0.83, 0.81),
    "blue": (0.17, 0.29, 0.62), "pink": (0.84, 0.40, 0.58),
}  # fmt: skip
EYE_COLOURS = {"brown": (0.24, 0.13, 0.07), "hazel": (0.40, 0.30, 0.13), "green": (0.26, 0.42, 0.26),
               "blue": (0.25, 0.42, 0.62), "grey": (0.42, 0.47, 0.50)}  # fmt: skip
HAIR_STYLES = ("bald", "cropped", "short", "quiff", "bob", "long", "ponytail", "bun", "afro", "curly")

CENTRE = np.array([0.0, 0.685, 0.045])  # of the skull
EYE = np.array([0.031, 0.669])  # left eye, x and y


@dataclass(frozen=True)
class Person:
    """Who somebody is: everything that stays the same from picture to picture but the clothes.

    Args:
        betas: (10,) body shape.
        morph: offsets of the face's features, standard normal.
        skin, hair_colour, eye_colour, lip_colour: RGB in [0, 1].
        names: words for skin, hair colour and hair style.
        hair: one of HAIR_STYLES.
        volume: of the hair, about 1.
        length: of the hair, in [0, 1].
        parting: where it parts, radians from the middle.
        brow: thickness of the brows, about 1.
        beard: 0 none to 1 full.
        freckles: 0 to 1.
        seed: of spots and strands.
    """

    betas: tuple[float, ...]
    morph: tuple[float, ...]
    skin: tuple[float, ...]
    hair_colour: tuple[float, ...]
    eye_colour: tuple[float, ...]
    lip_colour: tuple[float, ...]
    names: tuple[str, str]
    hair: str
    volume: float
    length: float
    parting: float
    brow: float
    beard: float
    freckles: float
    seed: int


def draw_person(rng: np.random.Generator) -> Person:
    """A person at random."""

    def pick(table: dict[str, tuple[float, float, float]], odds: list[float] | None = None) -> tuple[str, Array]:
        names = list(table)
        p = None if odds is None else np.array(odds) / sum(odds)
        name = names[rng.choice(len(names), p=p)]
        return name, np.array(table[name])

    skin_name, skin = pick(SKIN_TONES)
    skin = np.clip(skin * rng.uniform(0.94, 1.06) + rng.normal(0, 0.012, 3), 0.08, 0.97)
    dark = list(SKIN_TONES).index(skin_name) >= 3
    odds = [6, 4, 2, 0.5, 0.2, 0.5, 0.2, 1, 0.5, 0.3, 0.3] if dark else [2, 3, 3, 1.5, 1.2, 2.5, 1.2, 1, 0.7, 0.3, 0.3]
    hair_name, hair = pick(HAIR_COLOURS, odds)
    hair = np.clip(hair * rng.uniform(0.85, 1.15), 0.03, 0.95)
    _, eye = pick(EYE_COLOURS, [6, 1, 0.3, 0.3, 0.3] if dark else [2, 1.2, 1, 2, 1])
    style = HAIR_STYLES[rng.choice(10, p=np.array([5, 7, 14, 10, 13, 16, 11, 9, 7, 8]) / 100)]
    bearded = style in ("bald", "cropped", "short", "quiff", "afro") and rng.random() < 0.45
    lips = skin * np.array([0.86, 0.62, 0.62]) + np.array([0.06, 0.0, 0.01])
    if not bearded and rng.random() < 0.3:
        lips = 0.45 * lips + 0.55 * np.array([0.70, 0.14, 0.22])

    def rgb(a: Array) -> tuple[float, ...]:
        return tuple(round(float(x), 4) for x in np.clip(a, 0, 1))

    return Person(
        betas=tuple(float(b) for b in np.clip(rng.normal(0, 0.9, 10), -1.8, 1.8).round(4)),
        morph=tuple(float(m) for m in np.clip(rng.normal(0, 1, 13), -1.8, 1.8).round(4)),
        skin=rgb(skin),
        hair_colour=rgb(hair),
        eye_colour=rgb(eye),
        lip_colour=rgb(lips),
        names=(f"{skin_name} skin", f"{hair_name} {style} hair" if style != "bald" else "no hair"),
        hair=style,
        volume=float(rng.uniform(0.75, 1.3)),
        length=float(rng.random()),
        parting=float(rng.uniform(-0.5, 0.5)),
        brow=float(rng.uniform(0.6, 1.4)),
        beard=float(rng.uniform(0.45, 1)) if bearded else 0.0,
        freckles=float(rng.uniform(0.3, 1)) if rng.random() < 0.15 else 0.0,
        seed=int(rng.integers(1 << 16)),
    )


# ---------------------------------------------------------------------------------------------------- face

# centre (x, y, z), reach, direction and size of one standard deviation; x mirrored for the other side
_FEATURES = (
    ((0.014, 0.628, 0.185), 0.016, (0.0030, 0.0, 0.0)),  # width of the nose
    ((0.000, 0.628, 0.205), 0.020, (0.0, -0.0015, 0.0045)),  # its length
    ((0.000, 0.655, 0.185), 0.018, (0.0, 0.0, 0.0035)),  # its bridge
    ((0.055, 0.575, 0.090), 0.034, (0.0050, 0.0, 0.0)),  # width of the jaw
    ((0.000, 0.553, 0.150), 0.030, (0.0, -0.0055, 0.0020)),  # chin, down
    ((0.000, 0.560, 0.160), 0.022, (0.0, 0.0, 0.0040)),  # chin, forward
    ((0.050, 0.630, 0.130), 0.024, (0.0040, 0.0, 0.0025)),  # cheekbones
    ((0.026, 0.593, 0.155), 0.016, (0.0035, 0.0, 0.0)),  # width of the mouth
    ((0.000, 0.593, 0.175), 0.015, (0.0, 0.0, 0.0025)),  # fullness of the lips
    ((0.030, 0.690, 0.160), 0.022, (0.0, -0.0015, 0.0030)),  # brow ridge
    ((0.090, 0.660, 0.050), 0.022, (0.0050, 0.0, 0.0)),  # ears
    ((0.070, 0.720, 0.070), 0.070, (0.0045, 0.0, 0.0)),  # width of the head
    ((0.024, 0.592, 0.155), 0.011, (0.0010, 0.0032, -0.0010)),  # corners of the mouth, up
)


@lru_cache(maxsize=1)
def _morph_basis() -> tuple[Array, Array]:
    """Ids of the head's vertices (h,) and their displacement per feature (13, h, 3)."""
    t = tailor()
    ids = np.where(t.template[:, 1] > 0.50)[0]
    p = t.template[ids]
    basis = np.zeros((len(_FEATURES), len(ids), 3), np.float32)
    for k, (centre, reach, direction) in enumerate(_FEATURES):
        for side in (1, -1):
            c = np.array(centre) * [side, 1, 1]
            d = np.array(direction) * [side, 1, 1]
            share = np.exp(-((p - c) ** 2).sum(1) / (2 * reach**2)) * (0.5 if centre[0] == 0 else 1)
            basis[k] += share[:, None] * d
    eyes = np.isin(t.dominant[ids], [23, 24])  # eyeballs keep their form
    basis[:, eyes] = 0
    return ids, basis


def face_shape(person: Person) -> Array:
    """(V, 3) float32 what the person's features add to the head at rest."""
    ids, basis = _morph_basis()
    out = np.zeros_like(tailor().template)
    size = np.array(person.morph, np.float32)
    size[-1] = 1.3 + 0.5 * size[-1]  # the template looks glum
    out[ids] = np.einsum("k,kvc->vc", size, basis)
    return out


def paint_skin(person: Person, p: Array, eyeball: Array) -> Array:
    """Colours of skin, lips, brows, eyes, beard and cropped hair.

    Args:
        person: whose skin.
        p: (n, 3) points on the body's rest surface.
        eyeball: (n,) bool, points on the eyes.

    Returns:
        (n, 3) float32 in [0, 1].
    """
    skin = np.array(person.skin, np.float32)
    out: Array = np.repeat(skin[None], len(p), 0)
    blotch = noise(person.seed % 61, p[:, 0] + p[:, 2], p[:, 1], 0.12, 2)
    out *= (1 + 0.02 * blotch)[:, None]
    head = np.where((p[:, 1] > 0.50) & (np.abs(p[:, 0]) < 0.13))[0]
    if not len(head):
        return out
    q = p[head]
    side, y, z = np.abs(q[:, 0]), q[:, 1], q[:, 2]
    face = np.repeat(skin[None], len(q), 0)
    front = smoothstep(0.07, 0.11, z)

    def lay(colour: Any, cover: Array) -> None:
        nonlocal face
        face = face * (1 - cover[:, None]) + np.asarray(colour, np.float32) * cover[:, None]

    def spot(cx: float, cy: float, rx: float, ry: float) -> Array:
        return np.exp(-(((side - cx) / rx) ** 2 + ((y - cy) / ry) ** 2)) * front

    blush = skin * np.array([1.0, 0.78, 0.76], np.float32)
    lay(blush, 0.55 * spot(0.047, 0.622, 0.02, 0.017) + 0.4 * spot(0, 0.63, 0.015, 0.016))
    lay(skin * np.array([0.80, 0.72, 0.70], np.float32), 0.75 * spot(EYE[0], EYE[1] + 0.003, 0.021, 0.013))
    if person.freckles:
        specks = noise(person.seed % 61 + 3, q[:, 0], y, 0.02, 1)
        lay(skin * 0.72, person.freckles * smoothstep(1.0, 1.5, specks) * spot(0.03, 0.635, 0.04, 0.03) * 0.8)
    hair = np.array(person.hair_colour, np.float32)
    if person.beard:
        grain = 0.94 + 0.05 * noise(person.seed % 61 + 5, q[:, 0], y, 0.012, 1)
        jaw = smoothstep(0.622, 0.600, y - 0.55 * np.maximum(side - 0.03, 0)) * smoothstep(0.525, 0.548, y)
        jaw = jaw * smoothstep(0.035, 0.06, z)
        cover = np.clip(jaw * grain * (0.35 + 0.6 * person.beard), 0, 0.97)
        lay(hair * 1.05 + 0.02, cover)
    lip = np.array(person.lip_colour, np.float32)
    line = 0.5935 - 0.03 * side**1.2
    upper = smoothstep(0.0, 0.0022, y - line + 0.0012) * smoothstep(
        0.0105, 0.0085, (y - line) * (1 + (side / 0.026) ** 4) + 0.001
    )
    lower = smoothstep(0.0, 0.0022, line - y + 0.0012) * smoothstep(
        0.0140, 0.0115, (line - y) * (1 + (side / 0.025) ** 4)
    )
    mouth = smoothstep(0.0275, 0.0245, side) * smoothstep(0.12, 0.135, z)
    lay(lip, np.clip(np.maximum(upper, lower) * mouth, 0, 1) * 0.9)
    lay(lip * 0.35, smoothstep(0.0022, 0.0008, np.abs(y - line)) * mouth * 0.85)
    arch = 0.6875 + 0.0055 * np.sin(np.clip((side - 0.013) / 0.042, 0, 1) * 2.3)
    thick = 0.0042 * person.brow * (1 - 0.45 * smoothstep(0.03, 0.058, side))
    brow = (
        smoothstep(thick * 1.25, thick * 0.75, np.abs(y - arch))
        * smoothstep(0.011, 0.015, side)
        * smoothstep(0.060, 0.052, side)
    )
    brow_colour = hair * 0.75 if person.hair_colour[0] < 0.7 else hair * 0.62
    lay(np.minimum(brow_colour, skin * 0.75), brow * front * 0.9)
    ring = np.hypot((side - EYE[0]) / 0.0170, (y - EYE[1] - 0.0005) / 0.0088)
    lash = smoothstep(0.78, 0.88, ring) * smoothstep(1.16, 1.02, ring) * np.where(y > EYE[1] - 0.001, 0.9, 0.35)
    lay((0.09, 0.06, 0.05), lash * front)
    if person.hair == "cropped":
        line = hairline(np.arctan2(q[:, 0], z - CENTRE[2]))
        polar = np.arctan2(np.hypot(q[:, 0], z - CENTRE[2]), y - CENTRE[1])
        ear = (side > 0.071) & (y < 0.70)
        lay(hair * 1.1, smoothstep(0.06, -0.06, polar - line) * np.where(ear, 0, 0.88))
    eyes = eyeball[head]
    r = np.hypot(side - EYE[0], y - EYE[1])
    iris = np.array(person.eye_colour, np.float32)
    white = np.array([0.90, 0.88, 0.86], np.float32)
    ball: Array = np.repeat(white[None], len(q), 0)
    for colour, radius in ((iris * 0.45, 0.0075), (iris * 1.15, 0.0066), (np.full(3, 0.03), 0.0034)):
        cover = smoothstep(radius + 0.0005, radius - 0.0005, r)[:, None]
        ball = ball * (1 - cover) + colour * cover
    glint = np.exp(-(((q[:, 0] - np.sign(q[:, 0]) * EYE[0] - 0.002) ** 2 + (y - EYE[1] - 0.003) ** 2) / 0.0012**2))
    ball = ball + 0.9 * glint[:, None]
    out[head] = np.where(eyes[:, None], ball, face * (1 + 0.02 * blotch[head])[:, None])
    return np.clip(out, 0, 1)


# ---------------------------------------------------------------------------------------------------- hair

_LINE_AT = np.radians([0, 18, 34, 48, 60, 72, 80, 92, 106, 140, 180])
_LINE = np.radians([63, 61, 57, 62, 72, 86, 93, 90, 118, 132, 136])


def hairline(theta: Array) -> Array:
    """(n,) polar angle (radians from straight up, about CENTRE) where hair ends; theta 0 is the front."""
    return np.interp(np.abs(np.mod(theta + np.pi, 2 * np.pi) - np.pi), _LINE_AT, _LINE)


@lru_cache(maxsize=1)
def _skull() -> tuple[Array, Array, Array]:
    """Angles around (T,), polar angles (S,) and the skull's radius there (T, S), ears left out."""
    t = tailor()
    v = t.template
    ear = (np.abs(v[:, 0]) > 0.072) & (v[:, 1] < 0.705) & (v[:, 1] > 0.6)
    head = np.isin(t.dominant, [12, 15, 22]) & ~ear & (v[:, 1] > 0.53)
    d = v[head] - CENTRE
    radius = np.linalg.norm(d, axis=1)
    unit = d / radius[:, None]
    theta = np.linspace(-np.pi, np.pi, 65)
    polar = np.linspace(0, np.radians(150), 40)
    grid = np.stack(
        [
            np.sin(polar) * np.sin(theta[:, None]),
            np.cos(polar) + 0 * theta[:, None],
            np.sin(polar) * np.cos(theta[:, None]),
        ],
        -1,
    )
    near = np.einsum("tsc,vc->tsv", grid, unit)
    close = near > np.minimum(near.max(-1, keepdims=True), np.cos(0.10)) - 1e-6
    weight = np.where(close, np.exp((near - 1) / 0.004), 0)
    return theta, polar, (weight * radius).sum(-1) / weight.sum(-1)


def _skull_radius(theta: Array, polar: Array) -> Array:
    """Bilinear look-up of the skull's radius at angles of equal shape."""
    grid_t, grid_p, table = _skull()
    a = (np.mod(theta + np.pi, 2 * np.pi)) / (grid_t[1] - grid_t[0])
    b = np.clip(polar / (grid_p[1] - grid_p[0]), 0, len(grid_p) - 1.001)
    i, j = np.clip(a.astype(int), 0, len(grid_t) - 2), b.astype(int)
    s, t = a - i, b - j
    near = table[i, j] * (1 - t) + table[i, j + 1] * t
    return near * (1 - s) + (table[i + 1, j] * (1 - t) + table[i + 1, j + 1] * t) * s


def make_hair(person: Person, shape: Array) -> Cloth | None:
    """Hair as one or two shells around the skull, hanging where it is long.

    Args:
        person: whose hair.
        shape: (V, 3) what the person's shape adds to the template at rest.

    Returns:
        A cloth whose uv run around the head and along the strands; None where there is no hair to stand out.
    """
    style, volume = person.hair, person.volume
    if style in ("bald", "cropped"):
        return None
    theta = np.linspace(-np.pi, np.pi, 65)
    steps = np.linspace(0, 1, 30)
    turn = np.abs(theta)
    tufts = noise(person.seed % 61 + 9, theta * 0.085, 0 * theta, 0.03, 2)
    tufts[-1] = tufts[0]
    end = hairline(theta) + (0.035 if style not in ("bun", "ponytail") else 0.015) * tufts
    top = {"short": 0.016, "quiff": 0.022, "bob": 0.020, "long": 0.018, "ponytail": 0.010, "bun": 0.010, "afro": 0.062,
           "curly": 0.034}[style] * volume  # fmt: skip
    side = {"short": 0.009, "quiff": 0.005, "bob": 0.022, "long": 0.019, "ponytail": 0.008, "bun": 0.008, "afro": 0.058,
            "curly": 0.032}[style] * (0.6 + 0.4 * volume)  # fmt: skip
    hang = np.zeros_like(theta)
    if style in ("bob", "long", "curly"):
        drop = {
            "bob": 0.10 + 0.06 * person.length,
            "long": 0.20 + 0.17 * person.length,
            "curly": 0.06 + 0.22 * person.length,
        }[style]
        hang = drop * smoothstep(0.80, 1.25, turn)
        end = np.where(
            turn > 0.8, end * (1 - smoothstep(0.8, 1.25, turn)) + np.radians(96) * smoothstep(0.8, 1.25, turn), end
        )
    fringe = style in ("bob", "long") and person.seed % 3 == 0
    if fringe:
        end = end + np.radians(17) * smoothstep(0.85, 0.55, turn)
    if style == "afro":
        end = np.maximum(end, np.radians(64))
    skull_end = _skull_radius(theta, end)
    arc = end * skull_end
    path = steps[None, :] * (arc + hang)[:, None]
    polar = np.minimum(path / np.maximum(skull_end, 1e-6)[:, None], end[:, None])
    below = np.maximum(path - arc[:, None], 0)
    around = np.repeat(theta[:, None], len(steps), 1)
    radius = _skull_radius(around, polar)
    lift = side + (top - side) * np.cos(np.minimum(polar, np.pi / 2)) ** 1.5
    if style == "quiff":
        lift = lift + 0.028 * volume * np.exp(-((around / 0.9) ** 2) - ((polar - 0.75) / 0.4) ** 2)
    if style in ("short", "bob", "long"):  # a soft parting
        away = np.abs(around - person.parting * np.sign(np.cos(around))) * np.sin(polar)
        lift = lift - 0.005 * np.exp(-((away / 0.10) ** 2)) * (np.cos(around) > 0)
    free = hang > 0.02
    taper = np.where(free[:, None], 1.0, smoothstep(1.0, 0.80, steps)[None, :] * 0.92 + 0.08)
    if fringe:
        taper = np.maximum(taper, (0.55 * (turn < 0.8))[:, None])
    if style == "afro":
        taper = np.maximum(taper, np.sqrt(np.maximum(1 - steps**6, 0.0))[None, :])
    bumps = {"afro": 0.006, "curly": 0.007}.get(style, 0.002)
    flat = noise(person.seed % 61 + 7, around.ravel() * 0.09, path.ravel(), 0.06, 2).reshape(around.shape)
    flat[-1] = flat[0]
    lift = lift * taper + bumps * flat * np.minimum(taper, 1) * smoothstep(0, 0.15, steps)[None, :]
    reach = radius + np.maximum(lift, 0.0015)
    flat_radius = np.sin(polar) * reach
    y = CENTRE[1] + np.cos(polar) * reach - below
    behind = np.maximum(-np.cos(around), 0)
    flat_radius = (
        flat_radius + 0.072 * behind * smoothstep(0.61, 0.50, y) + 0.10 * below * (0.3 if style != "curly" else 0.55)
    )
    if style == "bob":
        flat_radius = flat_radius - 0.25 * below * smoothstep(0.5, 1.0, below / (hang.max() + 1e-9))
    points = np.stack([np.sin(around) * flat_radius, y, CENTRE[2] + np.cos(around) * flat_radius], -1).reshape(-1, 3)
    uv = np.stack([around * 0.085, path], -1).reshape(-1, 2)
    edge = np.repeat(1 - steps[None, :], len(theta), 0).reshape(-1) * 0.1
    faces = _grid_faces(len(theta), len(steps))
    if style in ("ponytail", "bun"):
        tail, tail_uv, tail_faces = _tail(style, person)
        faces = np.concatenate([faces, tail_faces + len(points)])
        points, uv = np.concatenate([points, tail]), np.concatenate([uv, tail_uv])
        edge = np.concatenate([edge, np.full(len(tail), 0.05)])
    return _attach(points, uv, edge, faces, shape)


def _grid_faces(rows: int, columns: int) -> Array:
    r, c = np.meshgrid(np.arange(rows - 1), np.arange(columns - 1), indexing="ij")
    i = r * columns + c
    quads = np.stack([i, i + 1, i + columns, i + columns + 1], -1).reshape(-1, 4)
    return np.concatenate([quads[:, [0, 1, 2]], quads[:, [1, 3, 2]]])


def _tail(style: str, person: Person) -> tuple[Array, Array, Array]:
    """A ponytail or a bun behind the crown: points, uv, faces."""
    high = 0.5 + 0.5 * person.length
    angle = np.linspace(0, 2 * np.pi, 17)
    s = np.linspace(0, 1, 18)
    if style == "bun":
        ball = 0.036 + 0.012 * (person.volume - 0.75)
        centre = np.array([0, 0.70 + 0.085 * high, -0.075 + 0.055 * high])
        polar = s * np.pi
        ring = np.stack(
            [
                np.sin(angle)[:, None] * np.sin(polar),
                np.cos(polar) + 0 * angle[:, None],
                np.cos(angle)[:, None] * np.sin(polar),
            ],
            -1,
        )
        points = centre + ball * ring * [1, 0.9, 0.9]
    else:
        length = 0.20 + 0.18 * person.length
        spine_y = 0.70 + 0.055 * high + 0.03 * np.sin(np.minimum(s * 4, 1) * np.pi) - length * np.maximum(s - 0.08, 0)
        spine_z = -0.060 + 0.02 * high - 0.055 * np.minimum(s * 4, 1) + 0.015 * s - 0.02 * smoothstep(0.3, 1, s)
        belly = 0.014 + 0.022 * person.volume * np.sin(np.clip(s * 1.15, 0, 1) * np.pi) ** 0.7
        r = belly * smoothstep(1.05, 0.85, s) + 0.002
        points = np.stack(
            [
                np.sin(angle)[:, None] * r * 1.1,
                spine_y + 0 * angle[:, None],
                spine_z + np.cos(angle)[:, None] * r * 0.8,
            ],
            -1,
        )
    uv = np.stack([np.repeat(angle[:, None] * 0.03, len(s), 1), np.repeat(s[None] * 0.3, len(angle), 0)], -1)
    return points.reshape(-1, 3), uv.reshape(-1, 2), _grid_faces(len(angle), len(s))


def _attach(points: Array, uv: Array, edge: Array, faces: Array, shape: Array) -> Cloth:
    """Hair moves with the head, its lower end with neck and chest; it takes the head's own size and place."""
    t = tailor()
    head = (t.template[:, 1] > 0.60) & np.isin(t.dominant, [15])
    a, b = t.template[head], (t.template + shape)[head]
    scale = (b - b.mean(0)).std(0) / (a - a.mean(0)).std(0)
    fitted = (points - a.mean(0)) * np.maximum(scale, 0.9) + b.mean(0)
    weights = np.zeros((len(points), 55), np.float32)
    share = smoothstep(0.42, 0.585, points[:, 1])
    weights[:, 15] = share
    weights[:, 12] = (1 - share) * smoothstep(0.25, 0.5, points[:, 1])
    weights[:, 9] = 1 - weights[:, 15] - weights[:, 12]
    rest, crown = points.astype(np.float32), int(t.template[:, 1].argmax())
    return Cloth(
        rest, (fitted - points).astype(np.float32), weights, np.full(len(points), crown), faces, uv.astype(np.float32),
        edge.astype(np.float32), np.zeros(len(faces), np.int64),
    )  # fmt: skip
