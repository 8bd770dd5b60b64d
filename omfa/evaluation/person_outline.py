"""Where the person is in a picture: a small network that ships, trained on the synthetic wardrobe.

Evaluation asks it for the outlines of generated people, which nobody knows; blur and blotches of young models are part
of its training. Judge it first on pictures whose outline is known.

Legend: B batch, H W pixels, h = 128 rows of the network's input.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import as_file, files

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

HEIGHT, MULTIPLE = 128, 16
WEIGHTS = "person_outline.safetensors"


def _block(a: int, b: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.SiLU())


class OutlineNet(nn.Module):
    """A U-Net of four strided steps down and three up, at half the input's size: about 200,000 parameters."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 48, 64)) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            nn.Sequential(_block(a, b, 2), _block(b, b)) for a, b in zip((3, *widths[:-1]), widths, strict=True)
        )
        self.up = nn.ModuleList(_block(a + b, b) for a, b in zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.head = nn.Conv2d(widths[0], 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, h, w) in [-1, 1], sides divisible by 16, to logits (B, 1, h, w); above 0 is the person."""
        kept = []
        for block in self.down:
            x = block(x)
            kept.append(x)
        for block, skip in zip(self.up, kept[-2::-1], strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0), skip], dim=1))
        return F.pixel_shuffle(self.head(x), 2)


@lru_cache(maxsize=1)
def _net() -> OutlineNet:
    net = OutlineNet()
    with as_file(files("omfa") / "assets" / WEIGHTS) as path:
        net.load_state_dict({name: w.float() for name, w in load_file(path).items()})
    return net.eval()


@torch.no_grad()
def person_outline(images: Tensor) -> Tensor:
    """The person in each picture, (B, 1, H, W) bool, on the pictures' device; computed on the CPU.

    Args:
        images: (B, 3, H, W) in [0, 1], one person before a plain wall in each.

    Raises:
        ValueError: another shape.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images {tuple(images.shape)}; give (B, 3, H, W)")
    height, width = images.shape[-2:]
    size = (HEIGHT, max(MULTIPLE, round(HEIGHT * width / height / MULTIPLE) * MULTIPLE))
    small = F.interpolate(images.float().cpu(), size, mode="bilinear", antialias=True, align_corners=False)
    logits = F.interpolate(_net()(small * 2 - 1), (height, width), mode="bilinear", align_corners=False)
    return (logits > 0).to(images.device)
