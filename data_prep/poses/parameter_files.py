"""Body parameters made by others: 4D-Humans, SMPLer-X, SMPLest-X, OSX, PIXIE; motion capture of AMASS.

Plain ``.npz`` and ``.json`` only. Several of these tools write pickles, which can run anything: those are refused, with
the lines that turn them into ``.npz`` where the tool itself is installed.

Everything is brought into one convention (:class:`omfa.bodies.parameters.BodyParameters`): camera frame with y down,
axis-angle, flat hands. The numbers of SMPL and SMPL-X mean another posture on another body: with the body they were
made with at hand they are converted, without it they are taken as they are and marked approximate.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.poses.evidence import FOCAL
from data_prep.poses.fitting import Fit
from omfa.bodies.body import Body, load_body
from omfa.bodies.convert import approximate_parameters, convert_parameters
from omfa.bodies.named_poses import NAMED_POSES
from omfa.bodies.parameters import BETAS, EXPRESSION, JOINTS, BodyParameters, read_npz
from omfa.bodies.placing import place, project, rotation, rotation_vector
from omfa.files import read_text

Array = NDArray[Any]

FORMATS = ("4d-humans", "smpler-x", "smplest-x", "osx", "pixie")
LARGEST = 64 << 20  # bytes of one array or json file
# Where SMPL and SMPL-X have their pelvis at rest, to the centimetre: their camera translations count from there.
PELVIS = {"smpl": np.array([0.0, -0.22, 0.03]), "smplx": np.array([0.0, -0.35, 0.01])}
HOW_TO_CONVERT = (
    "pickles are not opened. Where the tool is installed: python -c \"import joblib, numpy; d = joblib.load('in.pkl'); "
    "numpy.savez('out.npz', **{k: numpy.asarray(v) for k, v in d.items()})\""
)
_Z_UP = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # AMASS's (x, y, z) to y up: (x, z, -y)


def read_parameters(
    path: Path, kind: str, image_size: tuple[int, int], made_with: MadeWith | None = None
) -> BodyParameters:
    """Somebody else's parameters of one person in one photo, for the body they were made with.

    Args:
        path: ``.npz`` or ``.json``.
        kind: one of FORMATS.
        image_size: (H, W) of the photo.
        made_with: the licensed SMPL-X body; None if it is not at hand. It supplies the mean hand that some tools
            count from; without it a relaxed hand stands in.

    Raises:
        ValueError: not this format; says which keys were missing and which were there.
    """
    if kind not in FORMATS:
        raise ValueError(f"format {kind!r} must be one of {', '.join(FORMATS)}")
    data = _Keys(path, _read(path))
    if kind == "4d-humans":
        return _from_4d_humans(data, image_size)
    if kind == "pixie":
        return _from_pixie(data, image_size, made_with)
    return _from_whole_body(data, image_size, kind, made_with)


def on_body(params: BodyParameters, body: Body, made_with: MadeWith | None) -> BodyParameters:
    """The same posture for another body: converted where the body they were made with is given, else approximate.

    In both cases the pelvis stays where it was in the photo.
    """
    if params.body_hash == body.hash:
        return params
    if made_with is not None and params.body_hash == made_with.body.hash:
        return convert_parameters(params, made_with.body, body)
    family = params.body.split()[0]
    moved = replace(params, transl=params.transl + PELVIS.get(family, PELVIS["smplx"]) - body.rest_joints[0])
    return replace(approximate_parameters(moved, body), expression=np.zeros(EXPRESSION, np.float32))


@dataclass(frozen=True)
class Imported:
    """An estimator (``data_prep.poses.pose_maps``) that looks answers up in a folder: ``ID.npz``, ``ID_0.npz``, json.

    ``ID_0`` is the first person, ``ID_1`` the second.
    """

    folder: Path
    kind: str
    body: Path | None = None
    made_with: Path | None = None

    def __call__(self, item_id: str, rgb: Array, person: int) -> Fit:
        """See ``data_prep.poses.pose_maps.Estimator``."""
        path = self._find(item_id, person)
        made_with = made_with_body(self.made_with) if self.made_with else None
        params = on_body(
            read_parameters(path, self.kind, (rgb.shape[0], rgb.shape[1]), made_with), load_body(self.body), made_with
        )
        joints = load_body(self.body).posed(params).joints[0].cpu().numpy()
        return Fit(params, project(joints, params.K), np.ones(JOINTS), {}, estimator=self.kind)

    def _find(self, item_id: str, person: int) -> Path:
        names = [*([item_id] if person == 1 else []), f"{item_id}_{person - 1}", f"{item_id}_{person - 1:02d}"]
        for name in names:
            for suffix in (".npz", ".json", ".pkl"):
                if (path := self.folder / (name + suffix)).is_file():
                    return path
        raise ValueError(
            f"no parameters of {item_id}, person {person}: {self.folder} has no {' or '.join(names)} .npz, .json"
        )


@dataclass(frozen=True, eq=False)
class MadeWith:
    """The licensed body that parameters were made with, and its mean hands (30, 3), which some tools count from."""

    body: Body
    mean_hands: Array


@lru_cache(maxsize=1)
def made_with_body(path: Path) -> MadeWith:
    """A licensed SMPL-X file, loaded once a process."""
    body = load_body(path)
    hands = read_npz(path, member_limit=1 << 30, wanted=("hands_meanl", "hands_meanr"))
    return MadeWith(body, np.concatenate([hands[f"hands_mean{s}"].reshape(15, 3) for s in "lr"]).astype(np.float64))


# ---------------------------------------------------------------------------------------------------- motion capture


def read_amass(
    path: Path, body: Body, *, every: int = 30, limit: int | None = None, yaw: float = 0.0, image_size: tuple[int, int]
) -> Iterator[tuple[int, BodyParameters]]:
    """Frames of an AMASS sequence (SMPL-X or SMPL+H), each stood upright before a camera.

    Args:
        path: the ``.npz``; ``poses`` (T, 165) or (T, 156), ``trans`` (T, 3), z up.
        body: the body to pose; AMASS's shape is not taken over, its bodies are not ours: marked approximate.
        every: take one frame in so many.
        limit: no more frames than this.
        yaw: degrees by which the camera goes round the person, added to where the person faces in the capture.
        image_size: (H, W).

    Yields:
        Frame number and parameters.
    """
    poses = _Keys(path, _read(path)).get("poses")
    if poses.ndim != 2 or poses.shape[1] not in (156, 165):
        raise ValueError(f"{path}: poses are {poses.shape}; AMASS has (T, 165) for SMPL-X, (T, 156) for SMPL+H")
    if not np.isfinite(poses).all():
        raise ValueError(f"{path}: poses hold numbers that are not finite")
    for t in islice(range(0, len(poses), every), limit):
        pose = np.zeros((JOINTS, 3))
        pose[:22] = poses[t, :66].reshape(22, 3)
        if poses.shape[1] == 165:  # root, body, jaw, eyes, hands
            pose[22:25], pose[25:] = poses[t, 66:75].reshape(3, 3), poses[t, 75:].reshape(30, 3)
        else:
            pose[25:] = poses[t, 66:].reshape(30, 3)
        pose[0] = rotation_vector(_Z_UP @ rotation(pose[0]))
        placed = place(body, pose, yaw=yaw, image_size=image_size)
        yield t, replace(placed, body=f"{body.name} (approximate, made with amass)")


# ---------------------------------------------------------------------------------------------------- formats


class _Keys:
    """A file's arrays by name; says what is there when something is missing."""

    def __init__(self, path: Path, data: Mapping[str, Any]) -> None:
        self.path, self.data = path, data

    def get(self, *names: str, size: int | None = None, default: Array | None = None) -> Array:
        """The first of ``names`` that is there, as float64; its last ``size`` numbers' shape is up to the caller."""
        for name in names:
            if name in self.data:
                try:
                    value = np.asarray(self.data[name], np.float64)
                except (TypeError, ValueError):
                    raise ValueError(f"{self.path}: {name} holds no plain numbers") from None
                if not np.isfinite(value).all():
                    raise ValueError(f"{self.path}: {name} holds numbers that are not finite")
                if size is not None and value.size < size:
                    raise ValueError(f"{self.path}: {name} has shape {value.shape}; {size} numbers are needed")
                return value
        if default is not None:
            return default
        there = ", ".join(sorted(self.data)) or "nothing"
        raise ValueError(f"{self.path}: no {' or '.join(names)} in it; there is {there}")

    def rotations(self, *names: str, count: int, default: Array | None = None) -> Array:
        """(count, 3) rotation vectors from axis-angle or matrices, whatever axes lead; more joints are cut off."""
        value = self.get(*names, default=default)
        if not value.size:
            raise ValueError(f"{self.path}: {names[0]} is empty: nobody was found in that photo; leave it out")
        if value.shape[-2:] == (3, 3) and value.size % 9 == 0 and (value.ndim >= 3 or count == 1):
            matrices = value.reshape(-1, 3, 3)
            if np.abs(matrices @ matrices.swapaxes(1, 2) - np.eye(3)).max() < 1e-2:
                value = np.stack([rotation_vector(m) for m in matrices])
            elif len(matrices) > 1:
                raise ValueError(f"{self.path}: {names[0]} has shape {value.shape} but does not hold rotation matrices")
        if value.size < 3 * count or value.size % 3:
            raise ValueError(f"{self.path}: {names[0]} has shape {value.shape}; {count} rotations are needed")
        return value.reshape(-1, 3)[:count]


def _read(path: Path) -> Mapping[str, Any]:
    kind = path.suffix.lower()
    if kind in (".pkl", ".pickle", ".pt", ".pth"):
        raise ValueError(f"{path}: {HOW_TO_CONVERT}")
    if kind == ".npz":
        return read_npz(path, member_limit=LARGEST, wanted=())
    if kind != ".json":
        raise ValueError(f"{path}: parameters are read from .npz or .json")
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path}: over {LARGEST >> 20} MiB; this is no such file")
    try:
        data = json.loads(read_text(path))
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{path}: not readable as JSON ({e}); write it again") from None
    if isinstance(data, list) and data:
        data = data[0]
    if not isinstance(data, dict):
        raise ValueError(f"{path}: must hold one object of names and numbers")
    return data


def _first(value: Array, size: int) -> Array:
    """(size,) the first numbers, zeros where there are fewer."""
    flat = value.reshape(-1)[:size]
    return np.concatenate([flat, np.zeros(size - len(flat))])


def _from_4d_humans(data: _Keys, image_size: tuple[int, int]) -> BodyParameters:
    """SMPL: matrices or axis-angle, camera translation for a focal length of 5000 at 256 pixels."""
    height, width = image_size
    pose = NAMED_POSES["standing"].astype(np.float64).copy()  # SMPL has no fingers: relaxed ones
    pose[:25] = 0
    pose[:1] = data.rotations("global_orient", count=1)
    pose[1:22] = data.rotations("body_pose", count=21)
    transl = data.get("pred_cam_t_full", "camera_translation", "camera", size=3).reshape(-1)[:3]
    usual = np.array(5000 / 256 * max(image_size))
    focal = float(data.get("scaled_focal_length", default=usual).reshape(-1)[0])  # focal_length is the crop's
    K = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
    zeros = np.zeros(BETAS), np.zeros(EXPRESSION)  # SMPL's betas mean nothing to another body
    return BodyParameters("smpl of 4d-humans", "smpl", *zeros, pose, transl, K, image_size)


def _from_whole_body(data: _Keys, image_size: tuple[int, int], kind: str, made_with: MadeWith | None) -> BodyParameters:
    """SMPLer-X, SMPLest-X and OSX: SMPL-X in the camera frame; focal and princpt in the file or in ``../meta``."""
    pose = np.zeros((JOINTS, 3))
    pose[:1] = data.rotations("global_orient", "root_pose", count=1)
    pose[1:22] = data.rotations("body_pose", "body_poses", count=21)
    pose[22:23] = data.rotations("jaw_pose", count=1, default=np.zeros((1, 3)))
    pose[25:40] = data.rotations("left_hand_pose", "lhand_pose", count=15, default=np.zeros((15, 3)))
    pose[40:] = data.rotations("right_hand_pose", "rhand_pose", count=15, default=np.zeros((15, 3)))
    pose[25:] += _mean_hands(made_with)
    camera = data
    if "focal" not in data.data:
        meta = data.path.parent.parent / "meta" / f"{data.path.stem}.json"
        camera = _Keys(meta, _read(meta))
    focal = camera.get("focal", size=1).reshape(-1)
    centre = camera.get("princpt", size=2).reshape(-1)[:2] - 0.5
    return BodyParameters(
        f"smplx of {kind}" if made_with is None else made_with.body.name,
        "smplx" if made_with is None else made_with.body.hash,
        _first(data.get("betas", "shape", default=np.zeros(BETAS)), BETAS),
        _first(data.get("expression", "expr", default=np.zeros(EXPRESSION)), EXPRESSION),
        pose,
        data.get("transl", "cam_trans", size=3).reshape(-1)[:3],
        np.array([[focal[0], 0, centre[0]], [0, focal[-1], centre[1]], [0, 0, 1]]),
        image_size,
    )


def _from_pixie(data: _Keys, image_size: tuple[int, int], made_with: MadeWith | None) -> BodyParameters:
    """PIXIE: matrices, flat hands, a weak-perspective camera on a square crop (``bbox`` x0, y0, x1, y1, if given)."""
    height, width = image_size
    pose = np.zeros((JOINTS, 3))
    pose[:1] = data.rotations("global_pose", count=1)
    pose[1:22] = data.rotations("body_pose", count=21)
    pose[22:23] = data.rotations("jaw_pose", count=1, default=np.zeros((1, 3)))
    pose[25:40] = data.rotations("left_hand_pose", count=15, default=np.zeros((15, 3)))
    pose[40:] = data.rotations("right_hand_pose", count=15, default=np.zeros((15, 3)))
    side = max(image_size)
    whole = np.array([(width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2])
    box = data.get("bbox", size=4, default=whole).reshape(-1)[:4]
    camera = data.get("body_cam", size=3).reshape(-1)[:3]
    focal = FOCAL * max(image_size)
    transl = full_translation(camera, (box[:2] + box[2:]) / 2, float(max(box[2:] - box[:2])), image_size, focal)
    return BodyParameters(
        "smplx of pixie" if made_with is None else made_with.body.name,
        "smplx" if made_with is None else made_with.body.hash,
        _first(data.get("shape", default=np.zeros(BETAS)), BETAS),
        _first(data.get("exp", default=np.zeros(EXPRESSION)), EXPRESSION),
        pose,
        transl,
        np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]]),
        image_size,
    )


def full_translation(camera: Array, centre: Array, side: float, image_size: tuple[int, int], focal: float) -> Array:
    """(3,) translation before the whole photo's camera, from a weak-perspective camera (s, tx, ty) on a square crop.

    4D-Humans' formula: with b = s * side, t = (tx + 2 (cx - W/2) / b, ty + 2 (cy - H/2) / b, 2 F / b).

    Args:
        camera: (3,) scale and shift on a crop of width 2.
        centre: (2,) of the crop, pixels.
        side: of the crop, pixels.
        image_size: (H, W).
        focal: F, pixels, of the whole photo.
    """
    height, width = image_size
    b = side * float(camera[0]) + 1e-9
    shift = 2 * (np.asarray(centre, np.float64) - np.array([width, height]) / 2) / b
    return np.array([camera[1] + shift[0], camera[2] + shift[1], 2 * focal / b])


def _mean_hands(made_with: MadeWith | None) -> Array:
    """(30, 3) the hands that some tools count from: SMPL-X's mean, or relaxed ones where that is not at hand."""
    return NAMED_POSES["standing"][25:].astype(np.float64) if made_with is None else made_with.mean_hands
