"""Pictures become squares as the original's do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from omfa.baselines.tryoffdiff.pictures import stretched, to_square
from tests.baselines import rule
from tests.baselines.tryoffdiff.common import golden

LEVEL = 2 / 255


def as_picture(pixels: torch.Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("name", ["tall", "wide", "even"])
def test_small_pictures_agree(name: str) -> None:
    numbers = golden("preprocess")
    made = to_square(as_picture(numbers[f"{name}.in"]), 512)[0]
    for ours, theirs in ((made[:, ::4, ::4], "out_stride4"), (made[:, 255], "out_row255")):
        differ = (ours - numbers[f"{name}.{theirs}"]).abs()
        assert differ.max() <= LEVEL + 1e-6 and (differ > 1e-6).float().mean() < 0.001


@pytest.mark.parametrize(("name", "shape"), [("big", (3, 1024, 768)), ("bigtall", (3, 700, 531))])
def test_large_pictures_agree(name: str, shape: tuple[int, ...]) -> None:
    picture = rule.uniform(f"tod.pre:{name}", shape, 0, 256).clamp(max=255).to(torch.uint8)
    differ = (to_square(as_picture(picture), 512)[0][:, ::8, ::8] - golden("preprocess")[f"{name}.out_stride8"]).abs()
    assert differ.max() <= LEVEL + 1e-6 and (differ > 1e-6).float().mean() < 0.001


@pytest.mark.parametrize("size", [(64, 48), (40, 70), (33, 33), (9, 160)])
def test_the_box_is_where_the_picture_lies(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (6, 5, 3), np.uint8)).resize(size[::-1], Image.Resampling.BICUBIC)
    square, box = to_square(smooth, max(size))
    rows, columns = box.window
    cut = ((square[:, rows, columns] + 1) * 127.5).round().permute(1, 2, 0).numpy()
    assert (box.height, box.width) == size and np.array_equal(cut, np.asarray(smooth))
    half = to_square(smooth, max(size) // 2)[1]
    assert abs(half.height - size[0] / 2) <= 1 and abs(half.top - box.top / 2) <= 1


def test_stretching_reaches_both_ends_of_each_picture() -> None:
    pictures = torch.rand(2, 3, 8, 8) * torch.tensor([0.3, 1.7])[:, None, None, None]
    made = stretched(pictures)
    assert torch.allclose(made.amin((1, 2, 3)), torch.tensor([-1.0, -1.0]))
    assert torch.allclose(made.amax((1, 2, 3)), torch.ones(2))
    assert stretched(torch.zeros(1, 3, 8, 8)).isfinite().all()
