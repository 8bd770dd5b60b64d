"""Bodies: parameters in, vertices and joints out; named poses, joint limits, and a body put before a camera.

The model is the real SMPL-X of the ``smplx`` package (Pavlakos et al., CVPR 2019), fed with the openly licensed body
that ships (``omfa/assets/open_body.npz``) or with a licensed SMPL-X file. One pose convention everywhere: axis-angle,
radians, SMPL-X's joint order, hands flat at rest (``flat_hand_mean``).

Frames. Model frame: x to the person's left, y up, z forward, metres. Camera frame (OpenCV): x right, y down, z away
from the camera; pixel (0, 0) has its *centre* at image coordinate (0, 0). :class:`BodyParameters` live in the camera
frame: ``pose[0]`` turns the model frame into it.

Legend: B batch, V vertices, F faces, J = 55 joints, P = 14 parts.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import smplx
import torch
from numpy.typing import ArrayLike, NDArray
from smplx.joint_names import JOINT_NAMES
from smplx.lbs import batch_rigid_transform, batch_rodrigues
from smplx.vertex_ids import vertex_ids
from torch import Tensor, nn

Array = NDArray[Any]

JOINTS = 55
BETAS = 10
EXPRESSION = 10
MODEL_TO_CAMERA = np.diag([1.0, -1.0, -1.0])  # a person who faces the camera: their left is the picture's right
WHERE_TO_GET_ONE = (
    "Leave the body out to use the open one that ships, or get SMPLX_NEUTRAL.npz from https://smpl-x.is.tue.mpg.de "
    "(registration and licence needed) and give its path."
)
JOINT_IDS: dict[str, int] = {name.removesuffix("_smplhf"): i for i, name in enumerate(JOINT_NAMES[:JOINTS])}

PARTS = (
    "head", "torso",
    "left_upper_arm", "right_upper_arm", "left_forearm", "right_forearm", "left_hand", "right_hand",
    "left_thigh", "right_thigh", "left_shin", "right_shin", "left_foot", "right_foot",
)  # fmt: skip
_PART_OF_JOINT = np.array(
    [1, 8, 9, 1, 10, 11, 1, 12, 13, 1, 12, 13, 0, 1, 1, 0, 2, 3, 4, 5, 6, 7, 0, 0, 0] + [6] * 15 + [7] * 15
)


# ---------------------------------------------------------------------------------------------------- parameters


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
        image_size: (H, W) in pixels, 1 to 16384 each.

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
    def load(cls, path: str | Path) -> BodyParameters:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: missing, damaged, hostile or of another kind; names the file and the cure.
        """
        data = read_npz(Path(path), member_limit=1 << 20, wanted=("body", "body_hash", "image_size", *_SHAPES))
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


def read_npz(path: Path, member_limit: int, wanted: tuple[str, ...]) -> dict[str, Array]:
    """Arrays of an ``.npz``, no pickles, no member larger than ``member_limit`` bytes; all of ``wanted`` are there.

    Members that are not plain arrays are left out (licensed SMPL-X files carry two pickled tables nobody needs).
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    data: dict[str, Array] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            too_big = [i.filename for i in archive.infolist() if i.file_size > member_limit]
        if too_big:
            raise ValueError(f"{path}: {too_big[0]} unpacks to more than {member_limit} bytes; this is no such file")
        with np.load(path, allow_pickle=False) as archive:
            for name in archive.files:
                with contextlib.suppress(ValueError):  # an object array: a pickle, never opened
                    data[name] = archive[name]
    except (OSError, zipfile.BadZipFile, EOFError, KeyError, NotImplementedError, zipfile.zlib.error) as e:  # type: ignore[attr-defined]
        raise ValueError(f"{path}: not a readable .npz file ({e}); write it again") from None
    missing = [name for name in wanted if name not in data]
    if missing:
        raise ValueError(f"{path}: no array {', '.join(missing)} in it (it has {', '.join(sorted(data)) or 'none'})")
    return data


# ---------------------------------------------------------------------------------------------------- body


class PosedBody(NamedTuple):
    """What :meth:`Body.pose` returns: vertices (B, V, 3) and joints (B, 55, 3), metres."""

    vertices: Tensor
    joints: Tensor


class Body(nn.Module):
    """An SMPL-X body. Holds no parameters; ``.to(device)`` moves it.

    Args:
        model: a ``smplx.SMPLX`` with ten betas and ten expression coefficients, flat hands, no PCA.
        name: what parameter files call it.
        hash: identifies template, faces, weights and joints.
    """

    def __init__(self, model: smplx.SMPLX, name: str, hash: str) -> None:
        super().__init__()
        self.model, self.name, self.hash = model, name, hash
        regress = model.J_regressor
        self.register_buffer("_joints", regress @ model.v_template)  # (J, 3)
        directions = torch.cat([model.shapedirs, model.expr_dirs], dim=-1)
        self.register_buffer("_joint_dirs", torch.einsum("jv,vck->jck", regress, directions))  # (J, 3, 20)

    @property
    def faces(self) -> Array:
        """(F, 3) int64 vertex indices, counter-clockwise seen from outside."""
        return np.asarray(self.model.faces).astype(np.int64)

    @property
    def weights(self) -> Array:
        """(V, 55) float32 skinning weights; rows sum to one."""
        return self.model.lbs_weights.cpu().numpy()

    @property
    def template(self) -> Array:
        """(V, 3) float32 vertices at rest: T-pose, model frame, metres."""
        return self.model.v_template.cpu().numpy()

    @property
    def rest_joints(self) -> Array:
        """(55, 3) float32 joints at rest."""
        joints: Tensor = self._joints  # type: ignore[assignment]
        return joints.cpu().numpy()

    @property
    def joint_directions(self) -> Array:
        """(55, 3, 20) float32 metres each joint at rest moves by with betas (ten) and expression (ten)."""
        directions: Tensor = self._joint_dirs  # type: ignore[assignment]
        return directions.cpu().numpy()

    @property
    def parents(self) -> Array:
        """(55,) int64, -1 for the pelvis."""
        return self.model.parents.cpu().numpy().copy()

    @property
    def joint_names(self) -> tuple[str, ...]:
        """The 55 names, SMPL-X's order."""
        return tuple(JOINT_IDS)

    def pose(self, betas: Tensor, expression: Tensor, pose: Tensor, transl: Tensor | None = None) -> PosedBody:
        """Vertices and joints of posed bodies (SMPL-X, equations 1 to 4); differentiable.

        Args:
            betas: (B, 10).
            expression: (B, 10).
            pose: (B, 55, 3) axis-angle.
            transl: (B, 3), added at the end; None for zero.

        Returns:
            Vertices and joints in the frame that ``pose[:, 0]`` turns to. The root turns about the pelvis.

        Raises:
            ValueError: a shape is wrong.
        """
        count = _check_batch(betas, expression, pose, transl)
        out = self.model(
            betas=betas,
            expression=expression,
            global_orient=pose[:, 0],
            body_pose=pose[:, 1:22].reshape(count, 63),
            jaw_pose=pose[:, 22],
            leye_pose=pose[:, 23],
            reye_pose=pose[:, 24],
            left_hand_pose=pose[:, 25:40].reshape(count, 45),
            right_hand_pose=pose[:, 40:].reshape(count, 45),
            transl=torch.zeros_like(pose[:, 0]) if transl is None else transl,
            return_shaped=False,
        )
        return PosedBody(out.vertices, out.joints[:, :JOINTS])

    def joints_only(
        self, betas: Tensor, expression: Tensor, pose: Tensor, transl: Tensor | None = None, ids: ArrayLike = ()
    ) -> Tensor:
        """The joints of :meth:`pose` (and a few chosen vertices) without posing every vertex: for fitting.

        Args:
            betas: (B, 10).
            expression: (B, 10).
            pose: (B, 55, 3) axis-angle.
            transl: (B, 3) or None.
            ids: n vertex indices to pose as well, such as ``KEY_VERTICES["nose"]``.

        Returns:
            (B, 55 + n, 3): joints, then the chosen vertices. Differentiable.
        """
        count = _check_batch(betas, expression, pose, transl)
        coefficients = torch.cat([betas, expression], dim=1)
        rest = self._joints + torch.einsum("bk,jck->bjc", coefficients, self._joint_dirs)  # type: ignore[arg-type, operator]
        rotations = batch_rodrigues(pose.reshape(-1, 3)).reshape(count, JOINTS, 3, 3)
        joints, transforms = batch_rigid_transform(rotations, rest, self.model.parents, dtype=pose.dtype)
        chosen = torch.as_tensor(np.asarray(ids, dtype=np.int64), device=pose.device)
        if len(chosen):
            m = self.model
            directions = torch.cat([m.shapedirs[chosen], m.expr_dirs[chosen]], dim=-1)
            points = m.v_template[chosen] + torch.einsum("bk,vck->bvc", coefficients, directions)
            features = (rotations[:, 1:] - torch.eye(3, dtype=pose.dtype, device=pose.device)).reshape(count, -1)
            columns = m.posedirs.reshape(features.shape[1], -1, 3)[:, chosen]
            points = points + torch.einsum("bp,pvc->bvc", features, columns)
            blended = torch.einsum("vj,bjmn->bvmn", m.lbs_weights[chosen], transforms)
            points = torch.einsum("bvmn,bvn->bvm", blended[..., :3, :3], points) + blended[..., :3, 3]
            joints = torch.cat([joints, points], dim=1)
        return joints if transl is None else joints + transl[:, None]

    @torch.no_grad()
    def posed(self, params: BodyParameters) -> PosedBody:
        """The one body (B = 1) that parameters describe, in the camera frame.

        Raises:
            ValueError: the parameters were made with another body.
        """
        if params.body_hash != self.hash:
            raise ValueError(
                f"parameters were made with body {params.body} ({params.body_hash}), not {self.name} ({self.hash}): "
                "load that body, or convert them with convert_parameters"
            )
        at = self.model.v_template
        values = (params.betas, params.expression, params.pose, params.transl)
        return self.pose(*(torch.tensor(v, dtype=at.dtype, device=at.device)[None] for v in values))


KEY_VERTICES: dict[str, int] = vertex_ids["smplx"]  # nose, eyes, ears, finger tips, toes, heels: the same on every body


def _check_batch(betas: Tensor, expression: Tensor, pose: Tensor, transl: Tensor | None) -> int:
    """Batch size, once all shapes agree."""
    count = pose.shape[0] if pose.ndim == 3 else -1
    shapes = {"betas": (count, BETAS), "expression": (count, EXPRESSION), "pose": (count, JOINTS, 3)}
    given = {"betas": betas, "expression": expression, "pose": pose}
    if transl is not None:
        shapes["transl"], given["transl"] = (count, 3), transl
    for name, shape in shapes.items():
        if tuple(given[name].shape) != shape:
            raise ValueError(f"{name} has shape {tuple(given[name].shape)}; give (B, {', '.join(map(str, shape[1:]))})")
    return count


_BODY_ARRAYS = (
    "v_template", "shapedirs", "posedirs", "J_regressor", "kintree_table", "weights", "f",
    "hands_componentsl", "hands_componentsr", "hands_meanl", "hands_meanr", "lmk_faces_idx", "lmk_bary_coords",
)  # fmt: skip


def load_body(path: str | Path | None = None) -> Body:
    """A body ready to pose.

    Args:
        path: a licensed SMPL-X ``.npz`` (``SMPLX_NEUTRAL.npz``); None for the open body that ships.

    Raises:
        ValueError: missing, damaged or not an SMPL-X file; says where to get one. Pickles are never opened.
    """
    with files("omfa").joinpath("assets/open_body.npz").open("rb") as shipped:
        source = Path(shipped.name) if path is None else Path(path)
    try:
        data = read_npz(source, member_limit=1 << 30, wanted=_BODY_ARRAYS)
        _check_body(data)
    except ValueError as e:
        raise ValueError(f"no SMPL-X body in {e}. {WHERE_TO_GET_ONE}") from None
    plain: dict[str, Any] = {k: v for k, v in data.items() if v.dtype.kind in "fiu"}
    plain = {k: v.astype(np.float32) if v.dtype == np.float16 else v for k, v in plain.items()}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        clean = Path(folder) / "SMPLX_NEUTRAL.npz"  # smplx itself opens pickles: it only ever sees this clean copy
        np.savez(clean, **plain)
        model = smplx.SMPLX(str(clean), use_pca=False, flat_hand_mean=True, num_betas=BETAS, **_NO_PARAMETERS)
    model = model.requires_grad_(False).eval()
    name = str(data["name"]) if "name" in data else source.stem.lower()
    return Body(model, name, _body_hash(plain))


_PARAMETERS = ("betas", "global_orient", "body_pose", "transl", "left_hand_pose", "right_hand_pose", "expression")
_NO_PARAMETERS: dict[str, Any] = {f"create_{n}": False for n in (*_PARAMETERS, "jaw_pose", "leye_pose", "reye_pose")}


def _check_body(data: Mapping[str, Array]) -> None:
    """Raise ValueError unless the arrays fit together as an SMPL-X body."""
    count = len(data["v_template"])
    shapes = {
        "v_template": (count, 3),
        "posedirs": (count, 3, 9 * (JOINTS - 1)),
        "J_regressor": (JOINTS, count),
        "weights": (count, JOINTS),
        "kintree_table": (2, JOINTS),
    }
    for name, shape in shapes.items():
        if data[name].shape != shape:
            raise ValueError(
                f"the file: {name} has shape {data[name].shape}, SMPL-X has {shape} (SMPL or SMPL-H file?)"
            )
    if count <= max(KEY_VERTICES.values()) or data["shapedirs"].ndim != 3 or data["shapedirs"].shape[2] < 20:
        raise ValueError("the file: too few vertices or shape directions for SMPL-X")
    if data["f"].ndim != 2 or data["f"].shape[1] != 3 or data["f"].max() >= count:
        raise ValueError("the file: its faces name vertices it does not have")


def _body_hash(data: Mapping[str, Array]) -> str:
    """16 hex digits over template, faces, joints and weights, whatever the container and its precision."""
    digest = hashlib.sha256()
    for name in ("v_template", "f", "J_regressor", "weights"):
        kind = np.int64 if name == "f" else np.float32
        digest.update(np.ascontiguousarray(data[name], dtype=kind).tobytes())
    return digest.hexdigest()[:16]


def vertex_parts(body: Body) -> Array:
    """(V,) int64 index into PARTS of the part each vertex moves with most."""
    of_part = np.zeros((JOINTS, len(PARTS)), np.float32)
    of_part[np.arange(JOINTS), _PART_OF_JOINT] = 1
    return (body.weights @ of_part).argmax(1)


def face_parts(body: Body) -> Array:
    """(F,) int64 index into PARTS of each face: the part its three corners weigh to most."""
    of_part = np.zeros((JOINTS, len(PARTS)), np.float32)
    of_part[np.arange(JOINTS), _PART_OF_JOINT] = 1
    return (body.weights @ of_part)[body.faces].sum(1).argmax(1)


# ---------------------------------------------------------------------------------------------------- rotations


def rotation(rotvec: ArrayLike) -> Array:
    """(3, 3) matrix of a rotation vector in radians."""
    return cv2.Rodrigues(np.asarray(rotvec, np.float64).reshape(3, 1))[0]


def rotation_vector(matrix: ArrayLike) -> Array:
    """(3,) rotation vector in radians of a rotation matrix."""
    return cv2.Rodrigues(np.asarray(matrix, np.float64))[0].reshape(3)


def _turn(axis: str, degrees: float) -> Array:
    return rotation(np.radians(degrees) * np.eye(3)["xyz".index(axis)])


def _left_to_right() -> Array:
    """(55,) index of each joint's mirror image."""
    names = list(JOINT_IDS)
    swap = {"left": "right", "right": "left"}
    return np.array([JOINT_IDS["_".join(swap.get(w, w) for w in n.split("_"))] for n in names])


MIRROR = _left_to_right()


def mirror_pose(pose: ArrayLike) -> Array:
    """The pose seen in a mirror: left and right joints swapped, rotations reflected through the plane x = 0.

    Args:
        pose: (..., 55, 3) axis-angle.
    """
    return np.asarray(pose)[..., MIRROR, :] * np.array([1, -1, -1], np.float32)


def mirror_parameters(params: BodyParameters) -> BodyParameters:
    """Parameters whose picture is the horizontal flip of the original's (bodies are symmetric to a millimetre)."""
    K = params.K.copy()
    K[0, 2] = params.image_size[1] - 1 - K[0, 2]
    transl = params.transl * np.array([-1, 1, 1], np.float32)
    return replace(params, pose=mirror_pose(params.pose), transl=transl, K=K)


# ---------------------------------------------------------------------------------------------------- limits, poses

_LEFT_LIMITS = {  # degrees, (lowest, highest) about x, y, z; AAOS/AMA ranges of motion with 10 degrees of slack
    "hip": ((-130, 30), (-50, 55), (-35, 55)),
    "knee": ((-5, 150), (-10, 10), (-8, 8)),
    "ankle": ((-30, 60), (-25, 25), (-30, 30)),
    "foot": ((-30, 20), (-5, 5), (-5, 5)),
    "spine1": ((-15, 35), (-20, 20), (-18, 18)),
    "spine2": ((-15, 35), (-20, 20), (-18, 18)),
    "spine3": ((-15, 35), (-20, 20), (-18, 18)),
    "neck": ((-35, 35), (-45, 45), (-25, 25)),
    "head": ((-35, 35), (-45, 45), (-25, 25)),
    "collar": ((-20, 20), (-25, 20), (-15, 35)),
    "shoulder": ((-100, 80), (-120, 45), (-100, 80)),
    "elbow": ((-60, 60), (-155, 5), (-8, 8)),
    "wrist": ((-60, 60), (-35, 35), (-85, 75)),
    "jaw": ((0, 25), (-5, 5), (-2, 2)),
    "eye": ((-25, 25), (-35, 35), (-2, 2)),
    "thumb1": ((-30, 30), (-40, 40), (-30, 30)),
}
_FINGER = ((-15, 15), (-15, 15), (-100, 15))


def _joint_limits() -> Array:
    limits = np.zeros((JOINTS, 2, 3), np.float32)
    for name, j in JOINT_IDS.items():
        words = name.removeprefix("left_").removeprefix("right_")
        left = _LEFT_LIMITS.get(words) or (_FINGER if j >= 25 else ((-180, 180),) * 3)
        limits[j] = np.radians(np.array(left).T)
        if name.startswith("right_"):  # reflected: y and z change sign, so lowest and highest swap
            limits[j, :, 1:] = -limits[j, ::-1, 1:]
    return limits


JOINT_LIMITS = _joint_limits()
"""(55, 2, 3) lowest and highest component of each joint's rotation vector, radians; the root is free."""


def clamp_pose(pose: ArrayLike) -> Array:
    """The nearest pose inside JOINT_LIMITS, component by component. ``pose``: (..., 55, 3)."""
    return np.clip(np.asarray(pose, np.float32), JOINT_LIMITS[:, 0], JOINT_LIMITS[:, 1])


def _euler(z: float = 0.0, y: float = 0.0, x: float = 0.0) -> Array:
    """Rotation vector of Rz Ry Rx, degrees: twist along an arm (x) first, then forward (y), then up and down (z)."""
    return rotation_vector(_turn("z", z) @ _turn("y", y) @ _turn("x", x))


def make_pose(**joints: ArrayLike) -> Array:
    """(55, 3) pose from named joints.

    Args:
        joints: joint name (``left_shoulder``) to a rotation vector in *degrees*. ``both_elbow=...`` sets the left
            joint and the right one mirrored. Joints not named stay at rest (T-pose).

    Raises:
        ValueError: an unknown joint name.
    """
    pose = np.zeros((JOINTS, 3), np.float32)
    for name, degrees in joints.items():
        left = name.replace("both_", "left_")
        if left not in JOINT_IDS:
            raise ValueError(f"{name!r} is no joint; choose from both_<joint>, {', '.join(JOINT_IDS)}")
        value = np.radians(np.asarray(degrees, np.float32))
        pose[JOINT_IDS[left]] = value
        if name.startswith("both_"):
            pose[MIRROR[JOINT_IDS[left]]] = value * np.array([1, -1, -1])
    return pose


def _arms(z: float, y: float = 0.0, x: float = 0.0) -> Array:
    return np.degrees(_euler(z, y, x))


_CURLS = {"index": (12, 14, 8), "middle": (15, 17, 10), "ring": (17, 19, 11), "pinky": (19, 20, 12)}  # degrees
_RELAXED_HANDS: dict[str, ArrayLike] = {
    f"both_{finger}{k}": (0, 0, -a) for finger, angles in _CURLS.items() for k, a in enumerate(angles, 1)
}


def _named_poses() -> dict[str, Array]:
    down = {"both_shoulder": _arms(-68, -4, 8), "both_elbow": (0, -12, 0), **_RELAXED_HANDS}
    sit = {"both_hip": (-82, 6, 6), "both_knee": (84, 0, 0)}
    poses: dict[str, dict[str, ArrayLike]] = {
        "t_pose": {},
        "a_pose": {"both_shoulder": (0, 0, -45), **_RELAXED_HANDS},
        "standing": {**down, "both_hip": (0, 4, 2)},
        "contrapposto": {
            **down, "spine1": (0, 4, -6), "spine3": (0, -4, 6), "left_hip": (-14, 12, 10), "left_knee": (24, 0, 0),
            "right_hip": (0, 0, 4), "head": (0, 10, -4),
        },
        "walking": {
            "left_shoulder": _arms(-66, 22, 0), "right_shoulder": _arms(66, 22, 0), "left_elbow": (0, -14, 0),
            "right_elbow": (0, 30, 0), "left_hip": (-26, 0, 0), "left_knee": (14, 0, 0), "right_hip": (18, 0, 0),
            "right_knee": (28, 0, 0), "right_ankle": (16, 0, 0), "spine3": (3, 6, 0), **_RELAXED_HANDS,
        },
        "hands_on_hips": {
            "both_shoulder": _arms(-44, 16, 46), "both_elbow": (0, -100, 0), "both_wrist": (0, 0, -20),
            **_RELAXED_HANDS,
        },
        "arms_crossed": {
            "left_shoulder": _arms(-58, -34, 50), "right_shoulder": _arms(54, 28, 44), "left_elbow": (0, -112, 0),
            "right_elbow": (0, 98, 0), **_RELAXED_HANDS,
        },
        "arms_raised": {"both_collar": (0, 0, 18), "both_shoulder": (0, 0, 60), "both_elbow": (0, -12, 0)},
        "waving": {
            **down, "left_collar": (0, 0, 12), "left_shoulder": _arms(-8, -20, -70), "left_elbow": (0, -105, 0),
        },
        "sitting": {**sit, "both_shoulder": _arms(-62, -28, 0), "both_elbow": (0, -42, 0), **_RELAXED_HANDS},
        "hand_on_hip": {
            **down, "left_shoulder": _arms(-44, 16, 46), "left_elbow": (0, -100, 0), "spine1": (0, 0, 4),
            "right_hip": (-8, -10, -8), "right_knee": (16, 0, 0),
        },
        "lunge": {
            "both_shoulder": _arms(-40, -10, 0), "both_elbow": (0, -30, 0), "left_hip": (-70, 0, 4),
            "left_knee": (78, 0, 0), "right_hip": (16, 0, -4), "right_knee": (34, 0, 0), "right_ankle": (20, 0, 0),
            **_RELAXED_HANDS,
        },
    }  # fmt: skip
    return {name: make_pose(**joints) for name, joints in poses.items()}


NAMED_POSES: dict[str, Array] = _named_poses()
"""Name to (55, 3) pose in the model frame: root zero, so that :func:`place` stands it upright."""


# ---------------------------------------------------------------------------------------------------- camera


def camera(image_size: tuple[int, int], fov: float = 24.0) -> Array:
    """(3, 3) pinhole matrix that looks at the picture's centre.

    Args:
        image_size: (H, W) pixels.
        fov: vertical field of view in degrees, in (0, 170). Catalogue photos: 15 to 30.
    """
    if not 0 < fov < 170:
        raise ValueError(f"fov {fov} must lie between 0 and 170 degrees")
    height, width = image_size
    focal = height / 2 / np.tan(np.radians(fov / 2))
    return np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]], np.float32)


def look_at(yaw: float = 0.0, pitch: float = 0.0) -> Array:
    """(3, 3) rotation from the model frame to a camera that looks at the body.

    Args:
        yaw: degrees; 0: the body faces the camera; +90: it is turned to its own left, the camera sees its right side.
        pitch: degrees; positive: the camera stands higher and looks down.
    """
    return _turn("x", pitch) @ MODEL_TO_CAMERA @ _turn("y", yaw)


@torch.no_grad()
def place(
    body: Body,
    pose: ArrayLike,
    *,
    betas: ArrayLike | None = None,
    expression: ArrayLike | None = None,
    yaw: float = 0.0,
    pitch: float = 0.0,
    image_size: tuple[int, int] = (1024, 768),
    fov: float = 24.0,
    fill: float = 0.9,
) -> BodyParameters:
    """Stand a body upright before a camera, whole and centred.

    The distance is chosen so that the upright cylinder around the body fills the share ``fill`` of the picture, so one
    pose has one size from every side.

    Args:
        body: the body.
        pose: (55, 3) in the model frame, such as ``NAMED_POSES["standing"]``; its root rotation is kept.
        betas: (10,), zeros if None.
        expression: (10,), zeros if None.
        yaw: see :func:`look_at`.
        pitch: see :func:`look_at`.
        image_size: (H, W).
        fov: vertical field of view, degrees.
        fill: share of the picture's height or width, whichever binds, in (0, 1].
    """
    if not 0 < fill <= 1:
        raise ValueError(f"fill {fill} must lie in (0, 1]")
    K = camera(image_size, fov)
    shape = np.zeros(BETAS, np.float32) if betas is None else np.asarray(betas, np.float32)
    face = np.zeros(EXPRESSION, np.float32) if expression is None else np.asarray(expression, np.float32)
    upright = BodyParameters(body.name, body.hash, shape, face, np.asarray(pose), np.zeros(3), K, image_size)
    points = body.posed(upright).vertices[0].cpu().numpy().astype(np.float64)
    pelvis = (body.rest_joints + _joint_shift(body, shape, face))[0]
    low, high = points[:, 1].min(), points[:, 1].max()
    middle = np.array([pelvis[0], (low + high) / 2, pelvis[2]])
    radius = np.linalg.norm((points - middle)[:, [0, 2]], axis=1).max()
    turn = look_at(yaw, pitch)
    half = (np.array(image_size) - 1) / 2 * fill
    distance = max(K[1, 1] * (high - low) / 2 / half[0], K[0, 0] * radius / half[1]) + radius * (abs(pitch) > 1) * 0.5
    root = rotation_vector(turn @ rotation(upright.pose[0]))
    # x -> root (x - pelvis) + pelvis + transl; the cylinder's middle goes to (0, 0, distance)
    transl = np.array([0, 0, distance + radius * 0.3]) - turn @ (middle - pelvis) - pelvis
    placed = upright.pose.copy()
    placed[0] = root
    return replace(upright, pose=placed, transl=transl)


def _joint_shift(body: Body, betas: Array, expression: Array) -> Array:
    """(55, 3) how shape moves the rest joints."""
    return body.joint_directions @ np.concatenate([betas, expression])


def turned(params: BodyParameters, degrees: float) -> BodyParameters:
    """The same scene with the body turned by ``degrees`` to its own left about the picture's upright axis."""
    pose = params.pose.copy()
    pose[0] = rotation_vector(_turn("y", -degrees) @ rotation(pose[0]))  # y points down in the camera frame
    return replace(params, pose=pose)  # smplx turns about the pelvis: nothing else moves


def project(points: ArrayLike, K: ArrayLike) -> Array:
    """(..., 2) pixel coordinates of (..., 3) points in the camera frame; NaN for points not before the camera."""
    homogeneous = np.asarray(points, np.float64) @ np.asarray(K, np.float64).T
    depth = np.where(homogeneous[..., 2:] > 1e-6, homogeneous[..., 2:], np.nan)
    return homogeneous[..., :2] / depth


# ---------------------------------------------------------------------------------------------------- other bodies


def rest_rotations(from_body: Body, to_body: Body) -> Array:
    """(55, 3, 3) the rest-rotation table: C[j] turns ``to_body``'s bone at joint j, at rest, onto ``from_body``'s.

    Computed from the two bodies, because SMPL-X's numbers are not ours to ship. The open body's arms lie exactly along
    x at rest; SMPL-X's upper arms hang about 18 degrees lower and further back, the other limbs differ by less.
    Joints with one child: the least rotation between the two bone directions. Joints with several (pelvis, chest,
    wrists): the rotation that fits all of them best (Kabsch 1976). Joints with none share their parent's.
    """
    a, b, parents = from_body.rest_joints, to_body.rest_joints, from_body.parents
    table = np.repeat(np.eye(3)[None], JOINTS, axis=0)
    for j in range(JOINTS):
        children = np.where(parents == j)[0]
        if j == JOINT_IDS["head"]:
            continue  # its children are jaw and eyes, no bone: heads are taken to be upright alike
        if len(children) == 0:
            table[j] = table[parents[j]]
        else:
            table[j] = best_rotation(_unit(b[children] - b[j]), _unit(a[children] - a[j]))
    return table


def convert_parameters(params: BodyParameters, from_body: Body, to_body: Body) -> BodyParameters:
    """Parameters that give ``to_body`` the posture that ``params`` give ``from_body``.

    With G the world rotation of a joint, the posed bone G d must point the same way on both bodies, so G' = G C with
    the table C of :func:`rest_rotations`; for local rotations R' = C[parent]^T R C. Shape and expression spaces differ
    between bodies and have no common meaning: both are set to zero, and the pelvis stays where it was.

    Raises:
        ValueError: ``params`` were not made with ``from_body``.
    """
    if params.body_hash != from_body.hash:
        raise ValueError(f"parameters were made with {params.body} ({params.body_hash}), not with {from_body.name}")
    if from_body.hash == to_body.hash:
        return params
    table = rest_rotations(from_body, to_body)
    pose = np.zeros((JOINTS, 3))
    for j, parent in enumerate(from_body.parents):
        before = table[parent].T if parent >= 0 else np.eye(3)
        pose[j] = rotation_vector(before @ rotation(params.pose[j]) @ table[j])
    pelvis = (from_body.rest_joints + _joint_shift(from_body, params.betas, params.expression))[0]
    transl = params.transl + pelvis - to_body.rest_joints[0]
    zero = np.zeros(BETAS, np.float32)
    changed = dict(betas=zero, expression=zero, pose=pose, transl=transl)
    return replace(params, body=to_body.name, body_hash=to_body.hash, **changed)  # type: ignore[arg-type]


def approximate_parameters(params: BodyParameters, body: Body) -> BodyParameters:
    """The same numbers for another body, marked approximate: for when the body they were made with is not at hand.

    Bones then point off by the difference of the rest bones (:func:`rest_rotations`) and the shape means nothing, so
    it is set to zero. The name keeps where they came from.
    """
    if params.body_hash == body.hash:
        return params
    zero, name = np.zeros(BETAS, np.float32), f"{body.name} (approximate, made with {params.body[:150]})"
    return replace(params, body=name, body_hash=body.hash, betas=zero, expression=zero)


def _unit(v: Array) -> Array:
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


def best_rotation(a: Array, b: Array) -> Array:
    """(3, 3) rotation R with R a[i] nearest to b[i] for unit vectors (n, 3); least turn for a single vector."""
    if len(a) == 1:
        axis = np.cross(a[0], b[0])
        sine = np.linalg.norm(axis)
        return rotation(axis / sine * np.arctan2(sine, a[0] @ b[0])) if sine > 1e-9 else np.eye(3)
    u, _, vt = np.linalg.svd(b.T @ a)
    return u @ np.diag([1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt
