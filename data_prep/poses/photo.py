"""From a photo to what the pipeline needs: body parameters and a head crop."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

from data_prep.faces import head_crop
from data_prep.poses.fitting import fit
from data_prep.poses.gates import doubt, measured
from data_prep.poses.landmarks import WORKING_SIZE, detect, require
from omfa.bodies.body import Body, load_body
from omfa.bodies.parameters import BodyParameters
from omfa.bodies.pose_render import person_mask
from omfa.bodies.surface import at_most


class PhotoEstimate(NamedTuple):
    """What the pipeline wants to know of a portrait: body, head crop, the body in that (None: no face is seen), and
    white where the person is.
    """

    params: BodyParameters
    face: Image.Image | None
    face_params: BodyParameters | None
    outline: Image.Image | None


def photo_estimator(body: Body | None = None, person: int = 1) -> Callable[[Image.Image], PhotoEstimate]:
    """A pose estimator for ``OMFAPipeline.pose_estimator``.

    Args:
        body: the body to fit; None for the open one.
        person: which of several people, the most prominent first.

    Raises:
        ValueError: mediapipe is not installed (with the cure). The estimator itself raises it where nobody is found,
            and where the body that it found can't be right (:mod:`data_prep.poses.gates`).
    """
    require()
    fitted = load_body() if body is None else body

    def estimate(photo: Image.Image) -> PhotoEstimate:
        rgb = np.asarray(photo.convert("RGB"))
        people = detect(rgb)
        if person > len(people):
            raise ValueError(f"person {person} was asked for; {len(people)} found")
        found = fit(people[person - 1 : person], fitted)[0]
        params = found.params
        if reason := doubt(measured(found, person_mask(fitted, at_most(params, WORKING_SIZE)))):
            raise ValueError(reason)
        head = head_crop(rgb, params, fitted)
        outline = None if found.outline is None else Image.fromarray(found.outline)
        crop = None if head.crop is None else Image.fromarray(head.crop)
        return PhotoEstimate(params, crop, head.params, outline)

    return estimate
