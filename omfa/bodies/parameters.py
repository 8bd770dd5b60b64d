"""Body parameters: one posed body before one camera, as plain arrays, and their files.

One pose convention everywhere: axis-angle, radians, SMPL-X's joint order, hands flat at rest (``flat_hand_mean``).
Camera frame (OpenCV): x right, y down, z away from the camera; pixel (0, 0) has its *centre* at image coordinate
(0, 0). Legend: H W pixels, J = 55 joints.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from smplx.joint_names import JOINT_NAMES

Array = NDArray[Any]
JOINTS = 55
BETAS = 10
EXPRESSION = 10
MOST_PIXELS = 100_000_000  # of a picture of a body, as of any other
JOINT_IDS: dict[str, int] = {name.removesuffix("_smplhf"): i for i, name in enumerate(JOINT_NAMES[:JOINTS])}


@dataclass(frozen=True, eq=False)
class BodyParameters:
    """One posed body before one camera, as plain float32 arrays.

    Args:
        body: name of the body the parameters were made with.
        body_hash: :attr:`Body.hash` of that body.
        betas: (10,) shape.
        expression: (10,) facial expression.
        pose: (55, 3) axis-angle, radians; joint 0 turns the model frame into the camera frame; hands flat at zero.
        transl: (3,) metres, camera frame.
        K: (3, 3) pinhole camera in pixels, pixel centres at whole numbers.
        image_size: (H, W) in pixels, 1 to 16384 each, 100 megapixels at most.

    Raises:
        ValueError: a shape is wrong, a number is not finite, or the camera is none.
    """

    body: str
    body_hash: str
    betas: Array
    expression: Array
    pose: Array
    transl: Array
    K: Array
    image_size: tuple[int, int]

    def __post_init__(self) -> None:
        for name, shape in _SHAPES.items():
            value = np.asarray(getattr(self, name))
            if value.dtype.kind not in "fiu" or value.shape != shape:
                raise ValueError(f"{name} is {value.dtype} {value.shape}; give numbers of shape {shape}")
            value = value.astype(np.float32)
            if not np.isfinite(value).all() or np.abs(value).max() > 1e6:
                raise ValueError(f"{name} holds numbers that are not finite or beyond 1e6")
            value.setflags(write=False)
            object.__setattr__(self, name, value)
        size = np.asarray(self.image_size)
        if size.shape != (2,) or size.dtype.kind not in "iu" or size.min() < 1 or size.max() > 16384:
            raise ValueError(f"image_size {self.image_size!r} must be (height, width) in whole pixels, 1 to 16384")
        if int(size[0]) * int(size[1]) > MOST_PIXELS:
            raise ValueError(f"image_size {self.image_size!r} is over {MOST_PIXELS // 10**6} megapixels; scale it down")
        object.__setattr__(self, "image_size", (int(size[0]), int(size[1])))
        if not (self.K[0, 0] > 0 and self.K[1, 1] > 0 and np.allclose(self.K[2], [0, 0, 1])):
            raise ValueError(f"K {self.K.tolist()} is no camera: [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] with fx, fy > 0")
        for name in ("body", "body_hash"):
            text = getattr(self, name)
            if not isinstance(text, str) or not 0 < len(text) <= 200:
                raise ValueError(f"{name} {text!r} must be a text of 1 to 200 characters")

    def save(self, path: str | Path) -> Path:
        """Write an ``.npz``; the file appears complete or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        data = {name: getattr(self, name) for name in ("body", "body_hash", *_SHAPES)}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, image_size=np.array(self.image_size), flat_hand_mean=np.array(True), **data)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        part.write_bytes(buffer.getvalue())
        os.replace(part, path)
        return path

    @classmethod
    def load(cls, path: str | Path, content: bytes | None = None) -> BodyParameters:
        """Read what :meth:`save` wrote.

        Args:
            path: the file.
            content: of the file, where it was read already.

        Raises:
            ValueError: missing, damaged, hostile or of another kind; names the file and the cure.
        """
        wanted = ("body", "body_hash", "image_size", *_SHAPES)
        data = read_npz(Path(path), 1 << 20, wanted, content)
        if not bool(data.pop("flat_hand_mean", np.array(True))):
            raise ValueError(
                f"{path}: hands are relative to SMPL-X's mean hand; add hands_mean to joints 25 to 54 first"
            )
        try:
            fields = {name: data[name] for name in _SHAPES}
            return cls(str(data["body"]), str(data["body_hash"]), image_size=data["image_size"], **fields)  # type: ignore[arg-type]
        except (ValueError, TypeError, OverflowError) as e:
            raise ValueError(f"{path}: {e}") from None


_SHAPES = {"betas": (BETAS,), "expression": (EXPRESSION,), "pose": (JOINTS, 3), "transl": (3,), "K": (3, 3)}


def _claimed(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> int:
    """Bytes of the array that a member's header tells of; 0 where there is no such header."""
    try:
        with archive.open(info) as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, kind = read(file)
    except ValueError:
        return 0
    return 0 if kind.hasobject else math.prod(shape) * kind.itemsize


def read_npz(path: Path, member_limit: int, wanted: tuple[str, ...], data: bytes | None = None) -> dict[str, Array]:
    """Arrays of an ``.npz``, no pickles, no member larger than ``member_limit`` bytes; all of ``wanted`` are there.

    With ``data``, what was read of the file already, ``path`` is but its name.

    Members that are not plain arrays are left out (licensed SMPL-X files carry two pickled tables nobody needs).
    """
    if data is None and not path.is_file():
        raise ValueError(f"{path}: no such file")
    found: dict[str, Array] = {}
    try:
        with zipfile.ZipFile(path if data is None else io.BytesIO(data)) as archive:
            for info in archive.infolist():
                if info.file_size > member_limit:
                    raise ValueError(
                        f"{path}: {info.filename} unpacks to more than {member_limit} bytes; this is no such file"
                    )
                if info.filename.endswith(".npy") and (claimed := _claimed(archive, info)) > info.file_size:
                    raise ValueError(
                        f"{path}: {info.filename} claims {claimed} bytes and holds {info.file_size}; write it again"
                    )
        with np.load(path if data is None else io.BytesIO(data), allow_pickle=False) as archive:
            for name in archive.files:
                with contextlib.suppress(ValueError):  # an object array: a pickle, never opened
                    found[name] = archive[name]
    except Exception as e:  # archives raise almost anything on damaged files
        if str(e).startswith(f"{path}: "):
            raise
        raise ValueError(f"{path}: not a readable .npz file ({e}); write it again") from None
    if missing := [name for name in wanted if name not in found]:
        raise ValueError(f"{path}: no array {', '.join(missing)} in it (it has {', '.join(sorted(found)) or 'none'})")
    return found
