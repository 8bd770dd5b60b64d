"""Drafts of what a call asks for: a person in the given garments, a garment off a photo. Nothing is learned here.

The lookup itself is :func:`omfa.bodies.surface.draft`; here is who is looked up in what. Legend: ``H W`` pixels.

    stand = standing(body, "upper", (256, 192))
    shirt = draft_garment(body, stand, Shown(photo, photo_params))
    other = draft_person(body, other_params, (256, 192), [Shown(shirt_picture, stand)])
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from omfa.bodies.body import Body
from omfa.bodies.parameters import BodyParameters
from omfa.bodies.pose_render import rest_colours
from omfa.bodies.rasterise import interpolate
from omfa.bodies.surface import Draft, Seen, Source, covered, draft, head_mask, resized, see
from omfa.bodies.windows import largest, mean

ROOM = 0.015  # of a photo's height: how far beside an outline or a draft it may still change
_LIMBS = [1, 2, 3, 4, 5, 16, 17, 18, 19]  # joints: hips, spine, knees, shoulders, elbows
KEPT = 16  # bodies: one photo takes part in several drafts, one garment in those of many views

_kept: WeakKeyDictionary[BodyParameters, tuple[Body, tuple[int, int], Seen]] = WeakKeyDictionary()


def _seen(body: Body, params: BodyParameters, size: tuple[int, int]) -> Seen:
    """:func:`see`, once for the same parameters, and forgotten with them: a call's are gone when it is done."""
    known = _kept.get(params)
    if known is not None and known[:2] == (body, size):
        return known[2]
    seen = see(body, params, size)
    for oldest in list(_kept)[: max(0, len(_kept) + 1 - KEPT)]:
        _kept.pop(oldest, None)
    _kept[params] = (body, size, seen)
    return seen


@dataclass(frozen=True, eq=False)
class Shown:
    """A picture whose body is known.

    Args:
        picture: (3, H, W) in [-1, 1].
        params: the body in it; stretched to the picture's size if it was made for another.
        mask: (H, W) bool or in [0, 1], what of the picture counts; None: all but paper.
    """

    picture: Tensor
    params: BodyParameters
    mask: Tensor | None = None

    def source(self, body: Body, layer: int = 0) -> Source:
        """To look up in; errors as :class:`omfa.bodies.surface.Source`."""
        height, width = self.picture.shape[-2:]
        return Source(self.picture, _seen(body, self.params, (height, width)), self.mask, layer)

    def checked(self, body: Body) -> Shown:
        """Itself, if it can be looked up in: one that can't would lose the draft of all. Errors as :meth:`source`."""
        self.source(body)
        return self


def draft_person(
    body: Body,
    params: BodyParameters,
    size: tuple[int, int],
    garments: Sequence[Shown],
    portrait: Tensor | None = None,
    face: Shown | None = None,
) -> Draft:
    """A person in a pose, as far as their garments and face tell.

    Args:
        body: everybody's.
        params: the pose and camera.
        size: (H, W) of the draft.
        garments: from the innermost to the outermost; the body's own size and pose in each picture does not matter.
        portrait: (3, H, W) the photo to be changed, in this very pose: what the garments leave open is its.
        face: a picture of their head; nothing else of it counts, but hair and wall beside the head alike.

    Returns:
        The draft; with a portrait all of it is valid.

    Raises:
        NoDraft: another body's parameters, or a body that is not in its picture.
        ValueError: a portrait of another size.
    """
    innermost = len(garments)
    sources = [g.source(body, innermost - 1 - i) for i, g in enumerate(garments)]
    if face is not None:
        head = head_mask(_seen(body, face.params, (face.picture.shape[1], face.picture.shape[2])), body)
        if bool(head.any()):
            sources.append(replace(face, mask=head).source(body, innermost))
    made = draft(_seen(body, params, size), sources)
    return made if portrait is None else over(made, portrait)


def draft_garment(body: Body, stand: BodyParameters, person: Shown, wall: bool = False) -> Draft:
    """A shop picture, as far as a photo of somebody tells; their skin and other clothes come along.

    Args:
        body: everybody's.
        stand: how a body would stand in the shop picture (:mod:`omfa.bodies.standing`), and its size.
        person: the photo.
        wall: what is beside the body comes along too, skirts and wide sleeves and the wall alike: a composer, which
            tells them apart, is trained so. In place of the photo's mask.

    Raises:
        NoDraft: as :func:`draft_person`.
    """
    if wall:
        person = replace(person, mask=torch.ones(person.picture.shape[-2:], dtype=torch.bool))
    return draft(_seen(body, stand, stand.image_size), [person.source(body)])


def coverage(made: Draft, body: Body, params: BodyParameters) -> float:
    """The share of the target's body, as far as it is in the picture, where a draft is valid."""
    on = _seen(body, params, (made.valid.shape[0], made.valid.shape[1])).fragments.face >= 0
    return float((made.valid & on).sum() / on.sum())


def seen_map(body: Body, params: BodyParameters, size: tuple[int, int]) -> Tensor:
    """(3, H, W) in [-1, 1] the surface map, with hard edges: nearly free where a draft has been made of the body."""
    seen = _seen(body, params, size)
    colours = interpolate(seen.fragments, seen.faces, torch.from_numpy(rest_colours(body)))
    return rearrange(colours.round() / 127.5 - 1, "h w c -> c h w")


def over(made: Draft, ground: Tensor) -> Draft:
    """A draft laid over a picture (3, H, W) in [-1, 1]; all of it is valid. ValueError for one of another size."""
    if ground.shape != made.picture.shape:
        raise ValueError(f"a picture of shape {tuple(ground.shape)} under a draft of {tuple(made.picture.shape)}")
    return Draft(torch.where(made.valid, made.picture, ground), torch.ones_like(made.valid))


def face_mask(seen: Seen, body: Body) -> Tensor:
    """(H, W) bool where the face is seen: eyes, nose, cheeks, mouth; not the chin, nor where hair may hang."""
    joints = torch.from_numpy(body.rest_joints).to(seen.rest)
    eyes, head = joints[[23, 24]].mean(0), joints[15]
    across, up, ahead = seen.rest[seen.faces].mean(1).unbind(1)
    face = (up < eyes[1] + 0.02) & (up > eyes[1] - 0.08) & (ahead > (eyes[2] + head[2]) / 2)
    face &= (across - eyes[0]).abs() < 0.06
    shows = seen.fragments.face
    return (shows >= 0) & face[shows.clamp_min(0)]


def changeable(
    body: Body, params: BodyParameters, clothes: Draft, categories: Collection[str], outline: Tensor | None = None
) -> Tensor:
    """Where a photo may change when clothes are put on in it; whatever else a model makes of it, it stays the photo.

    Faces never change.

    Args:
        body: everybody's.
        params: the body in the photo.
        clothes: their draft on that body, without the photo.
        categories: what they are.
        outline: (H, W) bool, the person in the photo: only they and what the clothes cover change. None: not known.

    Returns:
        (H, W) in [0, 1], with soft borders.
    """
    height, width = clothes.valid.shape
    radius = max(1, round(ROOM * height))

    def grown(where: Tensor) -> Tensor:
        return largest(where[None].float(), radius)[0] > 0

    seen = _seen(body, params, (height, width))
    where = covered(seen, body, categories)
    where = (where if outline is None else where & grown(outline)) | grown(clothes.valid)
    where &= ~face_mask(seen, body).to(where)  # a collar that is drafted too high must not cover it
    return mean(where[None].float(), radius)[0]


def nudged(stand: BodyParameters, rng: np.random.Generator, error: float = 1.0) -> BodyParameters:
    """A standing body, a little wrong, as an estimate is: training on the truth's own framing would tell the answer.

    Args:
        stand: a shop picture's.
        rng: draws everything.
        error: 1 for standard deviations of 6 degrees of the arms, 4 % of the size, 2 % of the height in place.
    """
    degrees, scale, shift = 6.0 * error, 0.04 * error, 0.02 * error
    pose, transl = stand.pose.copy(), stand.transl.astype(np.float64)
    pose[16, 2] += (arms := np.radians(rng.normal(0, degrees)))
    pose[17, 2] -= arms
    metres = stand.image_size[0] / stand.K[1, 1] * transl[2]
    transl[:2] += rng.normal(0, shift, 2) * metres
    transl[2] *= np.exp(rng.normal(0, scale))
    return replace(stand, pose=pose, transl=transl)


def misfit(params: BodyParameters, rng: np.random.Generator) -> BodyParameters:
    """A person's body, a little wrong, as one fitted to a photo is: 2 degrees at limbs and spine, .4 % of the height.

    Args:
        params: the true one.
        rng: draws everything.
    """
    pose, transl = params.pose.copy(), params.transl.astype(np.float64)
    pose[_LIMBS] += np.radians(rng.normal(0, 2.0, (len(_LIMBS), 3)))
    transl[:2] += rng.normal(0, 0.004, 2) * params.image_size[0] / params.K[1, 1] * transl[2]
    transl[2] *= np.exp(rng.normal(0, 0.01))
    return replace(params, pose=pose, transl=transl)


def fitted(
    params: BodyParameters, top: int, left: int, inner: tuple[int, int], size: tuple[int, int]
) -> BodyParameters:
    """The same scene in a picture that was scaled to ``inner`` (H, W) and laid into one of ``size`` at (top, left)."""
    scaled = resized(params, inner)
    K = scaled.K.copy()
    K[:2, 2] += left, top
    return replace(scaled, K=K, image_size=size)
