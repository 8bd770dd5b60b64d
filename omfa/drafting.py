"""What a call's bodies show: surface maps and drafts, for models that are given them (``draft``, ``pose_style``).

Legend: ``B`` pictures of a call, ``H W`` pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from functools import lru_cache, partial
from typing import NamedTuple, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from omfa import images
from omfa.bodies.body import Body
from omfa.bodies.drafts import Shown, changeable, coverage, draft_garment, draft_person, fitted, over, seen_map
from omfa.bodies.likeness import likeness
from omfa.bodies.paper import off_paper
from omfa.bodies.parameters import BodyParameters
from omfa.bodies.placing import turned
from omfa.bodies.predicted_standing import stand_in, standing_off
from omfa.bodies.standing import Kind, standing
from omfa.bodies.surface import Draft, NoDraft, covered, see
from omfa.canvas import FACE, PERSON, PORTRAIT
from omfa.components import ACCESSORIES, Category, State
from omfa.composer import KINDS, Composer
from omfa.composer import given as given_layers
from omfa.records.drawn import INSIDE_OUT, as_map
from omfa.request import Request

LARGEST = 1024  # pixels of height that pictures are composed at
LEAST = 0.1  # share of the body: a draft that shows less, such as a back's of what is seen from the front, is none
PLAIN = -0.4  # of [-1, 1], the grey of clothes that a call leaves open
PAPER = 0.16  # of [-1, 1]: what a composer leaves of a shop picture's ground is as plain as this


class Drawn(NamedTuple):
    """Slot name to B things, None where there is none.

    bodies: in pictures of the person and of garments, given or chosen. drafts: of targets, from what is given but the
    portrait.
    """

    bodies: dict[str, list[BodyParameters | None]]
    drafts: dict[str, list[Draft | None]]

    def maps(self, body: Body) -> dict[str, list[Tensor | None]]:
        """Surface maps (3, H, W) in [-1, 1] of garments' bodies."""
        drawn = {slot: several for slot, several in self.bodies.items() if slot != PERSON}
        return {slot: [None if p is None else as_map(body, p) for p in several] for slot, several in drawn.items()}


def draw(request: Request, size: tuple[int, int], body: Body, tell: bool = True) -> Drawn:
    """Bodies and drafts of everything that a call asks for.

    A body that can't be used makes no draft, and one in a given picture leaves that picture out of the others'.

    Args:
        request: whose person parameters, where known, are those of the photo (try-off) or of the wanted pose (try-on).
        size: (H, W) that person and garments are fitted to.
        body: everybody's.
        tell: whether to warn of what can't be used and why.
    """
    told: Callable[[str], None] = partial(warnings.warn, stacklevel=2) if tell else lambda _: None
    states = request.layout.states
    order = sorted(request.layout.categories, key=lambda slot: INSIDE_OUT.index(request.layout.categories[slot]))
    drawn = Drawn({s: [] for s in (PERSON, *order)}, {s: [] for s, state in states.items() if state is State.TARGET})
    for i in range(request.batch):
        params, given = _person(request, i, size), dict[str, Shown]()
        for slot in (*(slot for slot in order if states[slot] is State.GIVEN), FACE):
            try:
                shown = _face(request, i) if slot == FACE else _garment(request, slot, i, size, body)
                given |= {} if shown is None else {slot: shown.checked(body)}
            except NoDraft as e:
                told(f"no draft shows {request.layout.categories.get(slot, slot)}: {e}")
        face = given.pop(FACE, None)
        worn = {request.layout.categories[slot] for slot in given}
        new = states.get(PERSON) is State.TARGET and PORTRAIT not in request.given
        plain = plain_clothes(body, size, worn) if new else []
        drawn.bodies[PERSON].append(params)
        for slot in order:
            drawn.bodies[slot].append(given[slot].params if slot in given else None)
        for slot in drawn.drafts:
            made, shows = None, 0.0
            try:
                if params is not None and slot == PERSON and (given or plain):
                    made = draft_person(body, params, size, [*plain, *given.values()], face=face)
                    shows = coverage(made, body, params)
                elif params is not None and states.get(PERSON) is State.GIVEN:
                    photo = _fit(request.given[PERSON][i], size, "edge")[0]
                    stand = _wanted(request, slot, i, size)
                    category = request.layout.categories[slot]
                    if stand is None and category in ACCESSORIES:
                        raise NoDraft(f"nothing predicts how a body stands in a picture of {category}: give its body")
                    if stand is None:
                        stand = standing_off(photo, params, cast(Kind, category.value), size, body)
                    made = draft_garment(body, stand, Shown(photo, params), wall=True)
                    drawn.bodies[slot][i] = stand
                    shows = coverage(made, body, stand)
            except NoDraft as e:
                told(f"no draft of {request.layout.categories.get(slot, slot)}: {e}")
            drawn.drafts[slot].append(made if shows >= LEAST else None)
    return drawn


def plain_clothes(body: Body, size: tuple[int, int], worn: Collection[Category]) -> list[Shown]:
    """What a person wears where nothing given shows it, from the front and from behind: people are always dressed.

    Args:
        body: everybody's.
        size: (H, W).
        worn: the categories that given pictures show.
    """
    left = () if Category.DRESS in worn else [c for c in (Category.LOWER, Category.UPPER) if c not in worn]
    return [shown for category in left for shown in _plain(body, category, size)]


@lru_cache(maxsize=8)
def _plain(body: Body, category: Category, size: tuple[int, int]) -> list[Shown]:
    """One garment of :func:`plain_clothes`, from both sides; the same at every call."""
    stand, made = standing(body, cast(Kind, category.value), size), []
    for params in (stand, turned(stand, 180)):
        where = covered(see(body, params), body, [category.value], reach=0.0)
        made.append(Shown(torch.full((3, *size), PLAIN), params, where))
    return made


def known_pictures(request: Request, slot: str, drawn: Drawn, size: tuple[int, int]) -> list[Tensor | None]:
    """What a target's known channels hold the latents of: its draft, laid over the portrait where there is one."""
    portraits = request.given.get(PORTRAIT)
    return [
        None if d is None else (d if portraits is None else over(d, _fit(portraits[i], size, "edge")[0])).picture
        for i, d in enumerate(drawn.drafts[slot])
    ]


def composed(
    composer: Composer, request: Request, slot: str, decoded: Tensor, size: tuple[int, int], body: Body
) -> list[Tensor]:
    """A target's pictures at a size of their own: what was decoded, the draft and the portrait, put together.

    Args:
        composer: a model's.
        request: the call.
        slot: a target.
        decoded: (B, 3, h, w) in [-1, 1].
        size: (H, W) to compose at.
        body: everybody's.

    Returns:
        B pictures (3, H, W) in [-1, 1]; one without a draft is the portrait, with a warning; where there is none, or of
        an accessory, which no composer has learned, it is (3, h, w), as it was decoded.
    """
    decoded = decoded.float()  # pictures are, whatever the weights
    made, kind = list(decoded), str(request.layout.categories.get(slot, PERSON))
    if kind not in KINDS:
        return made
    drawn = draw(request, size, body, tell=False)
    for i in range(request.batch):
        layers = layers_of(request, slot, i, drawn, size, body)
        if layers is None:
            if PORTRAIT in request.given:
                warnings.warn("without a draft nothing is put on: the photo stays as it is", stacklevel=2)
                made[i] = _fit(request.given[PORTRAIT][i], size, "edge")[0].to(decoded)
            continue
        draft, valid, surface, looks = (x[None].to(decoded.device) for x in layers[:4])
        photo = None if layers.photo is None else layers.photo[None].to(decoded)
        seen = composer.sees_decoded(kind, photo is not None)
        large = images.enlarged(decoded[i : i + 1], size) if seen else None
        given = given_layers(draft, valid, surface, large, photo, likeness=looks)
        made[i] = composer.compose(given, [kind]).picture[0]
        if photo is not None and layers.where is not None:
            made[i] = torch.lerp(photo[0], made[i], layers.where.to(photo))
        if slot != PERSON:  # the ground of a shop picture is white
            made[i] = torch.where(off_paper(made[i], PAPER), made[i], 1.0)
    return made


class Layers(NamedTuple):
    """What one picture is put together from, beside what a model decoded, (3, H, W) or (1, H, W).

    draft, valid, surface and likeness: as :func:`omfa.composer.given` takes them. photo: the portrait, and where it may
    change; None for a new picture.
    """

    draft: Tensor
    valid: Tensor
    surface: Tensor
    likeness: Tensor
    photo: Tensor | None = None
    where: Tensor | None = None


def layers_of(request: Request, slot: str, i: int, drawn: Drawn, size: tuple[int, int], body: Body) -> Layers | None:
    """The layers of a target of picture ``i`` of a call; None where there is no draft. Arguments as in `composed`."""
    draft, params = drawn.drafts[slot][i], drawn.bodies[slot][i]
    if draft is None:
        return None
    assert params is not None  # or there would be no draft
    seen, wearer, photos = seen_map(body, params, size), drawn.bodies[PERSON][i], request.given.get(PORTRAIT)
    off = None
    if slot != PERSON and wearer is not None:
        off = Shown(_fit(request.given[PERSON][i], size, "edge")[0], wearer)
    if photos is None:
        return Layers(draft.picture, draft.valid[None], seen, likeness(body, draft, off))
    kept, worn = Shown(_fit(photos[i], size, "edge")[0], params), set(map(str, request.layout.categories.values()))
    where = changeable(body, params, draft, worn, _outline(request, i, size))[None]
    return Layers(draft.picture, draft.valid[None], seen, likeness(body, draft, off, kept), kept.picture, where)


def composed_size(request: Request, slot: str, size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) of the model's ``size`` enlarged to that of the photo or pose a target goes by; H at most 1024."""
    sides = (
        [p.size for p in request.pose if p is not None]
        if slot == PERSON
        else [p.size for p in request.given.get(PERSON, ())]
    )
    times = min([min(h / size[0], w / size[1]) for w, h in sides], default=1.0)
    times = max(1.0, min(times, LARGEST / size[0]))
    return round(size[0] * times), round(size[1] * times)


def _fit(picture: Image.Image, size: tuple[int, int], fill: images.Fill) -> tuple[Tensor, images.Box]:
    return images.fit_picture(picture, size, fill)


def _person(request: Request, i: int, size: tuple[int, int]) -> BodyParameters | None:
    """The person's parameters in the fitted picture."""
    params = request.params[i] if request.params else None
    return None if params is None else _laid(params, images.fitted_box(params.image_size, size), size)


def _garment(request: Request, slot: str, i: int, size: tuple[int, int], body: Body) -> Shown | None:
    """A given garment, fitted, with the body that stands in it; None for an accessory whose body is not known."""
    picture, box = _fit(request.given[slot][i], size, "white")
    category: Category = request.layout.categories[slot]
    known = _known(request, slot, i)
    if known is not None:
        return Shown(picture, _laid(known, box, size))
    if category in ACCESSORIES:  # a wrong draft is worse than none
        return None
    plain = images.pixels_to_tensor(np.asarray(request.given[slot][i]))
    if not off_paper(plain).any():
        raise NoDraft("its picture is plain paper")
    stand, _ = stand_in(plain, cast(Kind, category.value), (box.height, box.width), body)
    return Shown(picture, _laid(stand, box, size))


def _wanted(request: Request, slot: str, i: int, size: tuple[int, int]) -> BodyParameters | None:
    """The body that shall stand in a picture to be made, where the caller says so."""
    known = _known(request, slot, i)
    return None if known is None else _laid(known, images.fitted_box(known.image_size, size), size)


def _known(request: Request, slot: str, i: int) -> BodyParameters | None:
    """What the caller says of the body in a picture."""
    return request.stands[slot][i] if slot in request.stands else None


def _face(request: Request, i: int) -> Shown | None:
    """The head crop, with the body it was cut from; None where either is not known."""
    known = _known(request, FACE, i)
    return None if known is None else Shown(images.pixels_to_tensor(np.asarray(request.given[FACE][i])), known)


def _outline(request: Request, i: int, size: tuple[int, int]) -> Tensor | None:
    """(H, W) bool where the photo shows the person."""
    return _fit(request.outlines[i], size, "edge")[0].mean(0) > 0 if request.outlines else None


def _laid(params: BodyParameters, box: images.Box, size: tuple[int, int]) -> BodyParameters:
    return fitted(params, box.top, box.left, (box.height, box.width), size)
