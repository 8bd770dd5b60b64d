"""Dressing: a person and an outfit made into surfaces that can be posed and put before a camera.

Frame: ``pose_body`` goes from the open body's rest pose to the camera frame (x right, y down, z away).
Legend: V body vertices, N, M vertices and faces of a surface, J = 55 joints.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_prep.wardrobe.cuts import WAIST_Y
from data_prep.wardrobe.garment_meshes import Garment, make_garment, make_shoes
from data_prep.wardrobe.heads import Person, face_shape, make_hair
from data_prep.wardrobe.meshes import Cloth, Wearer, joint_transforms, skin, smoothstep
from data_prep.wardrobe.outfits import Outfit, Worn
from data_prep.wardrobe.painters import paint_body, paint_cloth, paint_hair, paint_plain, paint_shoes
from data_prep.wardrobe.scene import Layer
from data_prep.wardrobe.skirts import Skirt
from data_prep.wardrobe.tailor import tailor
from omfa.bodies.body import PARTS, vertex_parts
from omfa.bodies.placing import rotation

Array = NDArray[Any]

COVER = 0.03  # metres under cloth from which skin is left out: nothing can poke through what is not there
OVERLAP = 0.05  # how far one garment goes on below another


@dataclass(frozen=True, eq=False)
class Dressed:
    """A person in an outfit, ready to be posed.

    Args:
        person: who.
        outfit: in what.
        shape: (V, 3) what body shape and face add to the template.
        joints: (55, 3) at rest.
        garments: as the outfit lists them.
        garment_faces: ids of each garment's faces that are not under another garment.
        shoes: the pair.
        hair: None where it does not stand out.
        body_faces: (M, 3) the skin that is not deep under cloth.
        under: (V, 2) how deep skin lies under cloth in metres, and under which garment.
    """

    person: Person
    outfit: Outfit
    shape: Array
    joints: Array
    garments: tuple[Garment, ...]
    garment_faces: tuple[Array, ...]
    shoes: Cloth
    hair: Cloth | None
    body_faces: Array
    under: Array


@lru_cache(maxsize=1)
def _directions() -> tuple[Array, Array, Array, Array]:
    """Directions of shape (V, 3, 10) and expression (V, 3, 10), then what they do to the joints, (55, 3, 10) each."""
    model = tailor().body.model
    shape, face = (d.cpu().numpy()[..., :10].astype(np.float32) for d in (model.shapedirs, model.expr_dirs))
    regress = model.J_regressor.cpu().numpy().astype(np.float32)
    return shape, face, np.einsum("jv,vck->jck", regress, shape), np.einsum("jv,vck->jck", regress, face)


@lru_cache(maxsize=1)
def _bulges() -> tuple[Array, Array, torch.Tensor]:
    """The pose blend shapes without their zeros: rotation features (f,), vertices (v,), directions (f, 3 v)."""
    directions = tailor().body.model.posedirs.cpu().reshape(54 * 9, -1, 3)
    features = torch.nonzero(directions.abs().amax((1, 2)) > 1e-4)[:, 0]
    vertices = torch.nonzero(directions.abs().amax((0, 2)) > 1e-4)[:, 0]
    kept = directions[features][:, vertices].reshape(len(features), -1).contiguous()
    return features.numpy(), vertices.numpy(), kept


def bulge(rotations: Array) -> Array:
    """(V, 3) what local joint rotations (55, 3, 3) add to the surface at rest (SMPL, equation 9)."""
    features, vertices, directions = _bulges()
    turned = (rotations[1:] - np.eye(3)).reshape(-1)[features].astype(np.float32)
    out = np.zeros_like(tailor().template)
    out[vertices] = (torch.from_numpy(turned)[None] @ directions).numpy().reshape(-1, 3)
    return out


def dress(person: Person, outfit: Outfit) -> Dressed:
    """Sew the outfit for the person, and leave out what is hidden under it."""
    t = tailor()
    shape_dirs, _, joint_dirs, _ = _directions()
    betas = np.array(person.betas, np.float32)
    figure = np.einsum("vck,k->vc", shape_dirs, betas)
    shape = figure + face_shape(person)
    garments = tuple(make_garment(w.cut, figure, w.phase) for w in outfit.worn)
    shoes, in_shoe = make_shoes(figure, outfit.shoe_height)
    coverable = (t.dominant < 25) & ~np.isin(t.dominant, [15, 22, 23, 24])  # never hands, head, eyes
    depths = np.stack([np.where(coverable, g.keep(t.template), -1) for g in garments])
    hidden = (depths > COVER).any(0) | (coverable & (in_shoe(t.template) > 0.012))
    return Dressed(
        person, outfit, shape, t.joints + joint_dirs @ betas, garments,
        tuple(_visible_faces(g, k, outfit) for k, g in enumerate(garments)), shoes, make_hair(person, shape),
        t.faces[~hidden[t.faces].all(1)], np.stack([depths.max(0), depths.argmax(0)], 1).astype(np.float32),
    )  # fmt: skip


def _visible_faces(garment: Garment, place: int, outfit: Outfit) -> Array:
    """Ids of the faces of the outfit's garment number ``place`` that do not lie deep under the other one."""
    if len(outfit.worn) == 1:
        return np.arange(len(garment.faces))
    heights = garment.heights
    if outfit.tucked:
        deep = (heights < WAIST_Y - OVERLAP) if place == 0 else np.zeros(len(heights), bool)
    else:
        deep = (heights > outfit.worn[0].cut.hem + OVERLAP) if place == 1 else np.zeros(len(heights), bool)
    return np.where(~deep[garment.faces].all(1))[0]


def pose_body(shape: Array, joints: Array, pose: Array, expression: Array | None = None) -> Wearer:
    """Pose a body, its translation zero.

    Args:
        shape: (V, 3) what body shape and face add to the template.
        joints: (55, 3) at rest.
        pose: (55, 3) axis-angle; joint 0 turns to the camera frame.
        expression: (10,) or None.
    """
    t = tailor()
    rest = t.template + shape
    if expression is not None:
        _, face_dirs, _, joint_dirs = _directions()
        rest = rest + np.einsum("vck,k->vc", face_dirs, expression)
        joints = joints + joint_dirs @ expression
    rotations = np.stack([rotation(r) for r in pose])
    swell = bulge(rotations)
    transforms = joint_transforms(joints, t.parents, rotations)
    posed = np.einsum("jab,jb->ja", transforms[..., :3], joints) + transforms[..., 3]
    vertices = skin((rest + swell).astype(np.float32), t.weights, transforms)
    return Wearer(vertices, posed.astype(np.float32), transforms, t.smooth(swell, 4))


# ---------------------------------------------------------------------------------------------------- layers


@lru_cache(maxsize=1)
def part_of_joint() -> Array:
    """(55,) uint8 1 + index into PARTS of what hangs on each joint."""
    t = tailor()
    out = np.ones(55, np.uint8)
    out[t.dominant] = vertex_parts(t.body) + 1
    return out


def _skirt_parts(skirt: Skirt) -> Array:
    """(N,) uint8 parts of a skirt: torso above the hips, then thighs and shins, left and right."""
    y, right = np.repeat(skirt.heights, len(skirt.uv) // skirt.rings), skirt.uv[:, 0] < 0
    thigh, shin = PARTS.index("left_thigh") + 1, PARTS.index("left_shin") + 1
    leg = np.where(y > tailor().joints[4, 1], thigh, shin) + right
    return np.where(y > tailor().joints[1, 1], PARTS.index("torso") + 1, leg).astype(np.uint8)


def layers_of(dressed: Dressed, posed: Wearer) -> dict[str, Layer]:
    """Body, clothes, shoes and hair of a posed person, by name (garments by category)."""
    t, outfit = tailor(), dressed.outfit
    eyeball = np.isin(t.dominant, [23, 24])[:, None]
    rows = np.concatenate([t.template, eyeball, dressed.under], 1).astype(np.float32)
    paint = partial(paint_body, person=dressed.person, outfit=outfit)
    none = np.zeros(len(dressed.body_faces), np.int64)
    behind = 0.02 * smoothstep(0.0, 0.012, dressed.under[:, 0])
    part = part_of_joint()[t.dominant]
    out = {"body": Layer(posed.vertices, dressed.body_faces, rows, part, none, paint, solid=True, behind=behind)}
    for k, (garment, faces, worn) in enumerate(zip(dressed.garments, dressed.garment_faces, outfit.worn, strict=True)):
        vertices = garment.posed(posed)
        layer = garment_layer(garment, vertices, faces, worn)
        out[worn.category.value] = replace(layer, behind=_tucked_under(garment, k, outfit))
    out["shoes"] = shoes_layer(dressed.shoes, posed, outfit)
    if dressed.hair is not None:
        out["hair"] = _cloth_layer(dressed.hair, posed, partial(paint_hair, person=dressed.person))
    return out


def _tucked_under(garment: Garment, place: int, outfit: Outfit) -> Array | None:
    """(N,) metres by which the covered end of a garment counts as behind the one that covers it."""
    if len(outfit.worn) == 1 or (place == 0) != outfit.tucked:
        return None
    heights = garment.heights
    if outfit.tucked:
        return 1.5 * COVER * smoothstep(WAIST_Y + 0.03, WAIST_Y, heights)
    hem = outfit.worn[0].cut.hem
    return 1.5 * COVER * smoothstep(hem - 0.06, hem - 0.03, heights)


def garment_layer(garment: Garment, vertices: Array, faces: Array, worn: Worn) -> Layer:
    """A posed garment (N, 3), of whose faces only the ids ``faces`` are shown."""
    uv, edge, region = garment.rows
    rest, parts = np.zeros((len(uv), 3), np.float32), []
    if garment.cloth is not None:
        rest[: len(garment.cloth.rest)] = garment.cloth.rest
        parts.append(part_of_joint()[garment.cloth.weights.argmax(1)])
    if garment.skirt is not None:
        parts.append(_skirt_parts(garment.skirt))
    rows = np.concatenate([rest, uv, edge[:, None]], 1)
    paint = partial(paint_cloth, worn=worn)
    return Layer(vertices, garment.faces[faces], rows, np.concatenate(parts), region[faces], paint)


def shoes_layer(shoes: Cloth, posed: Wearer, outfit: Outfit) -> Layer:
    """The outfit's pair of shoes on a posed body."""
    return _cloth_layer(shoes, posed, partial(paint_shoes, outfit=outfit))


def _cloth_layer(cloth: Cloth, posed: Wearer, paint: Any) -> Layer:
    rows = np.concatenate([cloth.rest, cloth.uv, cloth.edge[:, None]], 1).astype(np.float32)
    part = part_of_joint()[cloth.weights.argmax(1)]
    return Layer(cloth.posed(posed), cloth.faces, rows, part, cloth.region, paint)


def stool(posed: Wearer, up: Array, ground: float) -> Layer:
    """A round stool under a sitting person; ``up`` (3,), ``ground``: height of the floor along it."""
    seat = (posed.joints[1] + posed.joints[2]) / 2 - up * 0.115
    tall = seat @ up - ground
    side = np.cross(up, [0, 0, 1.0])
    side /= np.linalg.norm(side)
    angle = np.linspace(0, 2 * np.pi, 33)[:, None]
    ring = np.sin(angle) * side + np.cos(angle) * np.cross(side, up)
    down = [0, 0, 0.035, 0.04, tall - 0.03, tall - 0.02, tall]
    reach = [0, 0.19, 0.195, 0.05, 0.05, 0.17, 0.17]
    points = np.stack([seat - up * d + ring * r for d, r in zip(down, reach, strict=True)]).reshape(-1, 3)
    level, column = np.meshgrid(np.arange(len(down) - 1), np.arange(32), indexing="ij")
    i = (level * 33 + column).reshape(-1)
    faces = np.concatenate([np.stack([i, i + 33, i + 1], 1), np.stack([i + 1, i + 33, i + 34], 1)])
    rows, zero = np.zeros((len(points), 6), np.float32), np.zeros(len(points), np.uint8)
    paint = partial(paint_plain, colour=(0.55, 0.47, 0.38))
    return Layer(points.astype(np.float32), faces, rows, zero, np.zeros(len(faces), np.int64), paint)
