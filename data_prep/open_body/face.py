"""Landmarks of the face, and the vertices whose numbers SMPL-X fixes.

Legend: V vertices, F faces, J = 55 joints.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from data_prep.open_body.makehuman import Array
from omfa.bodies.body import KEY_VERTICES


def key_vertices(template: Array, joints: Array, weights: Array) -> dict[str, int]:
    """This mesh's vertex for each name of SMPL-X's table (nose, eyes, ears, finger tips, toes, heels)."""
    heaviest, key = weights.argmax(1), dict[str, int]()
    head = np.nonzero(weights[:, 15] + weights[:, 22] > 0.5)[0]
    key["nose"] = head[template[head, 2].argmax()]
    for right, (side, sign) in enumerate((("l", 1.0), ("r", -1.0))):
        eye = np.nonzero(weights[:, 23 + right] > 0.5)[0]
        at = joints[23 + right]
        key[f"{side}eye"] = eye[(template[eye, 2] - 5 * np.abs(template[eye, :2] - at[:2]).sum(1)).argmax()]
        level = head[np.abs(template[head, 1] - at[1]) < 0.06]
        key[f"{side}ear"] = level[(sign * template[level, 0]).argmax()]
        for finger, name in enumerate(("index", "middle", "pinky", "ring", "thumb")):
            last = 27 + 15 * right + 3 * finger
            tip = np.nonzero(heaviest == last)[0]
            key[f"{side}{name}"] = tip[(template[tip] @ (joints[last] - joints[last - 1])).argmax()]
        toes, out = np.nonzero(heaviest == 10 + right)[0], sign * joints[10 + right, 0]
        inner, outer = toes[sign * template[toes, 0] < out], toes[sign * template[toes, 0] > out + 0.02]
        key[f"{side.upper()}BigToe"] = inner[template[inner, 2].argmax()]
        key[f"{side.upper()}SmallToe"] = outer[(sign * template[outer, 0]).argmax()]
        sole = np.nonzero(heaviest == 7 + right)[0]
        sole = sole[template[sole, 1] < template[sole, 1].min() + 0.03]
        key[f"{side.upper()}Heel"] = sole[template[sole, 2].argmin()]
    assert set(key) == set(KEY_VERTICES) and len(set(key.values())) == len(key)
    return {name: int(v) for name, v in key.items()}


def reorder(key: dict[str, int], count: int) -> Array:
    """(V,) permutation: new vertex i is old vertex order[i], with the key vertices at SMPL-X's numbers."""
    order = np.arange(count)
    for name, goal in KEY_VERTICES.items():
        now = int(np.nonzero(order == key[name])[0][0])
        order[now], order[goal] = order[goal], order[now]
    return order


# The 51 points of the iBUG face scheme, centimetres right of (towards the person's left) and above a point 6 cm over
# the head joint, picked on a front view of the neutral face. The person's right half mirrors the left one.
_BROW = ((5.6, -0.2), (4.6, 0.4), (3.4, 0.55), (2.3, 0.35), (1.3, -0.1))  # outer to inner
_NOSE = ((0, -2.0), (0, -3.2), (0, -4.4), (0, -5.7))
_NOSTRIL = ((1.4, -6.5), (0.7, -6.75), (0, -6.9))
_EYE = ((4.5, -2.0), (3.8, -1.62), (2.8, -1.64), (2.0, -2.1), (2.8, -2.4), (3.8, -2.42))  # outer corner, over the top
_LIPS = ((2.5, -9.25), (1.5, -8.65), (0.6, -8.45), (0, -8.6), (0.8, -10.4), (1.7, -9.95))  # corner, top, bottom inwards
_LIP_BOTTOM = (0, -10.45)
_INNER = ((2.2, -9.22), (0.9, -9.05), (0, -9.1), (0, -9.3), (0.9, -9.28))  # corner, top, bottom


def face_points() -> tuple[Array, Array]:
    """(51, 2) metres as above, in iBUG's order 17 to 67, and (51,) whether a point sits on the rim of an opening."""

    def mirrored(points: Any) -> list[tuple[float, float]]:
        return [(-x, y) for x, y in points]

    eye = [_EYE[k] for k in (3, 2, 1, 0, 5, 4)]  # the left eye starts at its inner corner
    corner, *top, low_inner, low_outer = _LIPS
    lips = [*mirrored([corner, *top]), top[1], top[0], corner, low_outer, low_inner, _LIP_BOTTOM]
    lips += mirrored([low_inner, low_outer])
    top = [*mirrored(_INNER[:2]), _INNER[2], _INNER[1], _INNER[0]]
    inner = [*top, _INNER[4], _INNER[3], *mirrored(_INNER[4:])]
    nose = [*_NOSE, *mirrored(_NOSTRIL), _NOSTRIL[1], _NOSTRIL[0]]
    points = [*mirrored(_BROW), *_BROW[::-1], *nose, *mirrored(_EYE), *eye, *lips, *inner]
    rim = np.zeros(51, bool)
    rim[[*range(19, 31), *range(43, 51)]] = True
    return np.array(points) / 100, rim


def face_landmarks(template: Array, faces: Array, joints: Array, weights: Array) -> tuple[Array, Array]:
    """Face index (51 + 17,) and barycentric coordinates (51 + 17, 3): iBUG's 17 to 67, then the contour 0 to 16."""
    skin = (weights[:, 15] + weights[:, 22] > 0.6) & (weights[:, 23] + weights[:, 24] < 0.01)
    near = np.nonzero(skin[faces].all(1) & (template[faces][..., 2] > joints[15, 2]).all(1))[0]
    corners, found = template[faces[near]], []
    points, rim = face_points()
    for point, on_rim in zip(points + joints[15, :2] + [0, 0.06], rim, strict=True):
        bary = _barycentric(corners[..., :2], point)
        inside = np.nonzero((bary > -1e-6).all(1))[0]
        depth = (bary[inside] * corners[inside, :, 2]).sum(1)
        if on_rim:  # the vertex nearest to the point among those near the front
            front = depth.max(initial=-1.0) if len(inside) else -1.0
            eye_or_lip = corners[..., 2].reshape(-1) > max(front, joints[23, 2]) - 0.012
            gap = np.linalg.norm(corners[..., :2].reshape(-1, 2) - point, axis=1) + 10 * ~eye_or_lip
            pick = int(gap.argmin())
            found.append((near[pick // 3], np.eye(3)[pick % 3]))
        else:
            found.append((near[inside[depth.argmax()]], bary[inside[depth.argmax()]]))
    found += [_vertex_on_face(v, faces) for v in jaw_line(template, joints, weights)]
    return np.array([f for f, _ in found], np.int64), np.array([b for _, b in found])


def _barycentric(triangles: Array, point: Array) -> Array:
    """(n, 3) coordinates of a 2-D point in n 2-D triangles; -1 for triangles seen edge-on."""
    a, b, c = triangles[:, 0], triangles[:, 1], triangles[:, 2]
    area = np.cross(b - a, c - a)
    u, v = np.cross(b - point, c - point), np.cross(c - point, a - point)
    flat = np.abs(area) < 1e-12
    area = np.where(flat, 1, area)
    return np.where(flat[:, None], -1, np.stack([u / area, v / area, 1 - (u + v) / area], 1))


def _vertex_on_face(vertex: int, faces: Array) -> tuple[int, Array]:
    face = int(np.nonzero((faces == vertex).any(1))[0][0])
    return face, (faces[face] == vertex).astype(float)


def jaw_line(template: Array, joints: Array, weights: Array) -> Array:
    """(17,) vertices along the jaw from the person's right ear to the left one: outermost in 17 directions."""
    centre = joints[15] + [0, 0.03, 0]
    jaw = weights[:, 22] > 0.5
    side = (weights[:, 15] > 0.9) & (template[:, 2] > joints[15, 2] + 0.03) & (template[:, 1] > joints[15, 1] - 0.02)
    near = np.nonzero((jaw | side) & (template[:, 1] < centre[1] + 0.01))[0]
    offset = template[near, :2] - centre[:2]
    left = []
    for angle in np.radians(np.linspace(270, 360, 9)):  # chin to the left ear
        out = np.array([np.cos(angle), np.sin(angle)])
        across = np.abs(offset @ [-out[1], out[0]])
        left.append(near[(offset @ out - 3 * across).argmax()])
    right = [((template - template[v] * [-1, 1, 1]) ** 2).sum(1).argmin() for v in left[:0:-1]]
    return np.array([*right, *left])
