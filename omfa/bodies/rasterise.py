"""Which face of a mesh each pixel shows, and where on it: in plain torch on any device, or by OpenGL without a display.

Both paths give the same picture. Legend: V vertices, F faces, H W pixels, C channels.
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

Array = NDArray[Any]
Engine = Literal["auto", "torch", "egl"]
NEAR = 0.01  # metres; nothing nearer is drawn
_CANDIDATES = 1 << 20  # (face, pixel) pairs looked at together: bounds memory to about 100 MB
_EMPTY = torch.iinfo(torch.int64).max


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


def vertex_normals(vertices: Tensor, faces: Tensor | Array) -> Tensor:
    """(V, 3) unit normals, outward, weighted by face area."""
    index = torch.as_tensor(faces, device=vertices.device).long()
    a, b, c = vertices[index].unbind(1)
    normal = torch.linalg.cross(b - a, c - a)
    total = torch.zeros_like(vertices).index_add_(0, index.reshape(-1), normal.repeat_interleave(3, dim=0))
    return torch.nn.functional.normalize(total, dim=1, eps=1e-12)
