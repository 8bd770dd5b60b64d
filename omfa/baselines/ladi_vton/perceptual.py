"""The perceptual loss of two trainings: L1 between VGG19's views of two pictures. LaDI-VTON, arXiv 2305.13501."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omfa.baselines.ladi_vton.checkpoints import Refused, read_weights

BLOCKS = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))  # channels and convolutions between two poolings
ENDS = (1, 6, 11, 20, 29)  # the layers that are compared, the first ReLU of each block
SHARES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)
SIDE = 256  # the short side of a picture as VGG sees it
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WHERE = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"


class VGGLoss(nn.Module):
    """Weighted L1 over five slices of VGG19, frozen.

    Args:
        state: torchvision's VGG19 by its own names (``features.0.weight``, ...); what lies behind the last slice is
            not needed.

    Raises:
        Refused: some weight is missing or of another shape.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.layers = _layers()
        wanted = self.layers.state_dict()
        found = {k.removeprefix("features."): v for k, v in state.items() if k.startswith("features.")}
        if wrong := [k for k, v in wanted.items() if k not in found or found[k].shape != v.shape]:
            raise Refused(f"no weights of VGG19: features.{wrong[0]} is missing or of another shape; get {WHERE}")
        self.layers.load_state_dict({k: found[k] for k in wanted})
        self.requires_grad_(False).eval()

    @classmethod
    def from_file(cls, path: str | Path) -> VGGLoss:
        """From torchvision's file; errors as above, and those of :func:`read_weights`."""
        return cls(read_weights(Path(path)))

    def slices(self, x: Tensor) -> list[Tensor]:
        """Five views of pictures (B, 3, H, W) in [-1, 1]."""
        x = F.interpolate(x, resized(*x.shape[2:]), mode="bilinear", antialias=True, align_corners=False)
        x = (x / 2 + 0.5 - x.new_tensor(MEAN).view(3, 1, 1)) / x.new_tensor(STD).view(3, 1, 1)
        views = []
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index in ENDS:
                views.append(x)
        return views

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """How far ``x`` is from the truth ``y``, both (B, 3, H, W) in [-1, 1]; a scalar."""
        with torch.no_grad():
            truth = self.slices(y)
        apart = [F.l1_loss(a, b) * share for a, b, share in zip(self.slices(x), truth, SHARES, strict=True)]
        return torch.stack(apart).sum()


def resized(height: int, width: int) -> tuple[int, int]:
    """A picture's size with its short side at 256, the long one rounded down."""
    short = min(height, width)
    return SIDE * height // short, SIDE * width // short


def _layers() -> nn.Sequential:
    """VGG19 up to the last layer that is compared."""
    layers: list[nn.Module] = []
    for (before, _), (after, count) in pairwise([(3, 0), *BLOCKS]):
        layers += [nn.MaxPool2d(2)] * bool(layers)
        for i in range(count):
            layers += [nn.Conv2d(before if i == 0 else after, after, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers[: ENDS[-1] + 1])
