"""A small U-Net that mends the warped garment, knowing the masked photo and the pose. LaDI-VTON, arXiv 2305.13501."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn


class Refinement(ModelMixin, ConfigMixin):
    """Masked photo (3), pose map (18) and warped garment (3) to the garment as worn, unbounded: clamp it to [-1, 1].

    Args:
        in_channels: 24 as published.
        out_channels: of the picture.
        width: channels at full size; the others follow (64 as published: 17 million parameters).
    """

    @register_to_config
    def __init__(self, in_channels: int = 24, out_channels: int = 3, width: int = 64) -> None:
        super().__init__()
        self.inc = _Twice(in_channels, width)
        self.down1, self.down2 = _Down(width, 2 * width), _Down(2 * width, 4 * width)
        self.down3, self.down4 = _Down(4 * width, 8 * width), _Down(8 * width, 8 * width)
        self.up1, self.up2 = _Up(16 * width, 4 * width), _Up(8 * width, 2 * width)
        self.up3, self.up4 = _Up(4 * width, width), _Up(2 * width, width)
        self.outc = nn.ModuleDict({"conv": nn.Conv2d(width, out_channels, 1)})

    def forward(self, x: Tensor) -> Tensor:
        """(B, 24, H, W), any size from 16 on, to (B, 3, H, W)."""
        skips = [self.inc(x)]
        for down in (self.down1, self.down2, self.down3, self.down4):
            skips.append(down(skips[-1]))
        y = skips.pop()
        for up in (self.up1, self.up2, self.up3, self.up4):
            y = up(y, skips.pop())
        return self.outc["conv"](y)


class _Twice(nn.Module):
    def __init__(self, before: int, after: int, middle: int | None = None) -> None:
        super().__init__()
        middle = middle or after
        self.double_conv = nn.Sequential(
            *(nn.Conv2d(before, middle, 3, padding=1, bias=False), nn.BatchNorm2d(middle), nn.ReLU()),
            *(nn.Conv2d(middle, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.double_conv(x)


class _Down(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), _Twice(before, after))

    def forward(self, x: Tensor) -> Tensor:
        return self.maxpool_conv(x)


class _Up(nn.Module):
    """Twice the size, padded to the skip's where halving had rounded down."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv = _Twice(before, after, before // 2)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        more, wider = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
        x = F.pad(x, (wider // 2, wider - wider // 2, more // 2, more - more // 2))
        return self.conv(torch.cat([skip, x], 1))
