"""What looks like skin and what looks like the wall: neither is a garment, whoever tells them apart has half the work.

The body says where a photo shows the face and where it shows nobody; their colours are those of all skin and, where it
is plain, of all the wall. Legend: H W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from omfa.bodies.body import Body
from omfa.bodies.drafts import Shown, face_mask
from omfa.bodies.surface import Draft


def likeness(body: Body, made: Draft, photo: Shown | None = None, portrait: Shown | None = None) -> Tensor:
    """How much pixels look like the person's skin or the wall, which are no garment: hints for a composer.

    Args:
        body: everybody's.
        made: a draft.
        photo: what it was looked up in, for a garment off a photo.
        portrait: the photo to be kept, of the draft's size.

    Returns:
        (3, H, W) in [0, 1]: the draft like skin, the draft like the wall, the portrait like skin; 0 where not known.
    """
    planes = torch.zeros(3, *made.valid.shape)
    if photo is not None:
        skin, wall = _skin_and_wall(body, photo)
        looked, valid = made.picture.cpu(), made.valid.cpu()
        planes[0], planes[1] = _alike(looked, skin, 0.7) * valid, _alike(looked, wall, 0.25) * valid
    if portrait is not None:
        planes[2] = _alike(portrait.picture.cpu(), _skin_and_wall(body, portrait)[0], 0.7)
    return planes


def _skin_and_wall(body: Body, shown: Shown) -> tuple[Tensor, Tensor]:
    """Colours (3,) in [-1, 1] of a person's face and of what is behind them; NaN where they can't be seen."""
    seen, width = shown.source(body).seen, shown.picture.shape[-1]
    on, nobody = face_mask(seen, body).cpu(), seen.fragments.face.cpu() < 0
    rim = torch.zeros_like(on)
    rim[:, : max(1, width // 16)] = rim[:, -max(1, width // 16) :] = True
    picture = shown.picture.cpu()
    return _median(picture[:, on]), _median(picture[:, rim & nobody])


def _median(colours: Tensor) -> Tensor:
    return colours.median(1).values if colours.shape[1] else colours.new_full((3,), torch.nan)


def _alike(picture: Tensor, colour: Tensor, shade: float) -> Tensor:
    """(H, W) in [0, 1] how near a picture (3, H, W) is to a colour; e times darker is 1 / ``shade`` away."""
    x, of = ((c.float() + 1) / 2 + 0.02 for c in (picture, colour[:, None, None]))
    hue = (x / x.sum(0) - of / of.sum(0)).square().sum(0) / 0.045**2
    light = (x.sum(0) / of.sum(0)).log().square() / shade**2
    return (-hue - light).exp().nan_to_num()
