"""The synthetic wardrobe: any number of records of dressed people, with exact ground truth, rendered from nothing.

``make_outfit(seed, index, size)`` is the whole world as a pure function: one person in one outfit, in several poses,
with the garments' shop pictures, a portrait, pose maps, parameters and masks. Writing files is a thin layer above it.
Everyone is always dressed: an upper and a lower garment, or a dress, and shoes.

Legend: H W pixels, n visible points, N vertices, M faces.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from data_prep.garment_meshes import (
    COLLAR,
    GROUND_Y,
    LEGS,
    SKIRT,
    SLEEVE,
    TORSO,
    WAIST_Y,
    Cloth,
    Cut,
    Garment,
    joint_transforms,
    make_garment,
    make_shoes,
    skin,
    smoothstep,
    tailor,
    vertex_normals,
)
from data_prep.heads import Person, draw_person, face_shape, make_hair, paint_skin
from data_prep.patterns import NAMED_COLOURS, Pattern, draw_colour, draw_pattern, luminance, noise
from data_prep.run import Outcome, run_stage, write_bytes, write_image
from omfa.body import JOINT_LIMITS, NAMED_POSES, BodyParameters, camera, clamp_pose, look_at, rotation, rotation_vector
from omfa.components import Category
from omfa.pose_render import rasterise, render_pose_map
from omfa.prepared import FaceRef, GarmentRef, PoseRef, Record

Array = NDArray[Any]

VIEWS = 4  # pictures of each outfit
OUTFITS = 2  # outfits of each person
TEST_EVERY = 10  # every tenth person is held out

BACKGROUND, SKIN, FACE, HAIR, UPPER, LOWER, DRESS, SHOES, PROP = range(9)  # values of the label map
LABELS = ("background", "skin", "face", "hair", "upper", "lower", "dress", "shoes", "prop")
_LABEL_OF = {Category.UPPER: UPPER, Category.LOWER: LOWER, Category.DRESS: DRESS}
_PART_OF_JOINT = np.array([1, 8, 9, 1, 10, 11, 1, 12, 13, 1, 12, 13, 0, 1, 1, 0, 2, 3, 4, 5, 6, 7, 0, 0, 0] + [6] * 15 + [7] * 15)


# ---------------------------------------------------------------------------------------------------- outfits


@dataclass(frozen=True)
class Worn:
    """A garment's shape and look."""

    cut: Cut
    pattern: Pattern
    phase: float

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
_BOTTOMS = {"trousers": 0.52, "shorts": 0.20, "skirt": 0.28}


def _draw_cut(rng: np.random.Generator, kind: str) -> Cut:
    fit = float(rng.uniform(0, 1))
    folds = int(rng.integers(5, 10))
    if kind == "t-shirt":
        return Cut(kind, fit, rng.uniform(-0.10, -0.04), rng.uniform(0.29, 0.41), str(rng.choice(["crew", "crew", "scoop", "v"])))
    if kind == "long-sleeve top":
        return Cut(kind, fit, rng.uniform(-0.10, -0.04), rng.uniform(0.58, 0.715), str(rng.choice(["crew", "v", "boat"])))
    if kind == "tank top":
        return Cut(kind, fit * 0.7, rng.uniform(-0.09, -0.03), 0.0, str(rng.choice(["scoop", "crew", "v"])))
    if kind == "shirt":
        return Cut(kind, 0.2 + 0.6 * fit, rng.uniform(-0.11, -0.06), float(rng.choice([0.37, 0.70])), "collar")
    if kind == "hoodie":
        return Cut(kind, 0.6 + 0.4 * fit, rng.uniform(-0.10, -0.05), rng.uniform(0.68, 0.715), "hood")
    if kind == "trousers":
        return Cut(kind, fit, rng.uniform(-0.97, -0.86), 0.0)
    if kind == "shorts":
        return Cut(kind, 0.25 + 0.75 * fit, rng.uniform(-0.50, -0.28), 0.0)
    if kind == "skirt":
        return Cut(kind, fit, rng.uniform(-0.78, -0.34), 0.0, flare=float(rng.choice([0.0, 0.12, 0.25, 0.40])), folds=folds)
    sleeve = float(rng.choice([0.0, rng.uniform(0.28, 0.40), rng.uniform(0.60, 0.70)], p=[0.4, 0.4, 0.2]))
    neck = str(rng.choice(["crew", "scoop", "v", "boat"]))
    neck = "crew" if neck == "boat" and sleeve == 0 else neck
    return Cut("dress", fit, rng.uniform(-0.85, -0.36), sleeve, neck, float(rng.choice([0.08, 0.2, 0.34])), folds)


def _draw_worn(rng: np.random.Generator, kind: str) -> Worn:
    cut = _draw_cut(rng, kind)
    span = {"upper": (cut.hem, 0.45), "lower": (cut.hem, WAIST_Y), "dress": (cut.hem, 0.45)}[cut.category]
    span = (round(float(span[0]), 3), span[1])
    return Worn(cut, draw_pattern(rng, kind, span), float(rng.uniform(0, 2 * np.pi)))


def draw_outfit(rng: np.random.Generator) -> Outfit:
    """An outfit at random: a dress one time in five."""
    if rng.random() < 0.2:
        worn: tuple[Worn, ...] = (_draw_worn(rng, "dress"),)
    else:
        top = str(rng.choice(list(_TOPS), p=list(_TOPS.values())))
        bottom = str(rng.choice(list(_BOTTOMS), p=list(_BOTTOMS.values())))
        worn = (_draw_worn(rng, top), _draw_worn(rng, bottom))
    tucked = len(worn) > 1 and worn[0].cut.kind not in ("hoodie",) and worn[0].cut.fit < 0.6 and rng.random() < 0.35
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


# ---------------------------------------------------------------------------------------------------- poses


def draw_pose(rng: np.random.Generator) -> tuple[str, Array]:
    """A plausible pose in the model frame: a named pose, loosened, or arms and legs drawn freely.

    Returns:
        A word for it and the (55, 3) pose, inside the joints' limits.
    """
    odds = {
        "standing": 0.26, "contrapposto": 0.10, "walking": 0.12, "hands_on_hips": 0.06, "hand_on_hip": 0.07, "a_pose": 0.06,
        "waving": 0.03, "arms_raised": 0.03, "arms_crossed": 0.03, "sitting": 0.05, "lunge": 0.02, "free": 0.17,
    }  # fmt: skip
    odds = {k: p for k, p in odds.items() if k == "free" or k in NAMED_POSES}
    p = np.array(list(odds.values()))
    name = str(rng.choice(list(odds), p=p / p.sum()))
    pose = NAMED_POSES["standing" if name == "free" else name].astype(np.float64).copy()
    if name == "free":
        for side, (shoulder, elbow) in ((1, (16, 18)), (-1, (17, 19))):
            pose[shoulder] = np.radians([rng.uniform(-20, 20), side * rng.uniform(-35, 15), side * rng.uniform(-72, 30)])
            pose[elbow] = np.radians([rng.uniform(-20, 20), side * rng.uniform(-100, 0), 0])
        pose[1] = np.radians([rng.uniform(-22, 10), 0, rng.uniform(-2, 8)])
        pose[2] = np.radians([rng.uniform(-22, 10), 0, rng.uniform(-8, 2)])
        pose[4], pose[5] = np.radians([rng.uniform(0, 25), 0, 0]), np.radians([rng.uniform(0, 25), 0, 0])
    if rng.random() < 0.5:
        from omfa.body import mirror_pose

        pose = mirror_pose(pose).astype(np.float64)
    loose = np.zeros((55, 3))
    loose[[3, 6, 9]] = rng.normal(0, 2.5, (3, 3))
    loose[[12, 15]] = rng.normal(0, (4, 7, 3), (2, 3))
    loose[[16, 17]] = rng.normal(0, 5, (2, 3))
    loose[[18, 19]] = rng.normal(0, (4, 6, 0), (2, 3))
    loose[[1, 2]] = rng.normal(0, (3, 3, 1.5), (2, 3))
    loose[[4, 5]] = np.abs(rng.normal(0, (3, 0, 0), (2, 3)))
    return name, clamp_pose(pose + np.radians(loose))


def draw_yaw(rng: np.random.Generator, view: int) -> float:
    """Degrees in (-180, 180]: the first view near the front, the others spread over the full turn."""
    draw = rng.random()
    if view == 0:
        yaw = rng.normal(0, 16)
    elif draw < 0.45:
        yaw = rng.normal(0, 28)
    elif draw < 0.70:
        yaw = rng.normal(0, 65)
    else:
        yaw = rng.uniform(-180, 180)
    return float(round(180 - (180 - yaw) % 360, 2))


# ---------------------------------------------------------------------------------------------------- the wardrobe


@dataclass(frozen=True, eq=False)
class Model:
    """A person dressed in an outfit, ready to be posed."""

    person: Person
    outfit: Outfit
    shape: Array  # (V, 3) what body shape and face add to the template
    joints: Array  # (55, 3) at rest
    garments: tuple[Garment, ...]
    shoes: Cloth
    hair: Cloth | None
    body_faces: Array  # the skin that is not under cloth
    garment_faces: tuple[Array, ...]  # ids of each garment's faces that are not under another garment
    under: Array  # (V, 2) how deep the skin lies under cloth, metres; which garment covers it most


@lru_cache(maxsize=1)
def _directions() -> tuple[Array, Array]:
    """Shape directions (V, 3, 10) and the joints' (55, 3, 10)."""
    model = tailor().body.model
    dirs = model.shapedirs.cpu().numpy()[..., :10].astype(np.float32)
    regress = model.J_regressor.cpu().numpy().astype(np.float32)
    return dirs, np.einsum("jv,vck->jck", regress, dirs)


@lru_cache(maxsize=1)
def _expressions() -> Array:
    """(V, 3, 10) of the head's vertices (zero elsewhere)."""
    return tailor().body.model.expr_dirs.cpu().numpy()[..., :10].astype(np.float32)


def dress(person: Person, outfit: Outfit) -> Model:
    """Sew the outfit for the person, and leave out what is hidden under it."""
    t = tailor()
    dirs, joint_dirs = _directions()
    betas = np.array(person.betas, np.float32)
    body_shape = np.einsum("vck,k->vc", dirs, betas)
    shape = body_shape + face_shape(person)
    joints = t.joints + joint_dirs @ betas
    garments = tuple(make_garment(w.cut, body_shape, w.phase) for w in outfit.worn)
    shoes, shoe_keep = make_shoes(body_shape, outfit.shoe_height)
    under = np.stack([g.keep(t.template) for g in garments] + [shoe_keep(t.template)])
    upper_ids = ~np.isin(t.dominant, [15, 22, 23, 24]) & (np.arange(55)[t.dominant] < 25)
    hidden = ((under[:-1] > 0.03).any(0) | (under[-1] > 0.012)) & upper_ids
    body_faces = t.faces[~hidden[t.faces].all(1)]
    visible = []
    for k, garment in enumerate(garments):
        shown = np.ones(len(garment.faces), bool)
        if len(garments) == 2 and garment.cloth is not None:
            p = garment.cloth.rest - 0  # close enough to the template to ask how deep it lies
            count = len(garment.cloth.faces)
            if k == 0 and outfit.tucked:
                deep = p[:, 1] < WAIST_Y - 0.03
            elif k == 1 and not outfit.tucked:
                deep = p[:, 1] > outfit.worn[0].cut.hem + 0.05
            else:
                deep = np.zeros(len(p), bool)
            shown[:count] = ~deep[garment.cloth.faces].all(1)
        elif len(garments) == 2 and garment.skirt is not None and not outfit.tucked:
            heights = np.repeat(garment.skirt.heights, 49)
            shown = ~(heights > outfit.worn[0].cut.hem + 0.05)[garment.skirt.faces].all(1)
        visible.append(np.where(shown)[0])
    depth = np.where(upper_ids, under[:-1].max(0), -1)
    under = np.stack([depth, under[:-1].argmax(0)], 1).astype(np.float32)
    return Model(person, outfit, shape, joints, garments, shoes, make_hair(person, shape), body_faces, tuple(visible), under)


@dataclass(frozen=True, eq=False)
class Posed:
    """A posed person: vertices of body (V, 3), joints (55, 3), transforms (55, 3, 4), camera frame."""

    vertices: Array
    joints: Array
    transforms: Array


def pose_body(shape: Array, joints: Array, pose: Array, transl: Array, expression: Array | None = None) -> Posed:
    """Pose a body whose rest surface is the template plus ``shape`` (V, 3)."""
    t = tailor()
    rest = t.template + shape
    if expression is not None:
        rest = rest + np.einsum("vck,k->vc", _expressions(), expression)
    rotations = np.stack([rotation(r) for r in pose])
    transforms = joint_transforms(joints, t.parents, rotations, np.zeros(3))
    transforms[..., 3] += transl.astype(np.float32)
    posed = np.einsum("jab,jb->ja", transforms[..., :3], joints) + transforms[..., 3]
    return Posed(skin(rest.astype(np.float32), t.weights, transforms), posed, transforms)


# ---------------------------------------------------------------------------------------------------- the stage


@dataclass(frozen=True, eq=False)
class Layer:
    """One surface before the camera: vertices (N, 3), faces (M, 3), label, rows to interpolate (N, 7), region (M,).

    Rows: rest position (3), uv (2), edge (1), part (1: what belongs to it, see the label).
    """

    label: int
    vertices: Array
    faces: Array
    rows: Array
    region: Array
    source: Any = None


def _cloth_layer(label: int, garment: Garment, vertices: Array, chosen: Array, source: Worn) -> Layer:
    uv, edge, region = garment.rows
    rest = np.zeros((len(uv), 3), np.float32)
    if garment.cloth is not None:
        rest[: len(garment.cloth.rest)] = garment.cloth.rest
    rows = np.concatenate([rest, uv, edge[:, None]], 1)
    return Layer(label, vertices, garment.faces[chosen], rows, region[chosen], source)


def _layers(model: Model, posed: Posed) -> list[Layer]:
    """Body, clothes, shoes and hair of a posed person."""
    t = tailor()
    rows = np.concatenate([t.template, np.isin(t.dominant, [23, 24])[:, None], model.under], 1).astype(np.float32)
    layers = [Layer(SKIN, posed.vertices, model.body_faces, rows, np.zeros(len(model.body_faces), int))]
    for garment, chosen, worn in zip(model.garments, model.garment_faces, model.outfit.worn, strict=True):
        label = _LABEL_OF[worn.category]
        vertices = garment.posed(posed.vertices, posed.joints, posed.transforms)
        layers.append(_cloth_layer(label, garment, vertices, chosen, worn))
    for label, cloth in ((SHOES, model.shoes), (HAIR, model.hair)):
        if cloth is not None:
            rows = np.concatenate([cloth.rest, cloth.uv, cloth.edge[:, None]], 1).astype(np.float32)
            layers.append(Layer(label, cloth.posed(posed.transforms), cloth.faces, rows, cloth.region))
    return layers


@dataclass(frozen=True)
class Light:
    """Where light comes from (camera frame, towards the light), how strong, and its tint."""

    direction: tuple[float, float, float]
    key: float
    fill: float
    tint: tuple[float, float, float]


def draw_light(rng: np.random.Generator) -> Light:
    """Soft light from the front, above."""
    side, height = np.radians(rng.uniform(-55, 55)), np.radians(rng.uniform(25, 60))
    direction = (np.sin(side) * np.cos(height), -np.sin(height), -np.cos(side) * np.cos(height))
    warm = rng.normal(0, 0.02)
    key = rng.uniform(0.36, 0.56)
    return Light(direction, key, 1.08 - key + rng.uniform(-0.04, 0.04), (1 + warm, 1.0, 1 - warm))


STUDIO = Light((0.35, -0.6, -0.72), 0.42, 0.64, (1.0, 1.0, 1.0))


@dataclass(frozen=True, eq=False)
class Picture:
    """A rendered scene: rgb (H, W, 3) float in [0, 1] premultiplied by cover (H, W), labels and joints (H, W)."""

    rgb: Array
    cover: Array
    labels: Array
    depth: Array


def render(layers: list[Layer], person: Person | None, outfit: Outfit | None, K: Array, size: tuple[int, int], light: Light) -> Picture:
    """Rasterise at twice the size, colour what is visible, shade, and average down.

    Args:
        layers: the surfaces.
        person: for skin and hair; None where there is neither.
        outfit: for shoes and socks.
        K: (3, 3) camera of the final size.
        size: (H, W).
        light: the light.
    """
    height, width = size
    fine = np.array(K, np.float64)
    fine[:2] *= 2
    fine[:2, 2] += 0.5
    starts = np.cumsum([0] + [len(l.vertices) for l in layers])
    vertices = np.concatenate([l.vertices for l in layers]).astype(np.float32)
    faces = np.concatenate([l.faces + s for l, s in zip(layers, starts[:-1], strict=True)])
    normals = np.concatenate([vertex_normals(l.vertices, l.faces) for l in layers])
    rows = np.concatenate([l.rows for l in layers]).astype(np.float32)
    which = np.repeat(np.arange(len(layers)), [len(l.faces) for l in layers])
    region = np.concatenate([l.region for l in layers])
    shown = rasterise(torch.from_numpy(vertices), torch.from_numpy(faces), fine, (2 * height, 2 * width), engine="torch")
    face = shown.face.numpy()
    py, px = np.nonzero(face >= 0)
    seen = face[py, px]
    corner = faces[seen]
    bary = shown.bary.numpy()[py, px]

    def at(values: Array) -> Array:
        return np.einsum("nk,nkc->nc", bary, values[corner])

    n = at(normals)
    n /= np.maximum(np.linalg.norm(n, axis=1, keepdims=True), 1e-6)
    ray = np.stack([(px - fine[0, 2]) / fine[0, 0], (py - fine[1, 2]) / fine[1, 1], np.ones(len(px))], 1).astype(np.float32)
    ray /= np.linalg.norm(ray, axis=1, keepdims=True)
    a, b, c = (vertices[corner[:, k]] for k in range(3))
    flat = np.cross(b - a, c - a)
    inside = (flat * ray).sum(1) > 0
    n = np.where(inside[:, None], -n, n).astype(np.float32)
    value = at(rows)
    layer = which[seen]
    region = region[seen]
    albedo = np.zeros((len(px), 3), np.float32)
    gloss = np.zeros(len(px), np.float32)
    gain = np.ones(len(px), np.float32)
    label = np.zeros(len(px), np.uint8)
    for k, l in enumerate(layers):
        at_k = np.where(layer == k)[0]
        if not len(at_k):
            continue
        v = value[at_k]
        label[at_k] = l.label
        if l.label == SKIN and person is not None:
            albedo[at_k] = paint_skin(person, v[:, :3], v[:, 3] > 0.5)
            gloss[at_k] = 0.10
            label[at_k[v[:, 1] > 0.53]] = FACE
            for g, worn in enumerate(outfit.worn if outfit is not None else ()):  # never bare where there is cloth
                lining = (v[:, 4] > 0.010) & (np.abs(v[:, 5] - g) < 0.5)
                albedo[at_k[lining]] = worn.pattern.palette[0] * 0.8
                label[at_k[lining]] = _LABEL_OF[worn.category]
            if outfit is not None:
                sock = (v[:, 1] < GROUND_Y + outfit.shoe_height + 0.045)
                albedo[at_k[sock]] = outfit.sock_colour
                label[at_k[sock]] = SHOES
        elif l.label == HAIR and person is not None:
            albedo[at_k], gloss[at_k] = _paint_hair(person, v[:, 3:5], n[at_k])
        elif l.label == SHOES and outfit is not None:
            sole = v[:, 4] < 0.026
            albedo[at_k] = np.where(sole[:, None], outfit.sole_colour, outfit.shoe_colour)
            gain[at_k] *= 1 - 0.35 * smoothstep(0.004, 0.0, v[:, 5]) - 0.25 * smoothstep(0.003, 0.0, np.abs(v[:, 4] - 0.027))
            gloss[at_k] = 0.12
        elif l.label == PROP:
            albedo[at_k] = l.source
        else:
            albedo[at_k], gain[at_k], n[at_k] = _paint_cloth(l.source, v, region[at_k], n[at_k], inside[at_k])
    toward = np.array(light.direction, np.float32)
    lambert = np.clip((n @ toward + 0.25) / 1.25, 0, 1)
    sky = 0.5 - 0.5 * n[:, 1]
    half = toward - ray
    half /= np.linalg.norm(half, axis=1, keepdims=True)
    shine = gloss * np.clip((n * half).sum(1), 0, 1) ** 24
    gain *= np.where(inside, 0.55, 1.0)
    depth = shown.depth.numpy()
    dark = _occlusion(depth, toward, fine[0, 0])[py, px]
    lit = light.fill * (0.72 + 0.28 * sky) * (0.45 + 0.55 * dark) + light.key * lambert * (0.35 + 0.65 * dark)
    colour = (albedo * (gain * lit)[:, None] + shine[:, None] * dark[:, None] * 0.8) * np.array(light.tint, np.float32)
    image = np.zeros((2 * height, 2 * width, 4), np.float32)
    image[py, px, :3] = np.clip(colour, 0, 1)
    image[py, px, 3] = 1
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    labels = np.zeros((2 * height, 2 * width), np.uint8)
    labels[py, px] = label
    return Picture(small[..., :3], small[..., 3], labels[1::2, 1::2], depth[1::2, 1::2])


def _occlusion(depth: Array, toward: Array, focal: float) -> Array:
    """(H, W) 1 in the open to 0 in creases: depth against its own blurred neighbourhood (Luft et al. 2006)."""
    solid = np.isfinite(depth)
    if not solid.any():
        return np.ones_like(depth)
    far = float(depth[solid].max())
    near = float(depth[solid].min())
    d = np.where(solid, depth, far + 0.02).astype(np.float32)
    pixel = focal / max(near, 0.1)  # pixels per metre
    out = np.ones_like(d)
    for metres, strength in ((0.035, 7.0), (0.11, 2.2)):
        k = int(2 * round(metres * pixel / 2) + 1)
        mean = cv2.blur(np.where(solid, d, 0), (k, k)) / np.maximum(cv2.blur(solid.astype(np.float32), (k, k)), 1e-3)
        mean = cv2.blur(mean.astype(np.float32), (k, k))
        out -= np.clip((d - mean) * strength, 0, 0.3)
    shift = np.round(np.array([toward[0], toward[1]]) * 0.045 * pixel).astype(int)
    moved = cv2.warpAffine(d, np.array([[1, 0, -shift[0]], [0, 1, -shift[1]]], np.float32), (d.shape[1], d.shape[0]), borderMode=cv2.BORDER_REPLICATE)
    gap = d - moved
    shade = smoothstep(0.015, 0.05, gap) * smoothstep(0.40, 0.25, gap)
    k = int(2 * round(0.012 * pixel / 2) + 1)
    return np.clip(out, 0.25, 1) * (1 - 0.42 * cv2.blur(shade.astype(np.float32), (k, k)))


def _paint_hair(person: Person, uv: Array, n: Array) -> tuple[Array, Array]:
    base = np.array(person.hair_colour, np.float32)
    curly = person.hair in ("afro", "curly")
    fine = noise(person.seed % 61 + 11, uv[:, 0], uv[:, 1] * (1.0 if curly else 0.12), 0.022 if curly else 0.016, 3)
    broad = noise(person.seed % 61 + 12, uv[:, 0], uv[:, 1] * (0.8 if curly else 0.2), 0.06, 2)
    tone = 1 + 0.16 * fine + 0.10 * broad
    return np.clip(base * tone[:, None] + 0.012 * tone[:, None], 0, 1), np.full(len(uv), 0.10 if curly else 0.22, np.float32)


def _paint_cloth(worn: Worn, v: Array, region: Array, n: Array, inside: Array) -> tuple[Array, Array, Array]:
    """Colours (n, 3), brightness (n,) of hems, seams and folds, and normals (n, 3) bent by folds."""
    cut, pattern = worn.cut, worn.pattern
    rest, uv, edge = v[:, :3], v[:, 3:5], v[:, 5]
    colour = pattern.albedo(uv, second_tone(cut, uv, region))
    gain = np.ones(len(v), np.float32)
    gain *= 1 - 0.16 * smoothstep(0.003, 0.0, np.abs(edge - 0.018)) - 0.25 * smoothstep(0.004, 0.0, edge)
    if cut.kind == "shirt":
        front = (region == TORSO) & (rest[:, 2] > 0) & (rest[:, 1] < 0.47)
        x = uv[:, 0]
        placket = front & (np.abs(x) < 0.016)
        gain[front] *= 1 - 0.22 * smoothstep(0.0028, 0.0, np.abs(np.abs(x[front]) - 0.016))
        button = placket & (np.hypot(x, np.mod(uv[:, 1], 0.085) - 0.042) < 0.0068)
        light = luminance(pattern.colours[0]) > 0.5
        colour[button] = (0.25, 0.22, 0.2) if light else (0.92, 0.90, 0.85)
    if cut.kind == "hoodie":
        front = (region == TORSO) & (rest[:, 2] > 0)
        x, y = np.abs(uv[:, 0]), uv[:, 1] - cut.hem
        side = 0.155 - 0.35 * np.maximum(y - 0.11, 0)
        pocket = np.maximum(x - side, np.maximum(0.055 - y, y - 0.21))
        gain[front] *= 1 - 0.30 * smoothstep(0.004, 0.0, np.abs(pocket[front]))
        cord = front & (np.abs(x - 0.030) < 0.0042) & (uv[:, 1] > 0.31) & (uv[:, 1] < 0.46)
        colour[cord] = (0.93, 0.93, 0.92) if luminance(pattern.colours[0]) < 0.6 else (0.2, 0.2, 0.22)
        gain[(edge < 0.035) & (region == TORSO)] *= 0.93
    if cut.kind in ("trousers", "shorts"):
        y = uv[:, 1]
        gain *= 1 - 0.22 * smoothstep(0.003, 0.0, np.abs(y - (WAIST_Y - 0.038)))
        fly = (rest[:, 2] > 0) & (y > -0.09)
        gain[fly] *= 1 - 0.35 * smoothstep(0.004, 0.0, np.abs(rest[fly, 0]))
        pocket = np.abs((np.abs(rest[:, 0]) - 0.115) - 0.5 * (y - 0.0)) / 1.1
        at = (rest[:, 2] > 0.0) & (y < WAIST_Y - 0.04) & (y > -0.07)
        gain[at] *= 1 - 0.28 * smoothstep(0.0035, 0.0, pocket[at])
    if cut.kind == "dress":
        gain *= 1 - 0.2 * smoothstep(0.004, 0.0, np.abs(uv[:, 1] - 0.09)) * np.isin(region, [TORSO, SKIRT])
    seed = pattern.seed % 59
    drape = 0.35 if cut.fit > 0.3 or cut.category == "dress" else 0.7
    strength = 0.10 + 0.16 * cut.fit
    bend = np.stack([noise(seed + k, uv[:, 0], uv[:, 1] * drape, 0.11, 1) for k in (20, 21)], 1)
    n = n.copy()
    n[:, 0] += strength * bend[:, 0]
    n[:, 1] += 0.6 * strength * bend[:, 1]
    n /= np.maximum(np.linalg.norm(n, axis=1, keepdims=True), 1e-6)
    grain = noise(seed + 30, uv[:, 0], uv[:, 1], 0.03, 2)
    gain *= 1 + 0.012 * grain
    if cut.neck in ("crew", "scoop", "v") and cut.kind in ("t-shirt", "long-sleeve top"):
        rib = (edge < 0.016) & (rest[:, 1] > 0.2) & (np.abs(rest[:, 0]) < 0.16)
        gain[rib] *= 0.92
    del inside
    return colour, gain.astype(np.float32), n


def second_tone(cut: Cut, uv: Array, region: Array) -> Array:
    """(n,) bool: what of a garment a two-tone pattern has in its second colour."""
    if cut.category == "upper" and cut.sleeve:
        return np.isin(region, [SLEEVE, COLLAR])
    if cut.category == "upper":
        return uv[:, 1] < 0.5 * (cut.hem + 0.42)
    if cut.kind == "dress":
        return np.isin(region, [SKIRT])
    if cut.kind == "skirt":
        return uv[:, 1] < 0.55 * cut.hem + 0.45 * WAIST_Y
    angle = np.where(np.abs(uv[:, 0]) > 0.4, uv[:, 0] - np.sign(uv[:, 0]), 0) / 0.095
    return (region == LEGS) & (np.abs(angle * np.sign(uv[:, 0]) - np.pi / 2) < 0.55)


# ---------------------------------------------------------------------------------------------------- pictures


def background(rng: np.random.Generator, size: tuple[int, int], feet: Array | None) -> Array:
    """(H, W, 3) float32 a simple place: a studio, a wall and a floor, soft lights. ``feet``: (k, 3) pixels x, y, reach."""
    height, width = size
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    y, x = y / height, x / width - 0.5
    base = np.array(NAMED_COLOURS[str(rng.choice(["white", "beige", "light blue", "grey", "mint", "lilac", "white", "white"]))])
    base = 0.55 * base + 0.45 * rng.uniform(0.72, 0.95)
    kind = rng.choice(["studio", "room", "lights"], p=[0.55, 0.33, 0.12])
    shade = 1 - 0.10 * (x**2 * 2 + (y - 0.4) ** 2)
    image = base * shade[..., None]
    horizon = rng.uniform(0.68, 0.80)
    floor = base * rng.uniform(0.78, 0.95) * np.array([1.0, 0.985, 0.96])
    soft = 0.09 if kind != "room" else 0.003
    mix = smoothstep(horizon - soft, horizon + soft, y)[..., None]
    image = image * (1 - mix) + floor * (1 - 0.06 * (1 - y))[..., None] * mix
    if kind == "room":
        rail = smoothstep(0.006, 0.004, np.abs(y - horizon + 0.012))[..., None]
        image = image * (1 - rail) + np.minimum(base * 1.12, 1) * rail
    if kind == "lights":
        for _ in range(5):
            cx, cy, r = rng.uniform(-0.5, 0.5), rng.uniform(0, 0.6), rng.uniform(0.06, 0.2)
            glow = np.exp(-(((x - cx) * width / height) ** 2 + (y - cy) ** 2) / r**2)[..., None]
            image = image * (1 - 0.25 * glow) + np.array([1, 0.97, 0.9]) * 0.25 * glow
    if feet is not None:
        for fx, fy, r in feet:
            spot = np.exp(-(((x + 0.5) * width - fx) ** 2 / r**2 + (y * height - fy) ** 2 / (0.30 * r) ** 2))
            image = image * (1 - 0.38 * spot[..., None])
    return np.clip(image, 0, 1).astype(np.float32)


def _to_bytes(image: Array) -> Array:
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


def _project(points: Array, K: Array) -> Array:
    return points[..., :2] / points[..., 2:] * [K[0, 0], K[1, 1]] + K[:2, 2]


def _frame(points: Array, K: Array, size: tuple[int, int], rows: tuple[float, float], margin: float) -> Array:
    """(3,) translation that centres points (n, 3), seen from afar, and fits them between rows of the picture.

    Args:
        points: camera frame, root at the origin.
        K: (3, 3).
        size: (H, W).
        rows: lowest and highest y (metres, downwards) to show.
        margin: share of the picture left free on each side.
    """
    height, width = size
    tall, wide = rows[1] - rows[0], np.ptp(points[:, 0])
    near = float(points[:, 2].min())
    distance = max(tall * K[1, 1] / (height * (1 - 2 * margin)), wide * K[0, 0] / (width * (1 - 1.2 * margin))) - near * 0.5
    return np.array([-(points[:, 0].max() + points[:, 0].min()) / 2, -(rows[0] + rows[1]) / 2, distance])


@dataclass(frozen=True, eq=False)
class Sample:
    """One record in memory.

    Args:
        record: what ``metadata.jsonl`` says.
        person: (H, W, 3) uint8.
        face: (F, F, 3) uint8, F half the width rounded up to a multiple of 32.
        garments: category to (H, W, 3) uint8 shop picture on white.
        garment_masks: category to (H, W) bool, where the shop picture shows the garment.
        pose_map: (H, W, 3) uint8.
        params: body and camera.
        labels: (H, W) uint8, indices into LABELS.
        joints: (55, 3) float32 camera frame.
    """

    record: Record
    person: Array
    face: Array
    garments: dict[str, Array]
    garment_masks: dict[str, Array]
    pose_map: Array
    params: BodyParameters
    labels: Array
    joints: Array

    @property
    def person_mask(self) -> Array:
        """(H, W) bool: person and clothes."""
        return (self.labels > BACKGROUND) & (self.labels < PROP)


_SHOP_POSE = {"upper": "a_pose", "dress": "a_pose", "lower": "standing"}


def shop_picture(worn: Worn, size: tuple[int, int]) -> tuple[Array, Array]:
    """A garment alone, from the front, on white, cut for the template body.

    Returns:
        (H, W, 3) uint8 and its mask (H, W) bool.
    """
    t = tailor()
    zero = np.zeros_like(t.template)
    garment = make_garment(worn.cut, zero, worn.phase)
    pose = NAMED_POSES["a_pose"].astype(np.float64).copy()
    pose[16], pose[17] = np.radians([0, 0, -52]), np.radians([0, 0, 52])
    pose[18], pose[19] = np.radians([0, -6, 0]), np.radians([0, 6, 0])
    pose[0] = rotation_vector(look_at(0, 4))
    K = camera(size, 14.0)
    posed = pose_body(zero, t.joints, pose, np.zeros(3))
    points = garment.posed(posed.vertices, posed.joints, posed.transforms, shaped=False)
    move = _frame(points, K, size, (points[:, 1].min(), points[:, 1].max()), 0.06)
    points = points + move.astype(np.float32)
    layer = _cloth_layer(UPPER, garment, points, np.arange(len(garment.faces)), worn)
    picture = render([layer], None, None, K, size, STUDIO)
    return _to_bytes(picture.rgb + (1 - picture.cover[..., None])), picture.cover > 0.5


def face_size(width: int) -> int:
    """Side of the face crop: half the picture's width, rounded up to a multiple of 32."""
    return -(-width // 64) * 32


def portrait(model: Model, rng: np.random.Generator, side: int) -> Array:
    """(side, side, 3) uint8 head and shoulders, near the front, of its own pose, light and background."""
    pose = NAMED_POSES["standing"].astype(np.float64).copy()
    pose[[12, 15]] += np.radians(rng.normal(0, (3, 5, 2), (2, 3)))
    pose[0] = rotation_vector(look_at(float(np.clip(rng.normal(0, 14), -35, 35)), float(rng.uniform(-3, 6))))
    expression = np.clip(rng.normal(0, 0.5, 10), -1, 1).astype(np.float32)
    K = camera((side, side), 12.0)
    posed = pose_body(model.shape, model.joints, pose, np.zeros(3), expression)
    head = posed.joints[15] + posed.transforms[15, :, :3] @ np.array([0, 0.045, 0.03])
    reach = 0.40
    move = np.array([0, 0, K[1, 1] * reach / side]) - head
    posed = Posed(posed.vertices + move.astype(np.float32), posed.joints + move, _moved(posed.transforms, move))
    layers = [l for l in _layers(model, posed) if l.label not in (LOWER, SHOES)]
    picture = render(layers, model.person, model.outfit, K, (side, side), draw_light(rng))
    place = background(rng, (side, side), None)
    return _to_bytes(picture.rgb + place * (1 - picture.cover[..., None]))


def _moved(transforms: Array, move: Array) -> Array:
    out = transforms.copy()
    out[..., 3] += move
    return out.astype(np.float32)


def _stool(posed: Posed, up: Array, ground: float) -> Layer:
    """A round stool under a sitting person."""
    seat = (posed.joints[1] + posed.joints[2]) / 2 - up * 0.115
    reach = (seat - 0) @ up - ground
    angle = np.linspace(0, 2 * np.pi, 33)
    side = np.cross(up, [0, 0, 1.0])
    side /= np.linalg.norm(side)
    front = np.cross(side, up)
    ring = np.sin(angle)[:, None] * side + np.cos(angle)[:, None] * front
    levels = [(0.0, 0.0), (0.0, 0.19), (0.035, 0.195), (0.04, 0.05), (reach - 0.03, 0.05), (reach - 0.02, 0.17), (reach, 0.17)]
    points = np.stack([seat - up * d + ring * r for d, r in levels]).reshape(-1, 3).astype(np.float32)
    r, a = np.meshgrid(np.arange(len(levels) - 1), np.arange(32), indexing="ij")
    i = r * 33 + a
    faces = np.concatenate([np.stack([i, i + 33, i + 1], -1).reshape(-1, 3), np.stack([i + 1, i + 33, i + 34], -1).reshape(-1, 3)])
    rows = np.zeros((len(points), 6), np.float32)
    return Layer(PROP, points, faces, rows, np.zeros(len(faces), int), np.array([0.55, 0.47, 0.38], np.float32))


def make_view(model: Model, rng: np.random.Generator, view: int, size: tuple[int, int]) -> tuple[Picture, Array, BodyParameters, Array, dict[str, Any]]:
    """One picture of a dressed person: rendering, background, parameters, joints, and words about it."""
    body = tailor().body
    name, pose = draw_pose(rng)
    yaw = draw_yaw(rng, view)
    pitch = float(round(rng.normal(3, 3), 2))
    pose = pose.astype(np.float64)
    turn = look_at(yaw, pitch)
    pose[0] = rotation_vector(turn)
    expression = np.clip(rng.normal(0, 0.4, 10), -1, 1).astype(np.float32)
    K = camera(size, float(rng.uniform(16, 26)))
    posed = pose_body(model.shape, model.joints, pose, np.zeros(3), expression)
    top, bottom = posed.vertices[:, 1].min() - 0.03, posed.vertices[:, 1].max() + 0.02
    full = name in ("sitting", "lunge") or rng.random() < 0.68
    knees = float(posed.joints[[4, 5], 1].max())
    low = bottom if full else knees + rng.uniform(-0.14, 0.16)
    margin = rng.uniform(0.035, 0.075)
    move = _frame(posed.vertices, K, size, (top, low), margin)
    move[0] += rng.uniform(-0.03, 0.03) * (K[0, 2] / K[0, 0]) * move[2]
    transl = move.astype(np.float32)
    posed = Posed(posed.vertices + transl, posed.joints + transl, _moved(posed.transforms, transl))
    layers = _layers(model, posed)
    up = turn @ np.array([0, 1.0, 0])
    soles = posed.vertices @ up
    if name == "sitting":
        layers.append(_stool(posed, up, float(soles.min())))
    light = draw_light(rng)
    picture = render(layers, model.person, model.outfit, K, size, light)
    feet = []
    for side in (0, 1):
        mid = posed.joints[[7 + side, 10 + side]].mean(0)
        on_ground = mid - up * (mid @ up - soles.min())
        centre = _project(on_ground, K)
        feet.append([*centre, 0.14 * K[0, 0] / on_ground[2]])
    centre = np.mean(feet, 0)
    feet.append([centre[0], centre[1], centre[2] * 1.9])
    place = background(rng, size, np.array(feet))
    params = BodyParameters(
        body.name, body.hash, np.array(model.person.betas, np.float32), expression, pose.astype(np.float32), transl, K, size
    )
    words = {"pose": name, "framing": "full" if full else "three-quarter", "pitch": pitch, "yaw": yaw}
    return picture, place, params, posed.joints.astype(np.float32), words


def make_outfit(seed: int, index: int, size: tuple[int, int] = (256, 192), views: int = VIEWS) -> list[Sample]:
    """One person in one outfit, in several pictures: a pure function of its arguments.

    Args:
        seed: of the world.
        index: of the outfit; outfits ``2 k`` and ``2 k + 1`` are worn by person k.
        size: (H, W) of the pictures.
        views: pictures of the outfit.

    Returns:
        ``views`` samples that share face and shop pictures.
    """
    person_index = index // OUTFITS
    person = draw_person(np.random.default_rng([seed, 1, person_index]))
    rng = np.random.default_rng([seed, 2, index])
    outfit = draw_outfit(rng)
    model = dress(person, outfit)
    other = dress(person, draw_outfit(np.random.default_rng([seed, 4, index])))  # the portrait is of another day
    face = portrait(other, rng, face_size(size[1]))
    shop = {w.category.value: shop_picture(w, size) for w in outfit.worn}
    person_id, outfit_id = f"s{seed}-p{person_index}", f"s{seed}-o{index}"
    provenance = {
        "stage": "synthetic", "seed": seed, "outfit": index,
        "person": {"skin": person.names[0], "hair": person.names[1]},
        "garments": {
            w.category.value: {"kind": w.cut.kind, "pattern": w.pattern.kind, "colours": w.pattern.names,
                               "rgb": w.pattern.colours, "motif": w.pattern.motif if w.pattern.kind == "print" else None,
                               "text": w.pattern.text or None, "cut": asdict(w.cut)}
            for w in outfit.worn
        },
    }  # fmt: skip
    samples = []
    for view in range(views):
        picture, place, params, joints, words = make_view(model, np.random.default_rng([seed, 3, index, view]), view, size)
        name = f"{outfit_id}-v{view}"
        record = Record(
            id=name,
            split="test" if person_index % TEST_EVERY == TEST_EVERY - 1 else "train",
            person_id=person_id,
            outfit_id=outfit_id,
            file_name=f"person/{name}.png",
            face=FaceRef(f"face/{outfit_id}.png", f"{outfit_id}-portrait"),
            garments=tuple(GarmentRef(w.category, f"garment/{outfit_id}-{w.category.value}.png") for w in outfit.worn),
            pose=PoseRef(f"pose/{name}.png", f"pose/{name}.npz"),
            caption=caption(outfit),
            view_yaw=words["yaw"],
            provenance={**provenance, "view": view, **words, "masks": {"labels": f"masks/{name}.png",
                        **{c: f"masks/{outfit_id}-{c}.png" for c in shop}}},
        )  # fmt: skip
        rgb = _to_bytes(picture.rgb + place * (1 - picture.cover[..., None]))
        pose_map = render_pose_map(tailor().body, params)
        samples.append(
            Sample(
                record, rgb, face, {c: s[0] for c, s in shop.items()}, {c: s[1] for c, s in shop.items()},
                np.asarray(pose_map), params, picture.labels, joints,
            )
        )  # fmt: skip
    return samples


# ---------------------------------------------------------------------------------------------------- files


def write_outfit(item_id: str, index: int, out: Path, *, seed: int, size: tuple[int, int], records: int) -> list[dict[str, Any]]:
    """Write one outfit's files; its lines of ``metadata.jsonl``.

    Args:
        item_id: the outfit's name.
        index: of the outfit.
        out: the records folder.
        seed: of the world.
        size: (H, W).
        records: how many the whole call makes; the last outfit may have fewer views.
    """
    samples = make_outfit(seed, index, size, min(VIEWS, records - index * VIEWS))
    first = samples[0]
    assert first.record.face is not None
    write_image(out / first.record.face.path, first.face)
    for garment in first.record.garments:
        category = garment.category.value
        write_image(out / garment.path, first.garments[category])
        write_image(out / f"masks/{item_id}-{category}.png", first.garment_masks[category].astype(np.uint8) * 255)
    for s in samples:
        write_image(out / s.record.file_name, s.person)
        write_image(out / f"pose/{s.record.id}.png", s.pose_map)
        write_image(out / f"masks/{s.record.id}.png", s.labels)
        s.params.save(out / f"pose/{s.record.id}.npz")
    return [json.loads(s.record.to_json()) for s in samples]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The stage's options."""
    parser.add_argument("--records", type=_count, required=True, metavar="N", help=f"pictures to make; {VIEWS} of each outfit")
    parser.add_argument("--seed", type=_seed, default=0, help="of the world: another seed, other people (default 0)")
    parser.add_argument("--size", type=_size, default=(256, 192), metavar="HxW", help="of the pictures (default 256x192)")


def main(args: argparse.Namespace) -> Outcome:
    """Make the records."""
    items = [(f"s{args.seed}-o{i}", i) for i in range(-(-args.records // VIEWS))][: args.limit]
    work = partial(write_outfit, seed=args.seed, size=args.size, records=args.records)
    return run_stage("synthetic", items, work, args.out, workers=args.workers, engine=args.engine)


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 10**7:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1 to 10,000,000")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 1 << 32:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 0 to 4294967295")
    return int(text)


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and 32 <= int(height) <= 2048 and 32 <= int(width) <= 2048):
        raise argparse.ArgumentTypeError(f"{text!r} must be HEIGHTxWIDTH in pixels, 32 to 2048 each, like 256x192")
    return int(height), int(width)
