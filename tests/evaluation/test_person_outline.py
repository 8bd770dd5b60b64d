"""The outline network: people of the wardrobe it never saw, whose outline is known, sharp and blurred."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from data_prep.__main__ import main as prepare
from omfa.evaluation.judges import person_outline
from omfa.evaluation.scoring import Item, truth_masks
from omfa.images import read_trusted
from omfa.records.prepared import read_records


def test_people_of_the_wardrobe_are_found_even_when_blurred(tmp_path: Path) -> None:
    records = tmp_path / "wardrobe"
    assert prepare(["synthetic", "--records", "4", "--seed", "4321", "--size", "128x96", "--out", str(records)]) == 0
    scores = []
    for record in read_records(records):
        seen = read_trusted(records / record.file_name)[None] / 2 + 0.5
        size = (int(seen.shape[-2]), int(seen.shape[-1]))
        true = truth_masks(records, Item(record), size)["person"][None, None] > 0.5
        small = F.interpolate(seen, (size[0] // 3, size[1] // 3), mode="bilinear", antialias=True)
        blurred = F.interpolate(small, size, mode="bicubic").clamp(0, 1)
        for picture in (seen, blurred):
            found = person_outline(picture)
            assert found.dtype == torch.bool and found.shape == (1, 1, *size)
            scores.append(float((found & true).sum() / (found | true).sum()))
    assert sum(scores) / len(scores) > 0.88, scores


def test_other_shapes_are_refused_and_other_aspects_taken() -> None:
    assert person_outline(torch.rand(2, 3, 50, 90)).shape == (2, 1, 50, 90)
    with pytest.raises(ValueError, match="give"):
        person_outline(torch.rand(3, 50, 90))
