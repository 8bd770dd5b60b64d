"""Bodies: parameters in, vertices and joints out.

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
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import smplx
import torch
from numpy.typing import ArrayLike
from smplx.lbs import batch_rigid_transform, batch_rodrigues
from smplx.vertex_ids import vertex_ids
from torch import Tensor, nn

from omfa.bodies.parameters import BETAS, EXPRESSION, JOINT_IDS, JOINTS, Array, BodyParameters, read_npz

WHERE_TO_GET_ONE = (
    "Leave the body out to use the open one that ships, or get SMPLX_NEUTRAL.npz from https://smpl-x.is.tue.mpg.de "
    "(registration and licence needed) and give its path."
)


PARTS = (
    "head", "torso",
    "left_upper_arm", "right_upper_arm", "left_forearm", "right_forearm", "left_hand", "right_hand",
    "left_thigh", "right_thigh", "left_shin", "right_shin", "left_foot", "right_foot",
)  # fmt: skip


_PART_OF_JOINT = np.array(
    [1, 8, 9, 1, 10, 11, 1, 12, 13, 1, 12, 13, 0, 1, 1, 0, 2, 3, 4, 5, 6, 7, 0, 0, 0] + [6] * 15 + [7] * 15
)


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

    Returns:
        The body; the same object whenever the same file is asked for, so copy it before moving it to a device.

    Raises:
        ValueError: missing, damaged or not an SMPL-X file; says where to get one. Pickles are never opened.
    """
    source = Path(str(files("omfa"))) / "assets" / "open_body.npz" if path is None else Path(path)
    changed = source.stat().st_mtime_ns if source.is_file() else 0
    return _read_body(source, changed)


@lru_cache(maxsize=2)
def _read_body(source: Path, changed: int) -> Body:
    """Read once, until the file changes."""
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
