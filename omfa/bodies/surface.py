"""The surface carries the clothes: a picture of a target is drafted from pictures whose bodies are known.

One place of the body is at one pixel here and at another there. Each pixel of the target looks its surface point up in
the given pictures, where it is visible; a pixel beside the body looks beside the body, so that skirts and wide sleeves
come along. Nothing is learned here, and nothing is guessed: what no picture shows stays empty.

    shop = Source(picture, see(body, garment_params, (256, 192)), mask)
    made = draft(see(body, person_params, (256, 192)), [shop])  # made.picture where made.valid

Legend: H W pixels, V vertices, F faces, M pixels that are looked up. Camera frame and pixels: :mod:`omfa.bodies.body`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from einops import einsum
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from omfa.bodies.body import PARTS, Body, vertex_parts
from omfa.bodies.paper import check_range, off_paper
from omfa.bodies.parameters import BodyParameters
from omfa.bodies.placing import rotation
from omfa.bodies.pose_render import render_pose_map
from omfa.bodies.rasterise import NEAR, Fragments, rasterise, vertex_normals
from omfa.bodies.windows import largest, mean

Array = NDArray[Any]

THICKNESS = 0.02  # metres that clothes may stand off the body before they hide what is behind them
MARGIN = 0.015  # metres around whatever is in front where the picture is not trusted: clothes are wider than bodies
STRETCH = 0.35  # the source must see a point at least this squarely, as a share of how squarely the target sees it
GRAZING = 0.1  # cosine between normal and line of sight below which a picture shows nothing of use
ASTRAY = 0.25  # metres on the body at rest: farther off, a pixel beside an arm shows the trunk, not the sleeve
SEAM = 0.01  # metres; gaps narrower than this are closed
AROUND = -0.7  # cosine down to which cloth beside the body still shows: it stands off the side that faces away
SHARPNESS = 4  # of blending: weight = cosine to this power, so that the squarest view nearly wins alone
_PLAIN = set(PARTS) - {"left_hand", "right_hand", "left_foot", "right_foot"}  # parts that clothes stand off from

_ARMS = ("left_upper_arm", "right_upper_arm", "left_forearm", "right_forearm")
_LEGS = ("left_thigh", "right_thigh", "left_shin", "right_shin")
_COVERS = {  # parts of the body
    "upper": ("torso", *_ARMS, *_LEGS[:2]), "lower": ("torso", *_LEGS), "dress": ("torso", *_ARMS, *_LEGS)
}  # fmt: skip
_HEM = 0.12  # metres below the hips: no longer top is expected under or over another's hem
_ANYWHERE = {"shoes", "bag", "hat"}  # who knows where a bag hangs


class NoDraft(ValueError):
    """There is no draft to be had from this body or picture; says why."""


@dataclass(frozen=True, eq=False)
class Seen:
    """A posed body before a camera. Made by :func:`see`.

    Args:
        body_hash: of the body.
        K: (3, 3) float32 camera of this size.
        faces: (F, 3) int64.
        vertices: (V, 3) float32 camera frame, metres.
        normals: (V, 3) outward.
        rest: (V, 3) the template.
        turns: (V, 3, 3) how the skin at rest is turned there, blended over joints (so not quite a rotation).
        loose: (V,) bool, where clothes may stand off: all but hands and feet.
        fragments: what each pixel shows.
    """

    body_hash: str
    K: Tensor
    faces: Tensor
    vertices: Tensor
    normals: Tensor
    rest: Tensor
    turns: Tensor
    loose: Tensor
    fragments: Fragments

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        height, width = self.fragments.face.shape
        return height, width

    @property
    def pixels_per_metre(self) -> float:
        """At the middle of what is seen."""
        return float(self.K[1, 1] / self.fragments.depth[self.fragments.face >= 0].median())


@dataclass(frozen=True, eq=False)
class Source:
    """A picture to look up in.

    Args:
        picture: (3, H, W) in [-1, 1], of the size of ``seen``.
        seen: the body in it.
        mask: (H, W) bool or in [0, 1], what of the picture counts: a garment, or what a portrait keeps. None: all but
            paper (:func:`omfa.bodies.paper.off_paper`).
        layer: 0 is outermost. What lies farther out hides what lies farther in; pictures of one layer are blended.

    Raises:
        ValueError: shapes do not fit, or numbers are not finite or not in [-1, 1].
        NoDraft: the mask is empty.
    """

    picture: Tensor
    seen: Seen
    mask: Tensor | None = None
    layer: int = 0

    def __post_init__(self) -> None:
        if tuple(self.picture.shape) != (3, *self.seen.size):
            raise ValueError(f"picture is {tuple(self.picture.shape)}; its body was seen at (3, *{self.seen.size})")
        check_range(self.picture)
        if self.mask is not None and tuple(self.mask.shape) != self.seen.size:
            raise ValueError(f"mask is {tuple(self.mask.shape)}; the picture is {self.seen.size}")
        if self.mask is not None and not (self.mask > 0.5).any():
            raise NoDraft("the mask is empty: nothing of this picture counts; leave the picture out")


class Draft(NamedTuple):
    """picture (3, H, W) in [-1, 1], zero (grey) where nothing is known; valid (H, W) bool."""

    picture: Tensor
    valid: Tensor


# ---------------------------------------------------------------------------------------------------- bodies, seen


@torch.no_grad()
def see(body: Body, params: BodyParameters, size: tuple[int, int] | None = None) -> Seen:
    """Pose a body once and put it before its camera, on the body's device.

    Args:
        body: the body that the parameters were made with.
        params: pose, shape and camera.
        size: (H, W) of the picture, stretched to from ``params.image_size``; None: that size.

    Raises:
        NoDraft: another body's parameters, or nothing of the body is in the picture.
    """
    params = params if size is None else resized(params, size)
    try:
        vertices = body.posed(params).vertices[0].float()
    except ValueError as e:
        raise NoDraft(str(e)) from None
    faces = torch.as_tensor(body.faces, device=vertices.device)
    fragments = rasterise(vertices, faces, params.K, params.image_size)
    if not (fragments.face >= 0).any():
        where = "behind the camera" if float(vertices[:, 2].max()) < NEAR else "outside the picture"
        raise NoDraft(f"the body is {where} (transl {params.transl.tolist()}): nothing can be looked up")
    turns = torch.tensor(_joint_turns(body, params.pose), device=vertices.device)
    weights = body.model.lbs_weights
    return Seen(
        body.hash,
        torch.tensor(params.K, device=vertices.device),
        faces,
        vertices,
        vertex_normals(vertices, faces),
        body.model.v_template.float(),
        einsum(weights.float(), turns, "v j, j a b -> v a b"),
        torch.as_tensor(np.isin(np.array(PARTS)[vertex_parts(body)], list(_PLAIN)), device=vertices.device),
        fragments,
    )


def resized(params: BodyParameters, size: tuple[int, int]) -> BodyParameters:
    """The same scene in a picture of another size (H, W)."""
    factor = np.array([size[1] / params.image_size[1], size[0] / params.image_size[0]])
    scale = np.diag([*factor, 1.0])
    scale[:2, 2] = (factor - 1) / 2  # pixel centres are at whole numbers
    return replace(params, K=scale @ params.K, image_size=size)


def at_most(params: BodyParameters, side: int) -> BodyParameters:
    """The same scene with neither side of its picture over so many pixels, its own proportions kept."""
    share = side / max(params.image_size)
    if share >= 1:
        return params
    height, width = (max(1, round(n * share)) for n in params.image_size)
    return resized(params, (height, width))


def surface_map(body: Body, params: BodyParameters, size: tuple[int, int] | None = None) -> Array:
    """(H, W, 3) uint8 each place at rest as its own colour, on black: the same place, the same colour in any pose.

    Raises:
        NoDraft: another body's parameters.
    """
    try:
        return render_pose_map(body, params if size is None else resized(params, size), "surface")
    except ValueError as e:
        raise NoDraft(str(e)) from None


def head_mask(seen: Seen, body: Body) -> Tensor:
    """(H, W) bool where a picture shows the head and neck, or what is beside them."""
    head = torch.from_numpy(vertex_parts(body) == PARTS.index("head")).to(seen.vertices.device)
    return head[_place_at(seen)]


def covered(seen: Seen, body: Body, categories: Collection[str], reach: float = 0.25) -> Tensor:
    """(H, W) bool where clothes of these categories may show, those put on or those taken off: never face and hands.

    Args:
        seen: a body before a camera.
        body: the same.
        categories: "upper", "lower", "dress"; of "shoes", "bag" and "hat", all of the picture.
        reach: metres beside the body.

    Raises:
        ValueError: another word, or a reach that is none.
    """
    if unknown := set(categories) - set(_COVERS) - _ANYWHERE:
        known = ", ".join((*_COVERS, *sorted(_ANYWHERE)))
        raise ValueError(f"categories {', '.join(sorted(map(str, unknown)))} are not known; known are {known}")
    _check_reach(reach)
    if set(categories) & _ANYWHERE:
        return torch.ones(seen.size, dtype=torch.bool, device=seen.vertices.device)
    parts, up, joints = vertex_parts(body), body.template[:, 1], body.rest_joints[:, 1]
    here_too = {"upper": up > joints[[1, 2]].mean() - _HEM, "lower": (up < joints[6]) | (parts != PARTS.index("torso"))}
    on = np.zeros(len(parts), bool)
    for category in categories:
        here = np.isin(parts, [PARTS.index(name) for name in _COVERS[category]])
        on |= here & here_too.get(category, True)
    near = (seen.fragments.face >= 0).flatten()
    near[_beside(seen, reach)[0]] = True
    return near.reshape(seen.size) & torch.from_numpy(on).to(near.device)[_place_at(seen)]


def _joint_turns(body: Body, pose: Array) -> Array:
    """(55, 3, 3) float32 rotations from rest to the camera frame."""
    turns = np.zeros((len(pose), 3, 3), np.float32)
    for j, parent in enumerate(body.parents):
        turns[j] = rotation(pose[j]) if parent < 0 else turns[parent] @ rotation(pose[j])
    return turns


# ---------------------------------------------------------------------------------------------------- drafts


@torch.no_grad()
def draft(target: Seen, sources: Sequence[Source], reach: float = 0.2) -> Draft:
    """The target's picture, as far as the sources show it, on the target's device.

    Args:
        target: the body that is to be seen.
        sources: pictures of bodies with the same surface: garments, other photos of the person, a portrait.
        reach: metres beside the body up to which pixels are looked up too; 0: the body alone. Only in sources that say
            where cloth ends: with a mask, or on paper.

    Returns:
        The draft. Valid nowhere if the sources show nothing that the target does, such as a back and a front.

    Raises:
        NoDraft: a source shows another body.
        ValueError: a reach that is none.
    """
    _check_reach(reach)
    for source in sources:
        if source.seen.body_hash != target.body_hash:
            raise NoDraft(f"a source shows body {source.seen.body_hash}, the target is {target.body_hash}: convert one")
    at = _points(target, reach)
    colour = at.cosine.new_zeros(len(at.pixel), 3)
    known = torch.zeros_like(at.beside)
    for layer in sorted({s.layer for s in sources}):
        found = [_look_up(s, at, target, reach) for s in sources if s.layer == layer]
        weight = torch.stack([w for _, w in found]).sum(0)
        mixed = torch.stack([c * w[:, None] for c, w in found]).sum(0) / torch.clamp_min(weight, 1e-12)[:, None]
        new = ~known & (weight > 0)
        colour, known = torch.where(new[:, None], mixed, colour), known | new
    height, width = target.size
    picture, valid = colour.new_zeros(3, height * width), known.new_zeros(height * width)
    picture[:, at.pixel], valid[at.pixel] = colour.T * known, known
    made = Draft(picture.reshape(3, height, width), valid.reshape(height, width))
    return _closed(made, max(1, round(SEAM * target.pixels_per_metre / 2)))


def _check_reach(reach: float) -> None:
    if not 0 <= reach < np.inf:
        raise ValueError(f"reach is {reach}; give metres, 0 or more")


def _closed(made: Draft, radius: int) -> Draft:
    """The draft without gaps of up to twice ``radius`` pixels between what is known: filled with the mean around."""
    valid = made.valid.float()
    gap = (1 - largest(1 - largest(valid[None], radius), radius))[0].bool() & ~made.valid
    around = mean(torch.cat([made.picture * valid, valid[None]]), radius)
    return Draft(torch.where(gap, around[:3] / around[3:].clamp_min(1e-6), made.picture), made.valid | gap)


class _Points(NamedTuple):
    """Pixels of the target to look up.

    pixel (M,) of H W; corners (M, 3) vertices and bary (M, 3) of the surface point; aside (M, 3) metres from there to
    what the pixel shows, at rest; beside (M,) bool: not on the body; cosine (M,) how squarely the target sees it.
    """

    pixel: Tensor
    corners: Tensor
    bary: Tensor
    aside: Tensor
    beside: Tensor
    cosine: Tensor


def _points(target: Seen, reach: float) -> _Points:
    """Every pixel on the target's body, and every one within reach of it."""
    face, bary = target.fragments.face.flatten(), target.fragments.bary.flatten(0, 1)
    on = torch.nonzero(face >= 0)[:, 0]
    beside, nearest, away = _beside(target, reach)
    pixel, point = torch.cat([on, beside]), torch.cat([on, nearest])
    corners, mix = target.faces[face[point]], bary[point].float()
    turns = _mixed(target.turns, corners[len(on) :], mix[len(on) :])
    aside = torch.cat([mix.new_zeros(len(on), 3), torch.linalg.solve_ex(turns, away)[0]])
    cosine = _cosine(_mixed(target.normals, corners, mix), _mixed(target.vertices, corners, mix))
    return _Points(pixel, corners, mix, aside, torch.arange(len(pixel), device=pixel.device) >= len(on), cosine)


def _beside(target: Seen, reach: float) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels (M,) beside the body, the nearest pixel (M,) where clothes may begin, and metres (M, 3) from there."""
    face, nearest, width = target.fragments.face.flatten(), _nearest(target), target.size[1]
    pixel = torch.nonzero((face < 0) & (nearest >= 0))[:, 0]
    nearest = nearest[pixel]
    x, y = pixel % width - nearest % width, pixel // width - nearest // width
    z = target.fragments.depth.flatten()[nearest]
    away = torch.stack([x * z / target.K[0, 0], y * z / target.K[1, 1], torch.zeros_like(z)], 1)
    near = torch.nonzero(away.norm(dim=1) <= reach)[:, 0]
    return pixel[near], nearest[near], away[near]


def _nearest(seen: Seen) -> Tensor:
    """(H W,) for pixels beside the body the nearest pixel where clothes may begin (-1: none), else the pixel itself."""
    face = seen.fragments.face
    loose = (face >= 0) & seen.loose[seen.faces[face.clamp_min(0), 0]]
    own = torch.arange(face.numel(), device=face.device)
    if not loose.any():
        return torch.where(face.flatten() >= 0, own, -1)
    zero = (~loose).byte().cpu().numpy()  # cv2 numbers the zeros and finds each pixel's nearest
    _, number = cv2.distanceTransformWithLabels(zero, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    place = np.zeros(number.max() + 1, np.int64)
    place[number[zero == 0]] = np.flatnonzero(zero == 0)
    return torch.where(face.flatten() >= 0, own, torch.from_numpy(place[number]).to(face.device).flatten())


def _look_up(source: Source, at: _Points, target: Seen, reach: float) -> tuple[Tensor, Tensor]:
    """(M, 3) what the source shows at the points, and (M,) how much that counts; 0: not at all."""
    seen, device = source.seen, target.vertices.device
    normals, vertices, turns, rest, K = (
        x.to(device) for x in (seen.normals, seen.vertices, seen.turns, seen.rest, seen.K)
    )
    point = _mixed(vertices, at.corners, at.bary)
    cosine = _cosine(_mixed(normals, at.corners, at.bary), point)
    side = at.beside
    point[side] += einsum(_mixed(turns, at.corners[side], at.bary[side]), at.aside[side], "m a b, m b -> m a")
    z = point[:, 2].clamp_min(NEAR)
    place = (point[:, :2] / z[:, None]) @ K[:2, :2].T + K[:2, 2]
    height, width = seen.size
    grid = (place + 0.5) / place.new_tensor([width, height]) * 2 - 1

    mask, outlined = _outline(source)
    picture, mask = source.picture.to(device).float(), mask.to(device).float()
    both = torch.cat([picture * mask, mask[None]])  # premultiplied: what is masked out never bleeds in
    shrink = seen.pixels_per_metre / target.pixels_per_metre
    if shrink > 1.5:  # the target is coarser: average first, or stripes alias
        small = [max(2, round(n / shrink)) for n in seen.size]
        both = F.interpolate(both[None], small, mode="bilinear", antialias=True, align_corners=False)[0]
    sampled = F.grid_sample(both[None], grid[None, None], align_corners=False)[0, :, 0].T
    colour, share = sampled[:, :3] / sampled[:, 3:].clamp_min(1e-6), sampled[:, 3]

    # Nothing in front, within the margin. A slanted surface is nearer a margin away: that is no obstacle.
    slant = (1 - cosine**2).clamp_min(0).sqrt() / cosine.abs().clamp_min(GRAZING)
    allowed = THICKNESS + torch.where(side, reach, 1.5 * MARGIN * slant)
    front = _at(_front(seen).to(device), grid)
    open_ = (point[:, 2] > NEAR) & ((front == 0) | (point[:, 2] <= front + allowed))
    # A pixel beside the body must lie beside the same place there.
    corner = _place_at(seen).to(device)
    there = _at(corner, grid).long()
    astray = (rest[there] - _mixed(rest, at.corners, at.bary)).norm(dim=1) > ASTRAY
    squarely = torch.where(
        side, outlined & ~astray & (cosine > AROUND), cosine > torch.clamp_min(STRETCH * at.cosine, GRAZING)
    )
    weight = torch.where(side, (cosine - AROUND) / 2, cosine).clamp_min(0) ** SHARPNESS
    return colour.clamp(-1, 1), weight * (open_ & squarely & (share > 0.5))


def _at(values: Tensor, grid: Tensor) -> Tensor:
    """(M,) values (H, W) at the nearest pixels; 0 outside."""
    return F.grid_sample(values[None, None].double(), grid[None, None].double(), "nearest", align_corners=False)[
        0, 0, 0
    ]


def _place_at(seen: Seen) -> Tensor:
    """(H, W) a vertex of the face that each pixel shows, or the nearest one does."""
    nearest = _nearest(seen).clamp_min(0)
    face = seen.fragments.face.flatten()[nearest].clamp_min(0)
    return seen.faces[face, 0].reshape(seen.size)


def _front(seen: Seen) -> Tensor:
    """(H, W) the least depth within MARGIN of each pixel; 0 where there is nothing."""
    radius = max(1, round(MARGIN * seen.pixels_per_metre))
    nearest = -largest(-seen.fragments.depth[None], radius)[0]
    return torch.where(torch.isfinite(nearest), nearest, 0.0)


def _mixed(values: Tensor, corners: Tensor, bary: Tensor) -> Tensor:
    """(M, ...) values (V, ...) at surface points."""
    return einsum(values[corners], bary, "m k ..., m k -> m ...")


def _cosine(normal: Tensor, point: Tensor) -> Tensor:
    """(M,) 1: faces the camera, 0: edge on, below: faces away."""
    return -(F.normalize(normal, dim=1) * F.normalize(point, dim=1)).sum(1)


# ---------------------------------------------------------------------------------------------------- paper


def _outline(source: Source) -> tuple[Tensor, bool]:
    """(H, W) what counts, and whether its edge is where cloth ends."""
    if source.mask is not None:
        return source.mask, True
    kept = off_paper(source.picture)
    if bool(kept.all()):
        return kept, False
    rim = round(kept.shape[0] / 400)  # pixels that cloth shares with the paper
    return largest((~kept)[None].float(), rim)[0] == 0, True
