"""Part maps for records that have none: from SCHP, a segmentation model of transformers, or maps at hand."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from data_prep.records import as_line, carry, record_items
from data_prep.run import Outcome, add_source, existing_folder, run_stage, write_image
from omfa.commands import find_device
from omfa.images import read_image
from omfa.records.labels import SCHEMES, read_labels, to_parts
from omfa.records.prepared import Maps, Record, resolve


class Parser(Protocol):
    """Whatever labels the pixels of a record's picture: a frozen dataclass, its model loaded once a process."""

    def __call__(self, record: Record, rgb: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
        """(H, W, 3) uint8 to label ids (h, w) uint8 of the same aspect, and the names of the ids."""


@dataclass(frozen=True)
class Schp:
    """SCHP with an official checkpoint (LIP or ATR)."""

    checkpoint: Path
    device: str

    def __call__(self, record: Record, rgb: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
        """See :class:`Parser`."""
        from data_prep import schp

        return schp.parse(rgb, self.checkpoint, self.device)


@dataclass(frozen=True)
class Segmenter:
    """A semantic segmentation model of transformers, by hub id or folder; its labels are known by their names."""

    model: str
    device: str

    @torch.inference_mode()
    def __call__(self, record: Record, rgb: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
        """See :class:`Parser`."""
        processor, model, names = _load_segmenter(self.model, self.device)
        logits = model(**processor(rgb, return_tensors="pt").to(self.device)).logits.float()
        size = rgb.shape[:2]
        logits = torch.nn.functional.interpolate(logits, size, mode="bilinear", align_corners=False)
        return logits[0].argmax(0).byte().cpu().numpy(), names


@lru_cache(maxsize=1)
def _load_segmenter(name: str, device: str) -> tuple[Any, Any, tuple[str, ...]]:
    from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

    try:
        processor = AutoImageProcessor.from_pretrained(name)
        model = AutoModelForSemanticSegmentation.from_pretrained(name).eval().to(device)
    except (OSError, ValueError) as e:
        said = str(e).strip().splitlines()[0]
        raise ValueError(f"segmentation model {name!r} can't be had ({said}): give a hub id or a folder") from None
    return processor, model, tuple(model.config.id2label[n] for n in range(model.config.num_labels))


@dataclass(frozen=True)
class MapsAtHand:
    """Label maps made by others: ``<record id>.png`` in a folder."""

    folder: Path
    scheme: str

    def __call__(self, record: Record, rgb: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
        """See :class:`Parser`."""
        names = SCHEMES[self.scheme]
        return read_labels(resolve(self.folder, f"{record.id}.png"), names), names


def parse_record(item_id: str, record: Record, out: Path, *, parser: Parser, source: Path) -> list[dict[str, Any]]:
    """Work of the runner: a record with its part map; one that has a map keeps it."""
    carry(record, source, out)
    maps = record.maps or Maps()
    if maps.parts is None:
        rgb = np.asarray(read_image(resolve(source, record.file_name)))
        path = f"parts/{item_id}.png"
        write_image(out / path, to_parts(*parser(record, rgb), (rgb.shape[0], rgb.shape[1])))
        record = dataclasses.replace(record, maps=dataclasses.replace(maps, parts=path))
    return [as_line(record)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the stage: where the maps come from."""
    add_source(parser, "records")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--schp", metavar="FILE", type=Path, help="official SCHP checkpoint, LIP or ATR")
    which.add_argument("--model", metavar="ID", help="segmentation model of transformers: hub id or folder")
    which.add_argument("--maps", metavar="DIR", type=existing_folder, help="label maps named RECORD_ID.png")
    parser.add_argument("--scheme", choices=SCHEMES, help="labels of --maps")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, mps")


def main(args: argparse.Namespace) -> Outcome:
    """Give every record of a folder a part map.

    Raises:
        ValueError: the model can't be loaded, or --maps without --scheme.
    """
    parser: Parser
    if args.schp is not None:
        from data_prep import schp

        parser = Schp(args.schp.resolve(), find_device(args.device))
        schp.load(parser.checkpoint, parser.device)  # a wrong file is told before the first record
    elif args.model is not None:
        parser = Segmenter(args.model, find_device(args.device))
        _load_segmenter(args.model, parser.device)
    elif args.scheme is None:
        raise ValueError(f"--maps needs --scheme: one of {', '.join(SCHEMES)}")
    else:
        parser = MapsAtHand(args.maps, args.scheme)
    work = partial(parse_record, parser=parser, source=args.records)
    items = record_items(args.records, args.limit)
    return run_stage("parse", items, work, args.out, workers=args.workers, engine=args.engine)
