"""Small networks that judge pictures: they ship, trained on the synthetic wardrobe by ``data_prep.judges``.

- Which kind of pattern a garment picture shows. It sees the garment alone (its mask on white, cropped and scaled), so
  it does not matter where in the picture a garment lies or how large it is. Evaluation asks it whether a generated
  garment kept the pattern of the real one.
- Where the person is in a picture. Evaluation asks it for the outlines of generated people, which nobody knows; blur
  and blotches of young models are part of its training. Judge it first on pictures whose outline is known.

Legend: B batch, H W pixels, S = 96 side of the pattern network's input, h = 128 rows of the outline's, K kinds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

ASSETS = Path(str(files("omfa"))) / "assets"
PATTERN_WEIGHTS, OUTLINE_WEIGHTS = ASSETS / "pattern_kind.safetensors", ASSETS / "person_outline.safetensors"
KINDS = ("plain", "stripes", "checks", "dots", "gradient", "noise", "print", "two_tone")
SIDE = 96
HEIGHT, MULTIPLE = 128, 16


@lru_cache(maxsize=4)
def shipped(make: Callable[[], nn.Module], weights: Path) -> nn.Module:
    """A network with its shipped half-precision weights as float32, ready to judge; loaded once a process."""
    net = make()
    net.load_state_dict({name: w.float() for name, w in load_file(weights).items()})
    return net.eval()


# ------------------------------------------------------------------------------------------------------------ patterns
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


@torch.no_grad()
def pattern_logits(images: Tensor, masks: Tensor) -> Tensor:
    """(B, K) logits over KINDS; arguments as :func:`garment_crops`; computed on the CPU."""
    return shipped(PatternNet, PATTERN_WEIGHTS)(garment_crops(images.cpu(), masks.cpu()))


def pattern_kinds(images: Tensor, masks: Tensor) -> list[str]:
    """The most likely kind of each garment, B words of KINDS; arguments as :func:`garment_crops`."""
    return [KINDS[k] for k in pattern_logits(images, masks).argmax(1).tolist()]


# ------------------------------------------------------------------------------------------------------------ outlines
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
    logits = F.interpolate(
        shipped(OutlineNet, OUTLINE_WEIGHTS)(small * 2 - 1), (height, width), mode="bilinear", align_corners=False
    )
    return (logits > 0).to(images.device)
