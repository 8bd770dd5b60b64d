"""Which kind of pattern a garment picture shows: a small network that ships, trained on the synthetic wardrobe.

Evaluation asks it whether a generated garment kept the pattern of the real one. It sees the garment alone (its mask on
white, cropped and scaled), so it does not matter where in the picture a garment lies or how large it is.

Legend: B batch, H W pixels, S = 96 side of the network's input, K kinds.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import as_file, files

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

KINDS = ("plain", "stripes", "checks", "dots", "gradient", "noise", "print", "two_tone")
SIDE = 96
WEIGHTS = "pattern_kind.safetensors"


class PatternNet(nn.Module):
    """Five strided convolutions, a mean and a maximum over places, one linear layer: about 100,000 parameters."""

    def __init__(self, widths: tuple[int, ...] = (24, 32, 48, 64, 96)) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for a, b in zip((3, *widths[:-1]), widths, strict=True):
            blocks += [nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.SiLU()]
        self.features = nn.Sequential(*blocks)
        self.head = nn.Linear(2 * widths[-1], len(KINDS))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, S, S) in [-1, 1] to logits (B, K)."""
        h = self.features(x)
        return self.head(torch.cat([h.mean((2, 3)), h.amax((2, 3))], dim=1))


def garment_crops(images: Tensor, masks: Tensor) -> Tensor:
    """(B, 3, S, S) in [-1, 1]: each garment alone on white, in the smallest square that holds it.

    Args:
        images: (B, 3, H, W) in [0, 1].
        masks: (B, 1, H, W), the garment where above one half; where it is empty, the whole picture counts.

    Raises:
        ValueError: shapes do not fit.
    """
    if images.ndim != 4 or images.shape[1] != 3 or masks.shape != (len(images), 1, *images.shape[2:]):
        raise ValueError(
            f"images {tuple(images.shape)} and masks {tuple(masks.shape)}; give (B, 3, H, W) and (B, 1, H, W)"
        )
    crops = []
    for image, mask in zip(images.float(), masks[:, 0] > 0.5, strict=True):
        shown = mask if mask.any() else torch.ones_like(mask)
        rows, columns = torch.nonzero(shown.any(1))[:, 0], torch.nonzero(shown.any(0))[:, 0]
        top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
        alone = torch.where(shown, image, torch.ones_like(image))[:, top:bottom, left:right]
        tall, wide = bottom - top, right - left
        side = max(tall, wide)
        above, before = (side - tall) // 2, (side - wide) // 2
        square = F.pad(alone, (before, side - wide - before, above, side - tall - above), value=1.0)
        crops.append(F.interpolate(square[None], (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False))
    return torch.cat(crops) * 2 - 1


@lru_cache(maxsize=1)
def _net() -> PatternNet:
    net = PatternNet()
    with as_file(files("omfa") / "assets" / WEIGHTS) as path:
        net.load_state_dict({name: w.float() for name, w in load_file(path).items()})
    return net.eval()


@torch.no_grad()
def pattern_logits(images: Tensor, masks: Tensor) -> Tensor:
    """(B, K) logits over KINDS; arguments as :func:`garment_crops`; computed on the CPU."""
    return _net()(garment_crops(images.cpu(), masks.cpu()))


def pattern_kinds(images: Tensor, masks: Tensor) -> list[str]:
    """The most likely kind of each garment, B words of KINDS; arguments as :func:`garment_crops`."""
    return [KINDS[k] for k in pattern_logits(images, masks).argmax(1).tolist()]
