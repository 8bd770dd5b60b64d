"""Pictures of bodies: a z-buffer in plain torch (CPU or GPU, no display), pose maps, normals, parts, turntables, crops.

Where ``moderngl`` and EGL are there, OpenGL finds which face each pixel shows and everything after that is shared, so
both paths give the same picture.

Legend: V vertices, F faces, H W pixels, C channels, J = 55 joints. Camera frame and pixels: :mod:`omfa.bodies.body`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from omfa.bodies.body import (
    JOINT_IDS,
    JOINTS,
    PARTS,
    Body,
    BodyParameters,
    face_parts,
    project,
    rotation,
    turned,
    vertex_parts,
)

Array = NDArray[Any]
Style = Literal["parts_blend", "normals", "parts", "surface"]
Engine = Literal["auto", "torch", "egl"]

NEAR = 0.01  # metres; nothing nearer is drawn
_CANDIDATES = 1 << 20  # (face, pixel) pairs looked at together: bounds memory to about 100 MB
_EMPTY = torch.iinfo(torch.int64).max


# ---------------------------------------------------------------------------------------------------- z-buffer


class Fragments(NamedTuple):
    """What each pixel shows: face (H, W) int64 (-1: nothing), bary (H, W, 3), depth (H, W) metres (inf: nothing)."""

    face: Tensor
    bary: Tensor
    depth: Tensor


def rasterise(
    vertices: Tensor, faces: Tensor | Array, K: ArrayLike, image_size: tuple[int, int], engine: Engine = "auto"
) -> Fragments:
    """The nearest face at every pixel centre, with perspective-correct barycentric coordinates.

    Homogeneous rasterisation (Olano and Greer, 1997): with P = K [V0 V1 V2] and a pixel's ray r = (u, v, 1), the
    solution of P e = r has all e >= 0 exactly where the ray meets the triangle before the camera; then depth is
    1 / sum(e) and barycentric coordinates are e / sum(e). Faces through or behind the camera plane need no clipping.
    Both sides of a face are drawn; of two faces equally near, the one first in the list wins.

    Args:
        vertices: (V, 3) in the camera frame, metres.
        faces: (F, 3) vertex indices.
        K: (3, 3) camera.
        image_size: (H, W).
        engine: ``torch``; ``egl`` (needs the extra ``omfa[egl]`` and libEGL); ``auto``: EGL where it works and the
            vertices are on the CPU.

    Raises:
        ValueError: shapes do not fit, or ``egl`` was asked for and is not there.
    """
    faces = torch.as_tensor(faces, device=vertices.device).long()
    if vertices.ndim != 2 or vertices.shape[1] != 3 or faces.ndim != 2 or faces.shape[1] != 3:
        raise ValueError(f"vertices {tuple(vertices.shape)} and faces {tuple(faces.shape)} must be (V, 3) and (F, 3)")
    if len(faces) and not 0 <= int(faces.min()) <= int(faces.max()) < len(vertices):
        raise ValueError(f"faces name vertices {int(faces.min())} to {int(faces.max())}; there are {len(vertices)}")
    if engine not in get_args(Engine):
        raise ValueError(f"engine {engine!r} must be one of {', '.join(get_args(Engine))}")
    matrix = torch.as_tensor(np.asarray(K, np.float64), device=vertices.device)
    corners = (vertices.detach().double() @ matrix.T)[faces]  # (F, 3 corners, 3): x, y, w
    edges = _edge_functions(corners)
    if engine == "egl" and _egl() is None:
        raise ValueError(f"no EGL here ({_egl_problem()}); pip install 'omfa[egl]' and libegl1, or use engine='torch'")
    if engine == "egl" or (engine == "auto" and vertices.device.type == "cpu" and _egl() is not None):
        face = _egl_faces(corners, image_size).to(vertices.device)
    else:
        face = _torch_faces(corners, edges, image_size)
    return _fragments(face, edges)


def interpolate(fragments: Fragments, faces: Tensor | Array, attributes: Tensor) -> Tensor:
    """(H, W, C) vertex attributes (V, C) at every pixel; zero where nothing is shown."""
    shown = torch.nonzero(fragments.face.reshape(-1) >= 0)[:, 0]  # mostly background: only touch what is shown
    corners = torch.as_tensor(faces, device=attributes.device).long()[fragments.face.reshape(-1)[shown]]
    bary = fragments.bary.reshape(-1, 3)[shown].to(attributes.dtype)
    mixed = torch.einsum("nk,nkc->nc", bary, attributes[corners])
    out = attributes.new_zeros(fragments.face.numel(), attributes.shape[1])
    return out.index_copy_(0, shown, mixed).reshape(*fragments.face.shape, -1)


def _edge_functions(corners: Tensor) -> Tensor:
    """(F, 3, 3) inverse of P, rows giving e0, e1, e2 at (u, v, 1); zeros for faces seen edge-on."""
    a, b, c = corners.unbind(1)
    rows = torch.stack([torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], dim=1)
    volume = (a * rows[:, 0]).sum(1)
    scale = a.norm(dim=1) * b.norm(dim=1) * c.norm(dim=1)
    solid = volume.abs() > 1e-15 * scale
    return torch.where(solid[:, None, None], rows / torch.where(solid, volume, 1.0)[:, None, None], 0.0)


def _boxes(corners: Tensor, image_size: tuple[int, int]) -> Tensor:
    """(F, 4) int64 pixel boxes x0, y0, x1, y1 (inclusive) that hold each face; empty ones have x1 < x0 or y1 < y0."""
    height, width = image_size
    w = corners[..., 2]
    front = (w > NEAR).all(1)
    xy = corners[..., :2] / torch.where(w > NEAR, w, 1.0)[..., None]
    last = torch.tensor([width - 1, height - 1], device=corners.device, dtype=corners.dtype)
    low = torch.minimum((xy.amin(1) - 1e-6).ceil().clamp_min(0), last + 1)
    high = torch.maximum(torch.minimum((xy.amax(1) + 1e-6).floor(), last), torch.full_like(last, -1))
    crossing = ~front & (w > NEAR).any(1)  # may show anywhere: look at the whole picture
    low = torch.where(front[:, None], low, 0.0)
    high = torch.where(front[:, None], high, torch.where(crossing[:, None], last, -1.0))
    return torch.cat([low, high], dim=1).long()


def _torch_faces(corners: Tensor, edges: Tensor, image_size: tuple[int, int]) -> Tensor:
    """(H, W) int64 nearest face by testing every pixel of every face's box; memory bounded by chunks."""
    height, width = image_size
    box = _boxes(corners, image_size)
    wide, high = (box[:, 2] - box[:, 0] + 1).clamp_min(0), (box[:, 3] - box[:, 1] + 1).clamp_min(0)
    drawn = torch.nonzero((wide * high > 0) & edges[:, 0].abs().amax(1).gt(0))[:, 0]
    # e at the box's first pixel and its steps along x and y: small numbers, so float32 is exact enough from here on
    corner = torch.cat([box[drawn, :2].double(), torch.ones_like(box[drawn, :1], dtype=torch.float64)], dim=1)
    start = torch.einsum("fij,fj->if", edges[drawn], corner).float().contiguous()  # (3, F): one row each, for speed
    step_x, step_y = (edges[drawn, :, k].float().T.contiguous() for k in (0, 1))
    x0, y0, wide, area = box[drawn, 0], box[drawn, 1], wide[drawn], (wide * high)[drawn]
    best = torch.full((height * width,), _EMPTY, dtype=torch.int64, device=corners.device)
    for row, offset in _chunks(area):
        dy = torch.div(offset, wide[row], rounding_mode="floor")
        dx = offset - dy * wide[row]
        x, y = dx.float(), dy.float()
        e0, e1, e2 = (start[k][row] + x * step_x[k][row] + y * step_y[k][row] for k in range(3))
        total = e0 + e1 + e2
        lowest = torch.minimum(torch.minimum(e0, e1), e2)
        inside = torch.nonzero((lowest >= -1e-6 * total) & (total > 0) & (total < 1 / NEAR))[:, 0]
        face = row[inside]
        depth_bits = (1 / total[inside]).view(torch.int32).long()  # positive floats sort like their bits
        pixel = (y0[face] + dy[inside]) * width + x0[face] + dx[inside]
        best.scatter_reduce_(0, pixel, depth_bits << 32 | drawn[face], "amin")
    return torch.where(best == _EMPTY, -1, best & 0xFFFFFFFF).reshape(height, width)


def _chunks(area: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (row, offset) of every candidate pixel of every row of ``area``, at most ``_CANDIDATES`` at a time."""
    ends = area.cumsum(0)
    starts = ends - area
    total = int(ends[-1]) if len(ends) else 0
    for first in range(0, total, _CANDIDATES):
        last = min(first + _CANDIDATES, total)
        row = torch.repeat_interleave((ends.clamp_max(last) - starts.clamp_min(first)).clamp_min(0))
        yield row, torch.arange(first, last, device=area.device) - starts[row]


def _fragments(face: Tensor, edges: Tensor) -> Fragments:
    """Barycentrics and depth of the face each pixel shows, the same arithmetic whoever found the face."""
    height, width = face.shape
    shown = torch.nonzero(face.reshape(-1) >= 0)[:, 0]
    inverse = edges[face.reshape(-1)[shown]]
    x, y = (shown % width).double()[:, None], torch.div(shown, width, rounding_mode="floor").double()[:, None]
    e = (inverse[..., 0] * x + inverse[..., 1] * y + inverse[..., 2]).clamp_min(0)
    total = e.sum(1, keepdim=True).clamp_min(1e-12)
    bary = torch.zeros(height * width, 3, device=face.device).index_copy_(0, shown, (e / total).float())
    depth = torch.full((height * width, 1), torch.inf, device=face.device).index_copy_(0, shown, (1 / total).float())
    bary, depth = bary.reshape(height, width, 3), depth.reshape(height, width)
    return Fragments(face, bary, depth)


# ---------------------------------------------------------------------------------------------------- OpenGL

_GL = threading.local()
_VERTEX_SHADER = """#version 330
uniform vec4 lens;  // 2/W, 2/H, near, far
in vec3 corner;     // K times the vertex: x, y, w
void main() {
    float w = corner.z;
    gl_Position = vec4((corner.x + 0.5 * w) * lens.x - w, (corner.y + 0.5 * w) * lens.y - w,
                       (w * (lens.w + lens.z) - 2.0 * lens.w * lens.z) / (lens.w - lens.z), w);
}"""
_FRAGMENT_SHADER = """#version 330
out vec4 colour;  // face number + 1 in 24 bits; 0 is empty
void main() {
    int n = gl_PrimitiveID + 1;
    colour = vec4(n & 255, n >> 8 & 255, n >> 16 & 255, 255) / 255.0;
}"""


def _egl() -> Any:
    """This thread's OpenGL context without a window, or None; tried once per thread and process."""
    if getattr(_GL, "pid", None) != os.getpid():  # a context does not survive a fork
        _GL.pid, _GL.context, _GL.problem, _GL.buffers = os.getpid(), None, "", {}
        try:
            import moderngl

            _GL.context = moderngl.create_context(standalone=True, backend="egl", require=330)
            _GL.program = _GL.context.program(vertex_shader=_VERTEX_SHADER, fragment_shader=_FRAGMENT_SHADER)
        except Exception as e:  # whatever a driver throws: the torch path needs none of it
            _GL.context, _GL.problem = None, f"{type(e).__name__}: {e}"
    return _GL.context


def _egl_problem() -> str:
    return getattr(_GL, "problem", "")


def _egl_target(image_size: tuple[int, int]) -> Any:
    """A framebuffer with depth, kept for the next picture of this size."""
    if image_size not in _GL.buffers:
        for old in _GL.buffers.values():
            old.release()
        height, width = image_size
        numbers = _GL.context.renderbuffer((width, height), components=4)
        _GL.buffers = {image_size: _GL.context.framebuffer([numbers], _GL.context.depth_renderbuffer((width, height)))}
    return _GL.buffers[image_size]


def _egl_faces(corners: Tensor, image_size: tuple[int, int]) -> Tensor:
    """(H, W) int64 nearest face, found by OpenGL."""
    import moderngl

    context, (height, width) = _egl(), image_size
    if not len(corners):
        return torch.full(image_size, -1)
    target = _egl_target(image_size)
    near = max(float(corners[..., 2].min()) * 0.99, NEAR)  # a tight range: depth bits are few
    far = max(float(corners[..., 2].max()) * 1.01, 2 * near)
    target.use()
    context.enable_only(moderngl.DEPTH_TEST)
    target.clear(0.0, 0.0, 0.0, 0.0)
    _GL.program["lens"].value = (2 / width, 2 / height, near, far)
    data = context.buffer(corners.float().cpu().numpy().tobytes())
    mesh = context.vertex_array(_GL.program, [(data, "3f", "corner")])
    mesh.render(moderngl.TRIANGLES)
    raw = np.frombuffer(target.read(components=4), np.uint8).reshape(height, width, 4).astype(np.int64)
    mesh.release()
    data.release()
    return torch.from_numpy((raw[..., 0] | raw[..., 1] << 8 | raw[..., 2] << 16) - 1)


# ---------------------------------------------------------------------------------------------------- colours


def vertex_normals(vertices: Tensor, faces: Tensor | Array) -> Tensor:
    """(V, 3) unit normals, outward, weighted by face area."""
    index = torch.as_tensor(faces, device=vertices.device).long()
    a, b, c = vertices[index].unbind(1)
    normal = torch.linalg.cross(b - a, c - a)
    total = torch.zeros_like(vertices).index_add_(0, index.reshape(-1), normal.repeat_interleave(3, dim=0))
    return torch.nn.functional.normalize(total, dim=1, eps=1e-12)


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
    vertices, faces = body.posed(params).vertices[0].float(), body.faces
    height, width = params.image_size
    if style == "parts":
        part = part_map(body, params, engine)
        return np.where(part[..., None] >= 0, _PART_COLOURS[part], 0).astype(np.uint8)
    K, size = supersampled(params.K, supersample), (height * supersample, width * supersample)
    fragments = rasterise(vertices, faces, K, size, engine)
    normals = vertex_normals(vertices, faces)
    if style == "normals":
        smooth = torch.nn.functional.normalize(interpolate(fragments, faces, normals), dim=-1)
        picture = (smooth * smooth.new_tensor([1, -1, -1]) + 1) * 127.5 * (fragments.face >= 0)[..., None]
    elif style == "surface":
        picture = interpolate(fragments, faces, torch.as_tensor(rest_colours(body)).to(vertices))
    else:
        root = torch.tensor(rotation(params.pose[0]), dtype=normals.dtype, device=normals.device)
        light = 0.85 + 0.15 * (normals @ root) @ _LIGHT.to(normals)
        picture = interpolate(fragments, faces, torch.as_tensor(_albedo(body)).to(vertices) * light[:, None])
    mean = picture.reshape(height, supersample, width, supersample, 3).mean((1, 3))
    return mean.clamp(0, 255).round().byte().cpu().numpy()


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
    fragments = rasterise(body.posed(params).vertices[0].float(), body.faces, params.K, params.image_size, engine)
    face = fragments.face.cpu().numpy()
    return np.where(face >= 0, face_parts(body)[face], -1)


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
