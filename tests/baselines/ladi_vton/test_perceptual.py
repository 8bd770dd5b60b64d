from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from omfa.baselines.ladi_vton.checkpoints import Refused
from omfa.baselines.ladi_vton.perceptual import BLOCKS, VGGLoss, resized
from tests.baselines.ladi_vton.golden import LOOSE, read, ruled
from tests.baselines.rule import weight


def vgg19(gain: float = 1.5) -> dict[str, Tensor]:
    """torchvision's names: a pooling takes a number too."""
    state, index, before = {}, 0, 3
    for channels, count in BLOCKS:
        for _ in range(count):
            for key, shape in {"weight": (channels, before, 3, 3), "bias": (channels,)}.items():
                name = f"features.{index}.{key}"
                state[name] = weight("ladi.vgg", name, shape, gain)
            index, before = index + 2, channels
        index += 1
    return state


@torch.no_grad()
def test_as_the_original() -> None:
    golden, loss = read("vgg_loss"), VGGLoss(vgg19())
    assert_close(loss(golden["a.x"], golden["a.y"])[None], golden["a.loss"], **LOOSE)
    x, y = (
        F.interpolate(ruled(f"ladi.vgg:b.{n}_coarse", (1, 3, 8, 6)), (300, 280), mode="bilinear") for n in ("x", "y")
    )
    assert_close(loss(x, y)[None], golden["b.loss"], **LOOSE)
    for number, (a, b) in enumerate(zip(loss.slices(x), loss.slices(y), strict=True), 1):
        assert_close(F.l1_loss(a, b)[None], golden[f"b.l1_slice{number}"], **LOOSE)
    assert resized(64, 48) == tuple(golden["a.resized_hw"].tolist())
    assert resized(300, 280) == tuple(golden["b.resized_hw"].tolist())


def test_other_weights_are_refused() -> None:
    state = vgg19()
    del state["features.28.weight"]
    with pytest.raises(Refused, match=r"features\.28\.weight"):
        VGGLoss(state)
