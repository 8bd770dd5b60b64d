"""The on-disk contract: a *record* is one prepared picture of a dressed person with all that belongs to it.

A folder of records holds ``metadata.jsonl`` (one JSON object per line, the Hugging Face image-folder convention) and
the files it names. Paths are relative to the folder and stay inside it. ``null`` means absent.

    {"version": 1, "id": "p3-o1-v0", "split": "train", "person_id": "p3", "outfit_id": "o1",
     "file_name": "person/p3-o1-v0.png",
     "face": {"path": "face/p3.png", "source_id": "p3-o1-v2"},
     "garments": [{"category": "upper", "path": "garment/o1-upper.png", "kind": "shop", "source_id": null}],
     "pose": {"map": "pose/p3-o1-v0.png", "params": "pose/p3-o1-v0.npz"},
     "caption": "striped t-shirt, blue trousers", "view_yaw": 12.5, "provenance": {"stage": "synthetic"}}
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from omfa.components import Category

METADATA = "metadata.jsonl"
VERSION = 1
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
    return path


def resolve(folder: Path, path: str) -> Path:
    """Absolute path of a record's file, links followed.

    Args:
        folder: the records folder.
        path: a path as the record gives it.

    Raises:
        RecordError: the path leaves the folder, by itself or through a symbolic link.
    """
    root = folder.resolve()
    full = (root / check_path(path)).resolve()
    if not full.is_relative_to(root):
        raise RecordError(f"path {path!r} leads out of {folder} through a link: copy the file into the folder")
    return full


@dataclass(frozen=True)
class FaceRef:
    """A head crop of the same person. ``source_id``: the record it was cut from (None: unknown)."""

    path: str
    source_id: str | None = None

    def __post_init__(self) -> None:
        check_path(self.path)


@dataclass(frozen=True)
class GarmentRef:
    """A garment picture: ``shop`` (laid out or rendered alone) or ``cutout`` (out of record ``source_id``)."""

    category: Category
    path: str
    kind: Literal["shop", "cutout"] = "shop"
    source_id: str | None = None

    def __post_init__(self) -> None:
        check_path(self.path)
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
        for path in (self.map, self.params):
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
        garments: what the person wears, as pictures; at most one of each category; a dress excludes the others.
        pose: pose map and body parameters, or None.
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
    caption: str | None = None
    view_yaw: float | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise RecordError(f"version {self.version!r} is not known; this release reads version {VERSION}")
        for name in ("id", "split", "person_id", "outfit_id"):
            value = getattr(self, name)
            if not isinstance(value, str) or not _ID.fullmatch(value):
                raise RecordError(f"{name} {value!r} must be 1 to 200 letters, digits, '.', '_' or '-'")
        check_path(self.file_name)
        object.__setattr__(self, "garments", tuple(self.garments))
        worn = [g.category for g in self.garments]
        if len(set(worn)) != len(worn):
            raise RecordError(f"garments {worn} hold a category twice; give at most one picture of each")
        if Category.DRESS in worn and len(worn) > 1:
            raise RecordError(f"garments {worn}: a dress takes the place of upper and lower; give it alone")
        if not isinstance(self.provenance, dict) or not isinstance(self.caption, str | None):
            raise RecordError(f"caption {self.caption!r} must be a text and provenance {self.provenance!r} an object")
        if self.view_yaw is not None and not (isinstance(self.view_yaw, int | float) and -180 < self.view_yaw <= 180):
            raise RecordError(f"view_yaw {self.view_yaw!r} must be in (-180, 180] degrees")
        if not self.provenance.get("own_cutouts"):
            for g in self.garments:
                if g.kind == "cutout" and g.source_id == self.id:
                    raise RecordError(f"the {g.category} cutout comes from this very picture: take it from another one")

    def to_json(self) -> str:
        """One line of ``metadata.jsonl``, keys in the contract's order."""
        d = asdict(self)
        order = ["version", "id", "split", "person_id", "outfit_id", "file_name", "face", "garments", "pose"]
        order += ["caption", "view_yaw", "provenance"]
        return json.dumps({k: d[k] for k in order}, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> Record:
        """Parse one line of ``metadata.jsonl``.

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
            return cls(
                **{k: v for k, v in d.items() if k not in ("face", "garments", "pose", "provenance")},
                face=None if d.get("face") is None else FaceRef(**_object("face", d["face"])),
                garments=tuple(GarmentRef(**_object("a garment", g)) for g in _several(d.get("garments"))),
                pose=None if d.get("pose") is None else PoseRef(**_object("pose", d["pose"])),
                provenance=d.get("provenance") or {},
            )
        except RecordError:
            raise
        except (TypeError, AttributeError) as e:  # a missing, unknown or wrongly typed key
            raise RecordError(str(e).replace("Record.__init__()", "record").replace("__init__()", "")) from None


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
    path = Path(folder) / METADATA
    if not path.is_file():
        raise RecordError(f"{path} not found: {folder} is no records folder; make one with 'python -m data_prep'")
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = Record.from_json(line.decode("utf-8"))
            except UnicodeDecodeError as e:
                raise RecordError(f"{path}:{number}: no UTF-8 text ({e}); write the file anew as UTF-8") from None
            except RecordError as e:
                raise RecordError(f"{path}:{number}: {e}") from None
            if split is None or record.split == split:
                yield record


def read_records(folder: str | Path, split: str | None = None) -> list[Record]:
    """All records of a folder, ids checked to be unique. See :func:`iter_records`."""
    records = list(iter_records(folder, split))
    seen: set[str] = set()
    for r in records:
        if r.id in seen:
            raise RecordError(f"{Path(folder) / METADATA}: id {r.id!r} stands twice; ids are unique in a folder")
        seen.add(r.id)
    return records


def write_records(folder: str | Path, records: Iterable[Record]) -> Path:
    """Write ``metadata.jsonl`` at once: to the side first, then swapped in.

    Returns:
        The path of the file.
    """
    path = Path(folder) / METADATA
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".jsonl.part")
    with part.open("w", encoding="utf-8") as out:
        for record in records:
            out.write(record.to_json() + "\n")
        out.flush()
        os.fsync(out.fileno())
    os.replace(part, path)
    return path


def record_files(record: Record) -> dict[str, str]:
    """The files a record names: role to relative path (roles: person, face, pose_map, pose_params, a category)."""
    files = {"person": record.file_name}
    if record.face is not None:
        files["face"] = record.face.path
    if record.pose is not None:
        roles = {"pose_map": record.pose.map, "pose_params": record.pose.params}
        files |= {role: path for role, path in roles.items() if path is not None}
    return files | {g.category.value: g.path for g in record.garments}


def validate(folder: str | Path) -> list[str]:
    """Every problem of a records folder as one line each: file, line, what is wrong, what would be right.

    Checks the contract of every line, unique ids, and that every named file exists, is inside the folder and is not
    empty. Pictures are not decoded here. An empty list means all is well.
    """
    root, problems, seen = Path(folder), list[str](), set[str]()
    path = root / METADATA
    if not path.is_file():
        return [f"{path}: not found; a records folder has a {METADATA}"]
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = Record.from_json(line)
        except RecordError as e:
            problems.append(f"{path}:{number}: {e}")
            continue
        if record.id in seen:
            problems.append(f"{path}:{number}: id {record.id!r} stands twice; give every record its own id")
        seen.add(record.id)
        for role, name in record_files(record).items():
            try:
                full = resolve(root, name)
                if not full.is_file():
                    problems.append(f"{path}:{number}: {role} file {name!r} is missing; add it or remove its entry")
                elif full.stat().st_size == 0:
                    problems.append(f"{path}:{number}: {role} file {name!r} is empty; write it again")
            except (RecordError, OSError) as e:
                problems.append(f"{path}:{number}: {role}: {e}")
    return problems
