"""How good are poses found in photos? Against known bodies, and against keypoints and label maps nobody fitted to.

    python -m tests.data_prep.poses.pose_truth synthetic RECORDS  # records of 'python -m data_prep synthetic'
    python -m tests.data_prep.poses.pose_truth samples SAMPLES  # sample photographs with keypoints and label maps
    python -m tests.data_prep.poses.pose_truth robustness PHOTOS  # cropped, mirrored, turned, dark, small, large

Legend: J = 22 joints of the body; H W pixels.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.poses.fitting import Fit, fit, view_yaw
from data_prep.poses.landmarks import NobodyError, detect
from omfa.bodies.body import load_body
from omfa.bodies.named_poses import mirror_parameters
from omfa.bodies.parameters import JOINT_IDS, BodyParameters
from omfa.bodies.placing import project
from omfa.bodies.pose_render import person_mask
from omfa.images import read_image
from omfa.records.labels import ATR, CIHP, Part, read_labels, to_parts
from omfa.records.prepared import read_records, resolve

Array = NDArray[Any]

BODY = load_body()
MAJOR = [
    JOINT_IDS[f"{s}_{j}"] for s in ("left", "right") for j in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
]


def procrustes(a: Array, b: Array) -> Array:
    """(J,) distances after the similarity (scale, rotation, shift) that brings points a (J, 3) nearest to b."""
    a0, b0 = a - a.mean(0), b - b.mean(0)
    u, s, vt = np.linalg.svd(b0.T @ a0)
    sign = np.diag([1, 1, np.sign(np.linalg.det(u @ vt))])
    scale = (s * np.diag(sign)).sum() / (a0**2).sum()
    return np.linalg.norm(scale * a0 @ (u @ sign @ vt).T - b0, axis=1)


def joints_of(params: BodyParameters) -> Array:
    """(22, 3) metres, camera frame."""
    return BODY.posed(params).joints[0, :22].cpu().numpy().astype(np.float64)


def swapped(found: BodyParameters, truth: BodyParameters) -> bool:
    """Left taken for right, or front for back: the hips' or shoulders' line points the other way."""
    a, b = joints_of(found), joints_of(truth)
    lines = [(JOINT_IDS["left_hip"], JOINT_IDS["right_hip"]), (JOINT_IDS["left_shoulder"], JOINT_IDS["right_shoulder"])]
    return any((a[i] - a[j]) @ (b[i] - b[j]) < 0 for i, j in lines)


def synthetic(folder: Path, found: Callable[[str, Array], Fit | None], limit: int = 200) -> list[dict[str, Any]]:
    """One row a record: yaw, error in millimetres (None: undetected), swapped or not."""
    rows = []
    for record in read_records(folder)[:limit]:
        assert record.pose is not None and record.pose.params is not None
        truth = BodyParameters.load(resolve(folder, record.pose.params))
        fitted = found(record.id, np.asarray(read_image(resolve(folder, record.file_name))))
        row: dict[str, Any] = {"id": record.id, "yaw": record.view_yaw, "mm": None, "swapped": None}
        row |= {"pose": record.provenance["pose"], "framing": record.provenance["framing"]}
        if fitted is not None:
            row["mm"] = 1000 * float(procrustes(joints_of(fitted.params), joints_of(truth)).mean())
            row["swapped"] = swapped(fitted.params, truth)
            row["yaw_off"] = (view_yaw(fitted.params) - view_yaw(truth) + 180) % 360 - 180
        rows.append(row)
    return rows


def quadrant(yaw: float) -> str:
    """Which side the camera sees; +90 is turned to their own left, so that their right side is seen."""
    return "front" if abs(yaw) <= 45 else "back" if abs(yaw) >= 135 else "right side" if yaw > 0 else "left side"


def table(rows: list[dict[str, Any]]) -> str:
    """The rows by what the camera sees."""
    groups = {"|yaw| <= 60": [r for r in rows if abs(r["yaw"]) <= 60], "all": rows}
    groups |= {q: [r for r in rows if quadrant(r["yaw"]) == q] for q in ("front", "left side", "right side", "back")}
    lines = [
        f"{'':12} {'n':>4} {'found':>6} {'mean mm':>8} {'median':>7} {'p90':>6} {'swapped':>8} {'lost or swapped':>18}"
    ]
    for name, group in groups.items():
        seen = [r for r in group if r["mm"] is not None]
        if seen:
            mm, swaps = np.array([r["mm"] for r in seen]), sum(r["swapped"] for r in seen)
            lost = (swaps + len(group) - len(seen)) / len(group)
            lines.append(
                f"{name:12} {len(group):4} {len(seen):6} {mm.mean():8.1f} {np.median(mm):7.1f} "
                f"{np.percentile(mm, 90):6.1f} {swaps:8} {lost:17.1%}"
            )
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------- photographs

_COCO = {  # keypoints of COCO-18 to points of the body
    "right_shoulder": 2, "right_elbow": 3, "right_wrist": 4, "left_shoulder": 5, "left_elbow": 6, "left_wrist": 7,
    "right_hip": 8, "right_knee": 9, "right_ankle": 10, "left_hip": 11, "left_knee": 12, "left_ankle": 13,
}  # fmt: skip


def keypoints_of(path: Path) -> tuple[Array, Array]:
    """(12, 2) pixels at 1024x768 and (12,) whether seen, of DressCode's or OpenPose's (BODY-25) file, _COCO's order."""
    data = json.loads(path.read_text())
    if "people" in data:
        points = np.array(data["people"][0]["pose_keypoints_2d"]).reshape(-1, 3)
        ids = [i if i < 8 else i + 1 for i in _COCO.values()]
        return points[ids, :2], points[ids, 2] > 0.3
    points = np.array(data["keypoints"])
    ids = list(_COCO.values())
    return points[ids, :2] * 2, (points[ids, 2] > 0.3) & (points[ids, :2] > 0).any(1)


def sample_photos(samples: Path) -> list[tuple[Path, Path, Path, tuple[str, ...]]]:
    """Photo, keypoints, label map and its labels."""
    found = []
    for photo in sorted((samples / "vitonhd/test/image").glob("*.jpg")):
        root, name = photo.parent.parent, photo.stem
        found.append((photo, root / f"openpose_json/{name}_keypoints.json", root / f"image-parse-v3/{name}.png", CIHP))
    for photo in sorted((samples / "dresscode").glob("*/images/*_0.jpg")):
        root, name = photo.parent.parent, photo.stem.removesuffix("_0")
        found.append((photo, root / f"keypoints/{name}_2.json", root / f"label_maps/{name}_4.png", ATR))
    return [entry for entry in found if entry[1].is_file() and entry[2].is_file()]


def against_keypoints(fitted: Fit, points: Array, seen: Array) -> Array:
    """Distances of the body's joints to the keypoints seen, in percent of the picture's height."""
    joints = fitted.joints[[JOINT_IDS[name] for name in _COCO]]
    return 100 * np.linalg.norm(joints - points, axis=1)[seen] / fitted.params.image_size[0]


def against_parts(fitted: Fit, parts: Array) -> dict[str, float]:
    """Share of the body's pixels inside the person, and shares of parsed arms, legs and head that the body covers."""
    body = person_mask(BODY, fitted.params, engine="torch")
    person = parts != Part.BACKGROUND
    limbs = {
        "arms": (Part.LEFT_ARM, Part.RIGHT_ARM), "legs": (Part.LEFT_LEG, Part.RIGHT_LEG), "face": (Part.FACE,)
    }  # fmt: skip
    covered = {n: np.isin(parts, of) for n, of in limbs.items()}
    limb = np.any(list(covered.values()), axis=0)
    shares = {n: float((body & m).sum() / m.sum()) for n, m in covered.items() if m.sum() > 200}
    return {
        "inside": float((body & person).sum() / body.sum()),
        "covered": float((body & limb).sum() / limb.sum()),
        **shares,
    }


# ---------------------------------------------------------------------------------------------------- disturbances


def disturbances(rgb: Array) -> dict[str, tuple[Array, Callable[[Array], Array]]]:
    """Name to the disturbed picture and how its pixels (n, 2) go back to the photo's."""
    height, width = rgb.shape[:2]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), 10, 1.0)
    back = cv2.invertAffineTransform(turn)
    rotated = cv2.warpAffine(rgb, turn, (width, height), borderMode=cv2.BORDER_REPLICATE)
    x, y = round(0.08 * width), round(0.06 * height)

    def scaled(to: int) -> tuple[Array, Callable[[Array], Array]]:
        s = to / max(height, width)
        size = (round(width * s), round(height * s))
        how = cv2.INTER_AREA if s < 1 else cv2.INTER_CUBIC
        return cv2.resize(rgb, size, interpolation=how), lambda p: (p + 0.5) / s - 0.5

    return {
        "cropped": (np.ascontiguousarray(rgb[y : height - y, x : width - x]), lambda p: p + np.array([x, y])),
        "mirrored": (np.ascontiguousarray(rgb[:, ::-1]), lambda p: p),
        "turned 10": (rotated, lambda p: p @ back[:, :2].T + back[:, 2]),
        "dark": ((rgb * 0.35).astype(np.uint8), lambda p: p),
        "200 px": scaled(200),
        "4000 px": scaled(4000),
    }


def estimate(rgb: Array) -> Fit | None:
    """The most prominent person, or None."""
    try:
        return fit(detect(rgb)[:1], BODY)[0]
    except NobodyError:
        return None


def robustness(photos: list[Path]) -> dict[str, list[float | None]]:
    """Mean distance of the major joints, that lie in the photo, from where they are in it undisturbed, % of height."""
    rows: dict[str, list[float | None]] = {}
    for photo in photos:
        rgb = np.asarray(read_image(photo))
        reference = estimate(rgb)
        assert reference is not None, f"{photo}: nobody found"
        height, width = rgb.shape[:2]
        joints = reference.joints[MAJOR]
        seen = ((joints >= 0) & (joints < [width, height])).all(1)
        for name, (picture, undo) in disturbances(rgb).items():
            found = estimate(picture)
            if found is None:
                rows.setdefault(name, []).append(None)
                continue
            inside = seen
            if name == "cropped":  # only what can still be seen
                there = joints - undo(np.zeros(2))
                inside = seen & ((there >= 0) & (there < picture.shape[1::-1])).all(1)
            if name == "mirrored":
                back = project(joints_of(mirror_parameters(found.params)), mirror_parameters(found.params).K)[MAJOR]
            else:
                back = undo(found.joints[MAJOR])
            rows.setdefault(name, []).append(100 * float(np.linalg.norm(back - joints, axis=1)[inside].mean()) / height)
    return rows


def main(what: str, where: str) -> None:
    """Print a table."""
    folder = Path(where)
    if what == "synthetic":
        print(table(synthetic(folder, lambda _, rgb: estimate(rgb))))
    elif what == "samples":
        for photo, keypoints, labels, names in sample_photos(folder):
            rgb = np.asarray(read_image(photo))
            found = estimate(rgb)
            assert found is not None, f"{photo}: nobody found"
            off = against_keypoints(found, *keypoints_of(keypoints))
            shares = against_parts(found, to_parts(read_labels(labels), names, rgb.shape[:2]))
            print(
                f"{photo.name:18} keypoints {off.mean():.2f} %  " + "  ".join(f"{k} {v:.1%}" for k, v in shares.items())
            )
    elif what == "robustness":
        for name, values in robustness(sorted(folder.glob("*.jpg"))).items():
            seen = np.array([v for v in values if v is not None])
            print(f"{name:10} found {len(seen)}/{len(values)}  mean {seen.mean():.2f} %  worst {seen.max():.2f} %")
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main(*sys.argv[1:])
