"""The on-disk contract: a *record* is one prepared picture of a dressed person with all that belongs to it.

A folder of records holds ``metadata.jsonl`` (one JSON object per line, the Hugging Face image-folder convention) and
the files it names. Paths are relative to the folder and stay inside it. ``null`` means absent, and so does a key that
is not there (``id``, ``split``, ``person_id``, ``outfit_id``, ``file_name`` and ``version`` must be).

    {"version": 2, "id": "p3-o1-v0", "split": "train", "person_id": "p3", "outfit_id": "o1",
     "file_name": "person/p3-o1-v0.png",
     "face": {"path": "face/p3.png", "source_id": "p3-o1-v2", "pose": "face/p3.npz"},
     "garments": [{"category": "upper", "path": "garment/o1-upper.png", "kind": "shop", "source_id": null,
                   "pose": "garment/o1-upper.npz", "mask": "masks/o1-upper.png"}],
     "pose": {"map": "pose/p3-o1-v0.png", "params": "pose/p3-o1-v0.npz"},
     "portrait": {"path": "portrait/p3-o1-v0.png", "source_id": null, "changed": ["upper"]},
     "maps": {"parts": "parts/p3-o1-v0.png", "labels": "masks/p3-o1-v0.png", "limbs": null, "inpaint": null},
     "keypoints": {"path": "keypoints/p3-o1-v0.json", "format": "openpose-18"},
     "caption": "striped t-shirt, blue trousers", "view_yaw": 12.5, "provenance": {"stage": "synthetic"}}

Version 1 had no ``portrait``, ``maps``, ``keypoints``, no ``pose`` and ``mask`` of a garment; it is read as before.
What it kept of label pictures and masks in ``provenance`` is read into their fields, and written as version 2.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from omfa.components import Category, clash
from omfa.files import text_lines

METADATA = "metadata.jsonl"
KEYPOINT_FORMATS = ("openpose-18", "openpose-25", "landmarks-33")
VERSION = 2
MAX_LINE = 1_000_000  # bytes
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


class RecordError(ValueError):
    """A record that breaks the contract; the message says what was found and what would be right."""


def check_path(path: str) -> str:
    """Return ``path`` if it is a relative POSIX path that stays inside its folder.

    Raises:
        RecordError: absolute, empty, with ``..``, a drive, a backslash or a NUL.
    """
    if not isinstance(path, str):
        raise RecordError(f"a path is a text, not {path!r}")
    pure = PurePosixPath(path)
    if not path or pure.is_absolute() or ".." in pure.parts or any(c in path for c in "\\\0:"):
        raise RecordError(f"path {path!r} must be relative to the records folder and stay inside, like 'person/a.png'")
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        raise RecordError(f"path {path!r} holds what no file's name does; write it anew as UTF-8") from None
    return path


def resolve(folder: Path, path: str, follow_links: bool = False) -> Path:
    """Absolute path of a record's file, links followed.

    Args:
        folder: the records folder.
        path: a path as the record gives it.
        follow_links: whether symbolic links may lead out of the folder.

    Raises:
        RecordError: the path leaves the folder, by itself or through a symbolic link.
    """
    root = folder.resolve()
    full = Path(os.path.realpath(root / check_path(path)))  # a link that leads to itself is for the reader to refuse
    if not follow_links and not full.is_relative_to(root):
        raise RecordError(f"path {path!r} leads out of {folder} through a link: copy the file into the folder")
    return full


@dataclass(frozen=True)
class FaceRef:
    """A head crop of the same person.

    Args:
        path: the picture.
        source_id: the record it was cut from (None: unknown).
        pose: body parameters (``.npz``) of the body whose head it is, for the crop's own pixels.
    """

    path: str
    source_id: str | None = None
    pose: str | None = None

    def __post_init__(self) -> None:
        _check_paths(self.path, self.pose)


@dataclass(frozen=True)
class GarmentRef:
    """A garment picture.

    Args:
        category: what it is.
        path: the picture.
        kind: ``shop`` (laid out or rendered alone) or ``cutout`` (out of record ``source_id``).
        source_id: of a cutout.
        pose: body parameters (``.npz``) of a body as it would stand in this picture, wearing the garment.
        mask: grey picture of the same size, white where the garment is.
    """

    category: Category
    path: str
    kind: Literal["shop", "cutout"] = "shop"
    source_id: str | None = None
    pose: str | None = None
    mask: str | None = None

    def __post_init__(self) -> None:
        check_path(self.path)
        _check_paths(self.pose, self.mask)
        if not isinstance(self.category, str) or self.category not in set(Category):
            raise RecordError(f"category {self.category!r} must be one of {', '.join(Category)}")
        object.__setattr__(self, "category", Category(self.category))
        if self.kind not in ("shop", "cutout"):
            raise RecordError(f"garment kind {self.kind!r} must be 'shop' or 'cutout'")
        if self.kind == "cutout" and self.source_id is None:
            raise RecordError("a cutout needs source_id, the record it was cut from (it must never meet that picture)")


@dataclass(frozen=True)
class PoseRef:
    """The pose map (RGB picture aligned with the person picture) and the body parameters (``.npz``)."""

    map: str | None = None
    params: str | None = None

    def __post_init__(self) -> None:
        _check_paths(self.map, self.params)


@dataclass(frozen=True)
class PortraitRef:
    """The photo to be changed: the same view of the same person in another outfit.

    Args:
        path: the photo, aligned with the person picture.
        source_id: the record whose person picture it is; None: unknown, or no record.
        changed: categories of the record's garments that it does not show, and that turn it into the person picture;
            None: all of them. The others it wears already.

    Raises:
        RecordError: nothing is changed, or an unknown category.
    """

    path: str
    source_id: str | None = None
    changed: tuple[Category, ...] | None = None

    def __post_init__(self) -> None:
        check_path(self.path)
        if self.changed is not None:
            if not self.changed or not set(self.changed) <= set(Category):
                raise RecordError(
                    f"a portrait's changed {self.changed!r} must be some of {', '.join(Category)}, or null"
                )
            object.__setattr__(self, "changed", tuple(Category(c) for c in self.changed))


@dataclass(frozen=True)
class Maps:
    """Grey pictures of the person picture's size that say what each of its pixels is (``omfa.records.labels``).

    Args:
        parts: of :class:`omfa.records.labels.Part`, as ``python -m data_prep parse`` makes it.
        labels: of :class:`omfa.records.labels.Label`, as the synthetic wardrobe makes it.
        limbs: 0, or 1 + an index into ``omfa.bodies.body.PARTS``, clothed or not, as the wardrobe makes it.
        inpaint: white where a model that repaints a part of the photo is to repaint it, black elsewhere.
    """

    parts: str | None = None
    labels: str | None = None
    limbs: str | None = None
    inpaint: str | None = None

    def __post_init__(self) -> None:
        _check_paths(*vars(self).values())


@dataclass(frozen=True)
class KeypointsRef:
    """2-D keypoints in pixels of the person picture, read by :func:`omfa.records.keypoints.read_keypoints`.

    Args:
        path: ``.json`` as OpenPose writes it, or ``.npz`` with ``points`` (K, 3): x, y, confidence.
        format: whose K points: OpenPose's 18 (COCO) or 25 (BODY_25), or the 33 of ``data_prep.poses.landmarks``.
    """

    path: str
    format: Literal["openpose-18", "openpose-25", "landmarks-33"]

    def __post_init__(self) -> None:
        check_path(self.path)
        if self.format not in KEYPOINT_FORMATS:
            raise RecordError(f"keypoint format {self.format!r} must be one of {', '.join(KEYPOINT_FORMATS)}")
        if not self.path.lower().endswith((".json", ".npz")):
            raise RecordError(
                f"keypoints {self.path!r} must be a .json as OpenPose writes it, or an .npz with 'points'"
            )


def _check_paths(*paths: str | None) -> None:
    for path in paths:
        if path is not None:
            check_path(path)


@dataclass(frozen=True)
class Record:
    """One prepared picture of a person (module docstring).

    Args:
        id: unique in the folder; letters, digits, ``.``, ``_``, ``-``.
        split: ``train``, ``val``, ``test`` or another name.
        person_id: same person, same id.
        outfit_id: same person in the same clothes, same id (the pose may differ).
        file_name: the person picture.
        face: a head crop, or None.
        garments: what the person wears, as pictures; several of a category from inside to outside; a dress excludes
            lower garments and other dresses.
        pose: pose map and body parameters, or None.
        portrait: the photo to be changed, or None.
        maps: label pictures of the person picture, or None.
        keypoints: 2-D keypoints, or None.
        caption: what can be seen, in a few words, or None.
        view_yaw: degrees in (-180, 180]; 0 faces the camera, +90 is turned to their own left; None: unknown.
        provenance: anything worth keeping about where the record came from. ``{"own_cutouts": true}`` allows a
            cutout to meet the picture it came from: only for proofs that merely memorise.

    Raises:
        RecordError: a field breaks the contract.
    """

    id: str
    split: str
    person_id: str
    outfit_id: str
    file_name: str
    face: FaceRef | None = None
    garments: tuple[GarmentRef, ...] = ()
    pose: PoseRef | None = None
    portrait: PortraitRef | None = None
    maps: Maps | None = None
    keypoints: KeypointsRef | None = None
    caption: str | None = None
    view_yaw: float | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise RecordError(f"version {self.version!r} is not known; this release reads versions 1 and {VERSION}")
        for name in ("id", "split", "person_id", "outfit_id"):
            value = getattr(self, name)
            if not isinstance(value, str) or not _ID.fullmatch(value):
                raise RecordError(f"{name} {value!r} must be 1 to 200 letters, digits, '.', '_' or '-'")
        check_path(self.file_name)
        object.__setattr__(self, "garments", tuple(self.garments))
        worn = [g.category for g in self.garments]
        if len({(g.category, g.path) for g in self.garments}) != len(worn):
            raise RecordError(f"garments {worn} hold one of them twice; give each garment once")
        if problem := clash(worn):
            raise RecordError(f"garments {worn}: {problem}")
        if not isinstance(self.provenance, dict) or not isinstance(self.caption, str | None):
            raise RecordError(f"caption {self.caption!r} must be a text and provenance {self.provenance!r} an object")
        if self.portrait is not None and (self.portrait.path == self.file_name or self.portrait.source_id == self.id):
            raise RecordError("the portrait is this very picture: give one of the same view in another outfit")
        if self.portrait is not None and not set(self.portrait.changed or worn) <= set(worn):
            raise RecordError(f"the portrait changes {list(self.portrait.changed or ())}, the garments are {worn}")
        if self.view_yaw is not None and not (isinstance(self.view_yaw, int | float) and -180 < self.view_yaw <= 180):
            raise RecordError(f"view_yaw {self.view_yaw!r} must be in (-180, 180] degrees")
        if not self.provenance.get("own_cutouts"):
            for g in self.garments:
                if g.path == self.file_name:
                    raise RecordError(f"the {g.category} is this very picture: give one of the garment alone")
                if g.kind == "cutout" and g.source_id == self.id:
                    raise RecordError(f"the {g.category} cutout comes from this very picture: take it from another one")

    def to_json(self) -> str:
        """One line of ``metadata.jsonl``, keys in the contract's order."""
        d = asdict(self)
        order = ["version", "id", "split", "person_id", "outfit_id", "file_name", "face", "garments", "pose"]
        order += ["portrait", "maps", "keypoints", "caption", "view_yaw", "provenance"]
        return json.dumps({k: d[k] for k in order}, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> Record:
        """Parse one line of ``metadata.jsonl``, of any version so far.

        Raises:
            RecordError: not JSON, a key missing or unknown, or a field out of contract.
        """
        try:
            d = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise RecordError(f"not a JSON object: {e}") from None
        if not isinstance(d, dict):
            raise RecordError(f"a record is a JSON object, not {type(d).__name__}")
        try:
            if "version" not in d:
                raise RecordError(f"key 'version' is missing; write {VERSION}")
            d["garments"] = [_object("a garment", g) for g in _several(d.get("garments"))]
            d["provenance"] = d.get("provenance") or {}
            if d["version"] == 1:
                d = _lifted(d)
            for name, kind in _PARTS.items():
                if d.get(name) is not None:
                    d[name] = kind(**_object(name, d[name]))
            d["garments"] = tuple(GarmentRef(**g) for g in d["garments"])
            return cls(**d)
        except RecordError:
            raise
        except (TypeError, AttributeError) as e:  # a missing, unknown or wrongly typed key
            raise RecordError(str(e).replace("Record.__init__()", "record").replace("__init__()", "")) from None


_PARTS = {"face": FaceRef, "pose": PoseRef, "portrait": PortraitRef, "maps": Maps, "keypoints": KeypointsRef}


def _lifted(d: dict[str, Any]) -> dict[str, Any]:
    """A line of version 1 as one of version 2: the files that ``provenance`` named are where files are named now."""
    new = [name for name in ("portrait", "maps", "keypoints") if name in d]
    if new:
        raise RecordError(f"version 1 has no {', '.join(new)}; write version {VERSION}")
    said = d["provenance"] if isinstance(d["provenance"], dict) else {}
    masks = said.get("masks")
    masks = {k: v for k, v in masks.items() if isinstance(v, str)} if isinstance(masks, dict) else {}
    maps = {"parts": said.get("parts"), "labels": masks.get("labels"), "limbs": masks.get("parts")}
    maps = {name: path for name, path in maps.items() if isinstance(path, str)}
    lifted = d | {"version": VERSION, "maps": maps or None}
    lifted["garments"] = [g | {"mask": m} if (m := masks.get(g.get("category"))) else g for g in d["garments"]]
    if said:
        lifted["provenance"] = {k: v for k, v in said.items() if k not in ("masks", "parts")}
    return lifted


def _object(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RecordError(f"{name} is an object, not {value!r}; write it as in the example of omfa.records.prepared")
    return value


def _several(garments: Any) -> list[Any]:
    if not isinstance(garments, list | None):
        raise RecordError(f'garments {garments!r} must be a list like [{{"category": "upper", "path": "a.png"}}]')
    return garments or []


def iter_records(folder: str | Path, split: str | None = None) -> Iterator[Record]:
    """Records of a folder in file order, one at a time.

    Args:
        folder: holds ``metadata.jsonl``.
        split: only records of this split; None for all.

    Raises:
        RecordError: no metadata file, or a line that breaks the contract; names file and line.
    """
    for number, line in metadata_lines(folder):
        try:
            record = Record.from_json(line)
        except RecordError as e:
            raise RecordError(f"{Path(folder) / METADATA}:{number}: {e}") from None
        if split is None or record.split == split:
            yield record


def metadata_lines(folder: str | Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line of a folder's ``metadata.jsonl``; RecordError where there is none, or no text."""
    path = Path(folder) / METADATA
    if not path.is_file():
        raise RecordError(f"{path} not found: {folder} is no records folder; make one with 'python -m data_prep'")
    try:
        yield from text_lines(path, MAX_LINE)
    except ValueError as e:
        raise RecordError(str(e)) from None


def read_records(folder: str | Path, split: str | None = None) -> list[Record]:
    """All records of a folder, ids checked to be unique. See :func:`iter_records`."""
    records = list(iter_records(folder, split))
    seen: set[str] = set()
    for r in records:
        if r.id in seen:
            raise RecordError(f"{Path(folder) / METADATA}: id {r.id!r} stands twice; ids are unique in a folder")
        seen.add(r.id)
    return records


def garment_roles(record: Record) -> dict[str, GarmentRef]:
    """Role to garment, from inside to outside: the outermost of a category is called as that, what is under it upper_2
    and so on."""
    found, above = list[tuple[str, GarmentRef]](), Counter[Category]()
    for g in reversed(record.garments):
        above[g.category] += 1
        found.append((g.category.value if above[g.category] == 1 else f"{g.category}_{above[g.category]}", g))
    return dict(reversed(found))


def record_pictures(record: Record) -> dict[str, str]:
    """The photographs and drawings a record names, which a VAE can encode: role to relative path.

    Roles: person, face, pose_map, portrait, and those of :func:`garment_roles`.
    """
    files = {"person": record.file_name}
    if record.face is not None:
        files["face"] = record.face.path
    if record.pose is not None and record.pose.map is not None:
        files["pose_map"] = record.pose.map
    if record.portrait is not None:
        files["portrait"] = record.portrait.path
    return files | {role: g.path for role, g in garment_roles(record).items()}


def record_files(record: Record) -> dict[str, str]:
    """All files a record names: role to relative path.

    Roles: those of :func:`record_pictures`, pose_params, face_pose, <garment>_pose, <garment>_mask, keypoints, and the
    maps: parts, labels, limbs, inpaint.
    """
    files: dict[str, str | None] = dict(record_pictures(record))
    files["pose_params"] = None if record.pose is None else record.pose.params
    files["face_pose"] = None if record.face is None else record.face.pose
    for role, garment in garment_roles(record).items():
        files |= {f"{role}_pose": garment.pose, f"{role}_mask": garment.mask}
    files["keypoints"] = None if record.keypoints is None else record.keypoints.path
    files |= vars(record.maps or Maps())
    return {role: path for role, path in files.items() if path is not None}
