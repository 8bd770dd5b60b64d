"""What a call's bodies show: surface maps and drafts, for models that are given them (``draft``, ``pose_style``).

Legend: ``B`` pictures of a call, ``H W`` pixels.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from omfa import images
from omfa.bodies.body import Body
from omfa.bodies.drafts import Shown, draft_garment, draft_person, fitted
from omfa.bodies.parameters import BodyParameters
from omfa.bodies.standing import standing
from omfa.bodies.surface import Draft, NoDraft
from omfa.canvas import PERSON, PORTRAIT
from omfa.components import Category, State
from omfa.records.drawn import INSIDE_OUT, as_map
from omfa.request import Request


class Drawn(NamedTuple):
    """Slot name to B things, None where there is none.

    maps: surface maps (3, H, W) in [-1, 1] of garments' bodies. drafts: of targets.
    """

    maps: dict[str, list[Tensor | None]]
    drafts: dict[str, list[Draft | None]]


def draw(request: Request, size: tuple[int, int], body: Body) -> Drawn:
    """Maps and drafts of everything that a call asks for.

    A body that can't be used makes no draft, with a warning that says why.

    Args:
        request: whose person parameters, where known, are those of the photo (try-off) or of the wanted pose (try-on).
        size: (H, W) that person and garments are fitted to.
        body: everybody's.
    """
    states = request.layout.states
    order = sorted(request.layout.categories, key=lambda slot: INSIDE_OUT.index(request.layout.categories[slot]))
    drawn = Drawn({slot: [] for slot in order}, {s: [] for s, state in states.items() if state is State.TARGET})
    for i in range(request.batch):
        params = _person(request, i, size)
        given = {slot: _garment(request, slot, i, size, body) for slot in order if states[slot] is State.GIVEN}
        for slot in order:
            drawn.maps[slot].append(as_map(body, given[slot].params) if slot in given else None)
        for slot in drawn.drafts:
            made = None
            try:
                if params is not None and slot == PERSON and given:
                    portrait = _fit(request.given[PORTRAIT][i], size, "edge")[0] if PORTRAIT in states else None
                    made = draft_person(body, params, size, list(given.values()), portrait)
                elif params is not None and states.get(PERSON) is State.GIVEN:
                    stand = standing(body, request.layout.categories[slot].value, size)
                    made = draft_garment(body, stand, Shown(_fit(request.given[PERSON][i], size, "edge")[0], params))
                    drawn.maps[slot][i] = as_map(body, stand)
            except NoDraft as e:
                warnings.warn(f"no draft of {slot}: {e}", stacklevel=2)
            drawn.drafts[slot].append(made)
    return drawn


def _fit(picture: Image.Image, size: tuple[int, int], fill: images.Fill) -> tuple[Tensor, images.Box]:
    return images.fit(images.pixels_to_tensor(np.asarray(picture)), size, fill)


def _person(request: Request, i: int, size: tuple[int, int]) -> BodyParameters | None:
    """The person's parameters in the fitted picture."""
    params = request.params[i] if request.params else None
    return None if params is None else _laid(params, images.fitted_box(params.image_size, size), size)


def _garment(request: Request, slot: str, i: int, size: tuple[int, int], body: Body) -> Shown:
    """A given garment, fitted, with the body that stands in it."""
    picture, box = _fit(request.given[slot][i], size, "white")
    category: Category = request.layout.categories[slot]
    known = request.stands.get(slot)
    inner = box.height, box.width
    stand = standing(body, category.value, inner) if known is None else known[i]
    return Shown(picture, _laid(stand, box, size))


def _laid(params: BodyParameters, box: images.Box, size: tuple[int, int]) -> BodyParameters:
    return fitted(params, box.top, box.left, (box.height, box.width), size)
