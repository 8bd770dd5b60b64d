"""LaDI-VTON before the evaluator: ``python -m omfa.predict --class-path omfa.baselines.ladi_vton.try_on.LaDIVTON``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from omfa import images
from omfa.baselines.ladi_vton.from_records import body_keypoints, ids_of_parts, on_white
from omfa.baselines.ladi_vton.inputs import Inputs, Person, fit_person, make_inputs, stack
from omfa.baselines.ladi_vton.masks import rule_of
from omfa.baselines.ladi_vton.pipeline import GUIDANCE, STEPS, LaDIVTONPipeline
from omfa.components import Category
from omfa.evaluation.predictions import Batch, Input
from omfa.records.prepared import RecordError

ORDER = (Category.DRESS, Category.LOWER, Category.UPPER)  # an upper garment goes over a lower one


class LaDIVTON:
    """A ``TryOnModel``: the person's own photo, repainted garment by garment under the rules of the model's data set.

    The published system takes one garment a call; for an outfit the second garment is painted into what the first call
    made, by the same labels. Garments that the model's rules don't know are an error of that record.

    Args:
        pipe: the system.
    """

    try_on_needs = frozenset({Input.PHOTO, Input.GARMENTS, Input.PARTS})
    try_on_takes = frozenset({Input.KEYPOINTS, Input.POSE, Input.GARMENT_MASKS})

    def __init__(self, pipe: LaDIVTONPipeline) -> None:
        self.pipe = pipe
        pipe.set_progress_bar_config(disable=True)

    @classmethod
    def from_pretrained(cls, weights: str) -> LaDIVTON:
        """A folder of ours or a hub id."""
        return cls(LaDIVTONPipeline.from_pretrained(weights))

    @classmethod
    def sampler_defaults(cls, weights: str) -> tuple[int, float]:
        """Steps and guidance of a call that names none."""
        return STEPS, GUIDANCE

    @classmethod
    def weights_path(cls, weights: str) -> Path | None:
        """Where they lie, if here."""
        return Path(weights) if Path(weights).exists() else None

    def to(self, device: str) -> LaDIVTON:
        """On another device."""
        self.pipe.to(device)
        return self

    def try_on(self, batch: Batch) -> list[Image.Image]:
        """A picture of each person wearing the garments, at the photo's aspect and the model's size.

        Raises:
            RecordError: no keypoints and no body to take them from, or a garment that the model's rules don't know.
        """
        steps, guidance = batch.steps or STEPS, GUIDANCE if batch.guidance is None else batch.guidance
        pictures = [images.read_image(photo, "photo") for photo in batch.photos]
        points = [self._points(batch, i, picture) for i, picture in enumerate(pictures)]
        for category in [c for c in ORDER if c in batch.garments]:
            given = [self._given(batch, i, category, pictures[i], points[i]) for i in range(len(pictures))]
            inputs = stack([inputs for _, inputs in given])
            made = self.pipe(inputs, steps, guidance, generator=list(batch.generators))
            for i, (person, _) in enumerate(given):
                whole = Image.fromarray(np.asarray(made.images[i])[person.box.window])
                points[i] = points[i] * [whole.width / pictures[i].width, whole.height / pictures[i].height]
                pictures[i] = whole
        return pictures

    def _points(self, batch: Batch, i: int, picture: Image.Image) -> np.ndarray:
        """(18, 2) in pixels of the photo, 0 where not seen."""
        key = batch.keys[i]
        if not batch.keypoints and not batch.poses:
            raise RecordError(
                f"{key}: neither keypoints nor body parameters; run 'python -m data_prep pose-maps' first"
            )
        if batch.keypoints:
            return np.where(batch.keypoints[i][:, 2:] > 0, batch.keypoints[i][:, :2], 0.0)
        try:
            return body_keypoints(batch.poses[i], (picture.height, picture.width))
        except ValueError as e:
            raise RecordError(f"{key}: {e}") from None

    def _given(
        self, batch: Batch, i: int, category: Category, picture: Image.Image, points: np.ndarray
    ) -> tuple[Person, Inputs]:
        rules, size = self.pipe.config.rules, self.pipe.config.size
        try:
            rule_of(rules, category)
            person = fit_person(picture, ids_of_parts(batch.parts[i], category, rules), points, size)
            mask = batch.garment_masks[category][i] if batch.garment_masks else None
            cloth = on_white(images.read_image(batch.garments[category][i], category), mask)
        except ValueError as e:
            raise RecordError(f"{batch.keys[i]}: {e}") from None
        return person, make_inputs(person, images.fit_picture(cloth, size, "white")[0], category, rules)
