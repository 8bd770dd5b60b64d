"""Pictures of bodies: a z-buffer in plain torch (CPU or GPU, no display), pose maps, normals, parts, turntables, crops.

Where ``moderngl`` and EGL are there, OpenGL finds which face each pixel shows and everything after that is shared, so
both paths give the same picture.

Legend: V vertices, F faces, H W pixels, C channels, J = 55 joints. Camera frame and pixels: :mod:`omfa.bodies.body`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike

from omfa.bodies.body import PARTS, Body, face_parts, vertex_parts
from omfa.bodies.parameters import JOINT_IDS, JOINTS, BodyParameters
from omfa.bodies.placing import project, rotation, turned
from omfa.bodies.rasterise import Array, Engine, interpolate, rasterise, vertex_normals

Style = Literal["parts_blend", "normals", "parts", "surface"]
AT_ONCE = 2**22  # samples; a picture of more is drawn in bands


# Colour at each joint, sRGB 0 to 255. A bone runs from its joint's colour to its child's, so colours hardly jump where
# skinning weights change hands. Warm is left, cold is right; arms and legs, trunk and head apart.
_COLOURS: dict[str, tuple[int, int, int]] = {
    "pelvis": (150, 120, 60), "spine1": (160, 140, 70), "spine2": (172, 160, 90), "spine3": (186, 180, 115),
    "neck": (205, 200, 160), "head": (225, 215, 200), "jaw": (215, 150, 150), "eye": (70, 40, 40),
    "left_collar": (190, 150, 100), "left_shoulder": (225, 70, 40), "left_elbow": (245, 130, 25),
    "left_wrist": (250, 205, 40), "left_hip": (170, 80, 110), "left_knee": (215, 60, 160),
    "left_ankle": (240, 120, 215), "left_foot": (255, 190, 235),
    "right_collar": (140, 165, 150), "right_shoulder": (40, 80, 225), "right_elbow": (25, 150, 245),
    "right_wrist": (45, 225, 240), "right_hip": (90, 130, 90), "right_knee": (40, 165, 70),
    "right_ankle": (110, 215, 60), "right_foot": (195, 250, 130),
}  # fmt: skip


_FINGERS: dict[str, tuple[int, int, int]] = {  # added to the wrist's colour at the finger's tip
    "thumb": (0, -150, 60), "index": (0, -90, 0), "middle": (-40, 0, 60), "ring": (-90, 0, 0), "pinky": (-150, -60, 60),
}  # fmt: skip


_TIPS = {"head": (255, 250, 245), "left_foot": (255, 215, 245), "right_foot": (215, 255, 160)}


_TIP_OFFSETS = {"head": (0, 0.2, 0), "jaw": (0, -0.03, 0.08), "left_foot": (0, 0, 0.07), "right_foot": (0, 0, 0.07)}


_TRUNK = {"pelvis": "spine1", "spine1": "spine2", "spine2": "spine3", "spine3": "neck", "neck": "head"}


_LIMB = {"hip": "knee", "knee": "ankle", "ankle": "foot", "collar": "shoulder", "shoulder": "elbow", "elbow": "wrist"}


_LIGHT = torch.tensor([0.0, 0.5, 0.866])  # from above and before, turns with the body: colours ignore the camera


def _joint_colours() -> tuple[Array, Array]:
    """(55, 3) colours where each bone begins and where it ends."""
    start, end = np.zeros((JOINTS, 3)), np.zeros((JOINTS, 3))
    children = _main_children()
    for name, j in JOINT_IDS.items():
        side, _, rest = name.partition("_")
        if j >= 25:
            wrist, full = np.array(_COLOURS[f"{side}_wrist"]), np.array(_FINGERS[rest[:-1]])
            if side == "right":
                full = full[::-1]  # its wrist is cyan where the left one is yellow
            start[j] = wrist + full * (int(rest[-1]) - 1) / 3
            end[j] = wrist + full * int(rest[-1]) / 3
        else:
            start[j] = _COLOURS["eye" if rest == "eye" else name]
    for name, j in JOINT_IDS.items():
        if j < 25:
            end[j] = start[children[j]] if children[j] >= 0 else _TIPS.get(name, start[j])
    return start.clip(0, 255), end.clip(0, 255)


def _main_children() -> Array:
    """(55,) the joint each bone points at; -1 where it ends."""
    child = np.full(JOINTS, -1)
    for name, j in JOINT_IDS.items():
        side, _, rest = name.partition("_")
        following = _TRUNK.get(name) or (f"{side}_{_LIMB[rest]}" if rest in _LIMB else None)
        if rest == "wrist":
            following = f"{side}_middle1"
        if j >= 25 and rest[-1] != "3":
            following = f"{name[:-1]}{int(name[-1]) + 1}"
        if following is not None:
            child[j] = JOINT_IDS[following]
    return child


def body_colours(body: Body) -> Array:
    """(V, 3) float32 albedo of the pose map in [0, 255].

    By skinning weight over joints: the bone's colour at the vertex's place along it, lighter before the bone and darker
    behind it (at rest). Depends on where a vertex is on the body, never on its number, so any mesh of the same shape
    gets the same colours.
    """
    template, joints, weights = body.template, body.rest_joints, body.weights
    start, end = _joint_colours()
    child = _main_children()
    tip = joints[child]
    for name, j in JOINT_IDS.items():
        if child[j] < 0:
            before = joints[body.parents[j]]
            tip[j] = joints[j] + (_TIP_OFFSETS[name] if name in _TIP_OFFSETS else 0.8 * (joints[j] - before))
    colour = np.zeros_like(template)
    for j in range(JOINTS):
        rows = np.nonzero(weights[:, j] > 1e-4)[0]
        bone, from_joint = tip[j] - joints[j], template[rows] - joints[j]
        along = np.clip(from_joint @ bone / (bone @ bone), 0, 1)[:, None]
        off = from_joint - along * bone
        off = off[:, 2] / np.maximum(np.linalg.norm(off, axis=1), 0.02)
        tint = (0.84 + 0.16 * off)[:, None]  # 0.68 behind to 1 before
        colour[rows] += weights[rows, j, None] * tint * (start[j] + along * (end[j] - start[j]))
    return colour


def rest_colours(body: Body) -> Array:
    """(V, 3) float32 colours of the surface map in [32, 255]: where a vertex is at rest, finer near the body's middle.

    Red to the left, green up, blue forward. Arms lie along x at rest and reach far: x is bent, so that the trunk's two
    fifths of a metre get three fifths of the reds.
    """
    x, y, z = (body.template - body.rest_joints[0]).T
    share = np.stack([x / (np.abs(x) + 0.2) / 1.6 + 0.5, (y + 1.06) / 1.85, (z + 0.12) / 0.36], 1)
    return (32 + 223 * share.clip(0, 1)).astype(np.float32)


_PART_COLOURS = np.array([
    (230, 220, 200), (150, 140, 80), (225, 70, 40), (40, 80, 225), (245, 150, 25), (25, 160, 245), (250, 225, 60),
    (60, 235, 245), (190, 60, 120), (50, 140, 70), (230, 90, 190), (90, 200, 60), (255, 190, 235), (195, 250, 130),
])  # fmt: skip


def render_pose_map(
    body: Body, params: BodyParameters, style: Style = "parts_blend", *, supersample: int = 2, engine: Engine = "auto"
) -> Array:
    """(H, W, 3) uint8 picture of a posed body on black.

    Args:
        body: the body the parameters were made with.
        params: pose, shape and camera.
        style: ``parts_blend``: soft colours by part, place along the bone and side of the body, lightly shaded by a
            light that turns with the body; ``surface``: each place at rest its own colour, unlit
            (:func:`rest_colours`); ``normals``: camera-frame normals, red right, green up, blue towards the camera,
            0 to 255 for -1 to 1; ``parts``: one flat colour a part, in the order of PARTS, edges not smoothed.
        supersample: 1 to 4; each pixel is the mean of this many squared samples.
        engine: see :func:`rasterise`.

    Raises:
        ValueError: another body's parameters, an unknown style, or ``supersample`` out of range.
    """
    if style not in get_args(Style):
        raise ValueError(f"style {style!r} must be one of {', '.join(get_args(Style))}")
    if supersample not in (1, 2, 3, 4):
        raise ValueError(f"supersample {supersample!r} must be 1, 2, 3 or 4")
    if style == "parts":
        part = part_map(body, params, engine)
        return np.where(part[..., None] >= 0, _PART_COLOURS[part], 0).astype(np.uint8)
    vertices, faces = body.posed(params).vertices[0].float(), body.faces
    normals = vertex_normals(vertices, faces)
    if style == "normals":
        shown = normals
    elif style == "surface":
        shown = torch.as_tensor(rest_colours(body)).to(vertices)
    else:
        root = torch.tensor(rotation(params.pose[0]), dtype=normals.dtype, device=normals.device)
        light = 0.85 + 0.15 * (normals @ root) @ _LIGHT.to(normals)
        shown = torch.as_tensor(_albedo(body)).to(vertices) * light[:, None]
    bands = []
    for K, (height, width) in _bands(params, supersample**2):
        size = (height * supersample, width * supersample)
        fragments = rasterise(vertices, faces, supersampled(K, supersample), size, engine)
        picture = interpolate(fragments, faces, shown)
        if style == "normals":
            smooth = torch.nn.functional.normalize(picture, dim=-1)
            picture = (smooth * smooth.new_tensor([1, -1, -1]) + 1) * 127.5 * (fragments.face >= 0)[..., None]
        mean = picture.reshape(height, supersample, width, supersample, 3).mean((1, 3))
        bands.append(mean.clamp(0, 255).round().byte().cpu().numpy())
    return np.concatenate(bands)


def _bands(params: BodyParameters, samples: int) -> Iterator[tuple[Array, tuple[int, int]]]:
    """Camera (3, 3) and size (H, W) of each part, from the top, of a picture too large to be held at once as floats."""
    height, width = params.image_size
    rows = max(1, AT_ONCE // (samples * width))
    for top in range(0, height, rows):
        K = np.asarray(params.K, np.float64).copy()
        K[1] -= top * K[2]
        yield K, (min(rows, height - top), width)


_ALBEDO: dict[str, Array] = {}


def _albedo(body: Body) -> Array:
    """:func:`body_colours`, computed once a body."""
    if body.hash not in _ALBEDO:
        _ALBEDO[body.hash] = body_colours(body)
    return _ALBEDO[body.hash]


def supersampled(K: ArrayLike, factor: int) -> Array:
    """(3, 3) the camera of the same picture with ``factor`` times as many pixels a side."""
    scale = np.diag([factor, factor, 1.0])
    scale[:2, 2] = (factor - 1) / 2  # pixel centres are at whole numbers
    return scale @ np.asarray(K, np.float64)


def part_map(body: Body, params: BodyParameters, engine: Engine = "auto") -> Array:
    """(H, W) int64 index into PARTS of what each pixel shows; -1 for nothing."""
    vertices = body.posed(params).vertices[0].float()
    bands = []
    for K, size in _bands(params, 1):
        face = rasterise(vertices, body.faces, K, size, engine).face.cpu().numpy()
        bands.append(np.where(face >= 0, face_parts(body)[face], -1))
    return np.concatenate(bands)


def person_mask(body: Body, params: BodyParameters, engine: Engine = "auto") -> Array:
    """(H, W) bool: where the body shows."""
    return part_map(body, params, engine) >= 0


def turntable(body: Body, params: BodyParameters, views: int = 8) -> list[BodyParameters]:
    """The same posed body from ``views`` sides, a full turn to its own left in equal steps, the given view first."""
    if not 1 <= views <= 360:
        raise ValueError(f"views {views!r} must be 1 to 360")
    return [turned(params, 360 * k / views) for k in range(views)]


def head_box(body: Body, params: BodyParameters, margin: float = 0.35) -> tuple[int, int, int, int]:
    """Square pixel box x0, y0, x1, y1 (end exclusive) around the head; may reach beyond the picture.

    Args:
        body: the body.
        params: pose and camera.
        margin: room added around head and neck on every side, as a share of the head's larger extent.

    Raises:
        ValueError: the head is behind the camera.
    """
    head = body.posed(params).vertices[0].cpu().numpy()[vertex_parts(body) == PARTS.index("head")]
    pixels = project(head, params.K)
    if np.isnan(pixels).any():
        raise ValueError("the head is behind the camera; move the body with transl[2] > 1")
    low, high = pixels.min(0), pixels.max(0)
    side = max(2, round(float((high - low).max()) * (1 + 2 * margin)))
    x0, y0 = np.round((low + high) / 2 - side / 2).astype(int)
    return int(x0), int(y0), int(x0) + side, int(y0) + side
