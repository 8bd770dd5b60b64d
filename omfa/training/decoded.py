"""What a latent model makes of a record, for a composer to learn from: made once, kept as small pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from omfa.backbone import fingerprint
from omfa.bodies.parameters import BodyParameters
from omfa.images import read_image
from omfa.pipeline import OMFAPipeline
from omfa.records.prepared import Record, resolve
from omfa.records.worn import clothes
from omfa.sheets import save_whole
from omfa.training.drafted import Drafter

Array = NDArray[Any]


class Decoder:
    """A model's pictures of what a :class:`omfa.training.drafted.Drafter` drafts, decoded but not composed.

    Args:
        model: as :meth:`omfa.pipeline.OMFAPipeline.from_pretrained` takes it.
        drafter: says how targets are framed.
        kept: a folder; pictures of each model lie in one of their own.
    """

    def __init__(self, model: str, drafter: Drafter, kept: Path) -> None:
        self.pipe, self.drafter = OMFAPipeline.from_pretrained(model), drafter
        self.pipe.set_progress_bar_config(disable=True)
        self.kept = kept / f"decoded-{fingerprint(self.pipe.unet)}"
        self.kept.mkdir(parents=True, exist_ok=True)

    def decoded(self, record: Record, target: str, rng: np.random.Generator, name: str) -> Array:
        """(h, w, 3) uint8; arguments and errors as those of :func:`omfa.training.drafted.drafted`."""
        path = self.kept / f"{name}.png"
        if not path.is_file():
            save_whole(self._made(record, target, rng), path)
        return np.asarray(read_image(path))

    def _made(self, record: Record, target: str, rng: np.random.Generator) -> Image.Image:
        drafter, folder = self.drafter, self.drafter.records
        params = drafter.params(record)
        given: dict[str, Any] = {"pose": params, "compose": False, "generator": torch.Generator().manual_seed(0)}
        if target not in ("person", "portrait"):
            (garment,) = (g for g in clothes(record) if g.category == target)
            _, stand = drafter.framed(record, garment, rng)
            given |= {"person": resolve(folder, record.file_name), "garment_poses": {target: stand}}
            return self.pipe([target], **given).images[0]
        worn = drafter.worn(record, rng, target == "portrait")
        given["garments"] = {g.category.value: resolve(folder, g.path) for g, _ in worn}
        given["garment_poses"] = {g.category.value: stand for g, stand in worn}
        if target == "portrait" and record.portrait is not None:
            given["portrait"] = resolve(folder, record.portrait.path)
        elif record.face is not None:
            given["face"] = resolve(folder, record.face.path)
            if record.face.pose is not None:
                given["face_pose"] = BodyParameters.load(resolve(folder, record.face.pose))
        return self.pipe(["person"], **given).images[0]
