"""What landmarks say of a body: which point each shows, which bones they give a direction, and how far to trust them.

Legend: B people, K matched landmarks, L bones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_prep.poses.landmarks import ID, Landmarks, person_height
from data_prep.poses.skeleton import POINT, Array

FOCAL = 2.0  # of the picture's longer side: a field of view of 28 degrees, as catalogue photos have
SIGMA_POINT = 0.012  # of the person's height: how far a point may lie from where it was seen
SIGMA_BONE = 0.2  # of a bone's length (11 degrees)
SIGMA_FINGER = 0.35
OUTSIDE = 0.04  # of the person's height beyond the border: from here on a landmark is a guess
SEEN = {  # body landmark to the point it shows, and how well it does
    "nose": ("nose", 1.0), "left_eye": ("leye", 1.0), "right_eye": ("reye", 1.0),
    "left_ear": ("lear", 0.7), "right_ear": ("rear", 0.7),
    **{f"{s}_{j}": (f"{s}_{j}", w) for s in ("left", "right")
       for j, w in (("shoulder", 0.8), ("elbow", 1.0), ("wrist", 1.0), ("hip", 0.5), ("knee", 0.9), ("ankle", 1.0))},
    **{f"{s}_{mark}": (f"{s[0].upper()}{part}", 0.7) for s in ("left", "right")
       for mark, part in (("toe", "BigToe"), ("heel", "Heel"))},
    **{f"{s}_{mark}": (f"{s}_{joint}", 0.5) for s in ("left", "right")
       for mark, joint in (("index", "index1"), ("pinky", "pinky1"), ("thumb", "thumb2"))},
}  # fmt: skip
_KNUCKLES = {f"{s}_{k}" for s in ("left", "right") for k in ("index", "pinky", "thumb")}
BONES = [  # pairs of body landmarks whose direction in space is taken over
    ("left_hip", "right_hip"), ("left_shoulder", "right_shoulder"),
    ("left_ear", "right_ear"), ("left_ear", "nose"), ("right_ear", "nose"),
    *((f"{s}_{a}", f"{s}_{b}") for s in ("left", "right") for a, b in (
        ("hip", "shoulder"), ("shoulder", "elbow"), ("elbow", "wrist"), ("hip", "knee"), ("knee", "ankle"),
        ("ankle", "toe"), ("heel", "toe"), ("wrist", "index"), ("wrist", "pinky"),
    )),
]  # fmt: skip
_FINGERS = ("thumb", "index", "middle", "ring", "pinky")
_HAND = [  # the 21 landmarks of a hand as points, left
    "left_wrist",
    *(name for f in _FINGERS for name in (f"left_{f}1", f"left_{f}2", f"left_{f}3", f"l{f}")),
]
_HAND_BONES = [(0, 5), (0, 17), (5, 17), *((k, k + 1) for start in (1, 5, 9, 13, 17) for k in range(start, start + 3))]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What pulls at the body, the same points and bones for everybody; weight 0 where it was not seen.

    pixels (B, K, 2), pixel_weight (B, K), scale (B,) pixels of one sigma; direction (B, E, 3), direction_weight
    (B, E) over sigma; focal (B,), centre (B, 2).
    """

    pixels: Array
    pixel_weight: Array
    scale: Array
    direction: Array
    direction_weight: Array
    focal: Array
    centre: Array


def _hand_points(side: int) -> list[int]:
    names = _HAND if side == 0 else [n.replace("left_", "right_") if "_" in n else "r" + n[1:] for n in _HAND]
    return [POINT[n] for n in names]


MATCHED = np.array([POINT[p] for p, _ in SEEN.values()] + _hand_points(0)[1:] + _hand_points(1)[1:])
BONE_ENDS = np.array(
    [[POINT[SEEN[a][0]], POINT[SEEN[b][0]]] for a, b in BONES]
    + [[_hand_points(side)[a], _hand_points(side)[b]] for side in (0, 1) for a, b in _HAND_BONES]
)


def evidence_of(person: Landmarks) -> Evidence:
    """What one person's landmarks say."""
    height, width = person.image_size
    tall = person_height(person)
    limit = np.array([width - 1, height - 1])
    beyond = np.linalg.norm(person.points - person.points.clip(0, limit), axis=1) / (OUTSIDE * tall)
    trust = person.visible * np.exp(-(beyond**2))
    hands, hand_trust = person.hands, np.zeros(2)
    for side, wrist in enumerate((ID["left_wrist"], ID["right_wrist"])):
        if np.isfinite(hands[side]).all():
            apart = np.linalg.norm(hands[side, 0, :2] - person.points[wrist]) / tall
            size = np.linalg.norm(hands[side, 9, :2] - hands[side, 0, :2]) / tall
            hand_trust[side] = float(apart < 0.06 and 0.01 < size < 0.12) * np.sqrt(person.visible[wrist])
    pixels = [person.points[[ID[n] for n in SEEN]]] + [np.nan_to_num(hand[1:, :2]) for hand in hands]
    weights = []
    for name, (_, weight) in SEEN.items():
        by_hand = hand_trust[int(name.startswith("right"))] if name in _KNUCKLES else 0.0
        weights.append(weight * trust[ID[name]] * (1 - by_hand))
    directions, strengths = [], []
    for a, b in BONES:
        bone = person.world[ID[b]] - person.world[ID[a]]
        both = min(trust[ID[a]], trust[ID[b]])
        if a.endswith("wrist"):
            both *= 0.5 * (1 - hand_trust[int(a.startswith("right"))])
        directions.append(unit(bone))
        strengths.append(both / SIGMA_BONE)
    for side in (0, 1):
        for start, end in _HAND_BONES:
            directions.append(unit(np.nan_to_num(hands[side, end] - hands[side, start])))
            strengths.append(hand_trust[side] / SIGMA_FINGER)
    return Evidence(
        np.concatenate(pixels),
        np.concatenate([weights, *(np.full(20, 0.6 * t) for t in hand_trust)]),
        np.array(SIGMA_POINT * tall),
        np.array(directions),
        np.array(strengths),
        np.array(FOCAL * max(height, width)),
        (limit / 2).astype(np.float64),
    )


def unit(v: Array) -> Array:
    """The vector at length 1."""
    return v / max(float(np.linalg.norm(v)), 1e-9)
