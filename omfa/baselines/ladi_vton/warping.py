"""The garment onto the person by a thin-plate spline: two extractors, a correlation, 5 x 5 control points, a grid.

    theta = tanh(regression(correlation(A(cloth), B(agnostic)))),   grid = TPS(theta),   warped = cloth sampled at grid

``B`` batch, ``H W`` pixels (256 x 192 as published), ``h w`` the features' (H / 16, W / 16), ``N`` control points (25).
Coordinates are (x, y) in [-1, 1], control points row by row. LaDI-VTON, arXiv 2305.13501, after CP-VTON, 1807.07688.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from torch import Tensor, nn

POINTS, REACH = 5, 0.9  # control points on a side, and where the outermost lie
BEND, TURN = 0.08, 0.02  # what the regularisers leave free


class Warp(NamedTuple):
    """Where to look in the cloth, (B, H, W, 2), and the control points (B, N, 2)."""

    grid: Tensor
    theta: Tensor


class TPSWarping(ModelMixin, ConfigMixin):
    """From a garment's picture and what is left of the person to a sampling grid.

    Args:
        size: (height, width) it works at; multiples of 16, at least 64.
        agnostic_channels: 3 of the masked photo and 18 of the pose map.
        width: channels of the first layer; the others follow (64 as published: 19 million parameters).

    Raises:
        ValueError: a size that the five halvings don't take.
    """

    @register_to_config
    def __init__(self, size: Sequence[int] = (256, 192), agnostic_channels: int = 21, width: int = 64) -> None:
        super().__init__()
        height, across = size
        if min(size) < 64 or height % 16 or across % 16:
            raise ValueError(f"warping at {height}x{across}: both sides must be multiples of 16 and at least 64")
        h, w = height // 16, across // 16
        self.extractionA, self.extractionB = _Extraction(3, width), _Extraction(agnostic_channels, width)
        self.loc_net = nn.ModuleDict({"regression": _Regression(h * w, (h // 2 // 2) * (w // 2 // 2), width)})
        self.gridGen = _ThinPlate(height, across)

    def forward(self, cloth: Tensor, agnostic: Tensor) -> Warp:
        """Cloth (B, 3, H, W) and agnostic (B, 21, H, W), both in [-1, 1] (pose maps [0, 1]), to a :class:`Warp`."""
        matched = correlation(self.extractionA(cloth), self.extractionB(agnostic))
        theta = rearrange(self.loc_net["regression"](matched), "b (n xy) -> b n xy", xy=2)
        return Warp(self.gridGen(theta), theta)


class _Extraction(nn.Module):
    """Convolution, ReLU, norm, in this order: four halvings, then two at the last scale."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        counts = [channels, width, 2 * width, 4 * width, 8 * width]
        layers: list[nn.Module] = []
        for before, after in pairwise(counts):
            layers += [nn.Conv2d(before, after, 4, 2, 1), nn.ReLU(), nn.BatchNorm2d(after)]
        last = counts[-1]
        layers += [nn.Conv2d(last, last, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(last)]
        layers += [nn.Conv2d(last, last, 3, padding=1), nn.ReLU()]
        self.model = nn.Sequential(*layers)
        for layer in self.model:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.02)
            elif isinstance(layer, nn.BatchNorm2d):
                nn.init.normal_(layer.weight, 1.0, 0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class _Regression(nn.Module):
    """Correlations to control points in (-1, 1), at the regular grid to begin with."""

    def __init__(self, channels: int, cells: int, width: int) -> None:
        super().__init__()
        counts = [channels, 8 * width, 4 * width, 2 * width, width]
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(pairwise(counts)):
            conv = nn.Conv2d(before, after, 4, 2, 1) if i < 2 else nn.Conv2d(before, after, 3, padding=1)
            layers += [conv, nn.BatchNorm2d(after), nn.ReLU()]
        self.conv = nn.Sequential(*layers)
        self.linear = nn.Linear(width * cells, 2 * POINTS**2)
        nn.init.zeros_(self.linear.weight)
        with torch.no_grad():
            self.linear.bias.copy_(torch.atanh(control_points()).flatten())

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(self.conv(x).flatten(1)))


class _ThinPlate(nn.Module):
    """The spline that takes the regular control points to theta, read at every pixel: grid = R (K^-1 [theta; 0])."""

    inverse_kernel: Tensor
    padding_matrix: Tensor
    target_coordinate_repr: Tensor

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.size = height, width
        points = control_points()
        n = len(points)
        kernel = torch.zeros(n + 3, n + 3)
        kernel[:n] = _features(points, points)
        kernel[n:, :n] = _features(points, points)[:, n:].T
        lines = [torch.arange(side) * 2 / (side - 1) - 1 for side in (height, width)]
        y, x = torch.meshgrid(*lines, indexing="ij")
        self.register_buffer("inverse_kernel", torch.linalg.inv(kernel))
        self.register_buffer("padding_matrix", torch.zeros(3, 2))
        self.register_buffer("target_coordinate_repr", _features(torch.stack([x, y], -1).flatten(0, 1), points))

    def forward(self, theta: Tensor) -> Tensor:
        padded = torch.cat([theta, self.padding_matrix.expand(len(theta), 3, 2)], 1)
        grid = self.target_coordinate_repr @ (self.inverse_kernel @ padded)
        return rearrange(grid, "b (h w) xy -> b h w xy", h=self.size[0])


def control_points() -> Tensor:
    """The regular grid, (N, 2)."""
    line = torch.linspace(-REACH, REACH, POINTS)
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1)


def _features(at: Tensor, points: Tensor) -> Tensor:
    """0.5 d^2 log d^2 to every control point (0 at d = 0), then 1, x, y: (M, N + 3)."""
    square = (at[:, None] - points).square().sum(-1)
    return torch.cat([0.5 * torch.xlogy(square, square), torch.ones_like(at[:, :1]), at], 1)


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """How alike every place of ``a`` is to every place of ``b``: (B, C, h, w) twice to (B, h w, h, w).

    Channels are the places of ``a``, column by column; space is that of ``b``. Features are normalised first.
    """
    a, b = (x / (x.square().sum(1, keepdim=True) + 1e-6).sqrt() for x in (a, b))
    return torch.einsum("bcn,bchw->bnhw", rearrange(a, "b c h w -> b c (w h)"), b)


def sample(cloth: Tensor, grid: Tensor) -> Tensor:
    """The cloth (B, 3, H, W) where a grid looks, (B, 3, H, W); a grid of another size is brought to it first."""
    if grid.shape[1:3] != cloth.shape[2:]:
        grid = resize(rearrange(grid, "b h w xy -> b xy h w"), cloth.shape[2:])
        grid = rearrange(grid, "b xy h w -> b h w xy")
    return F.grid_sample(cloth, grid.to(cloth.dtype), padding_mode="border", align_corners=False)


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear with antialias, (B, C, *size): how every picture of this method changes its size."""
    return F.interpolate(x, tuple(size), mode="bilinear", antialias=True, align_corners=False)


class Regularisers(NamedTuple):
    """What keeps the control points in order: bending along rows and columns in x and y, and their turning."""

    rx: Tensor
    ry: Tensor
    cx: Tensor
    cy: Tensor
    rg: Tensor
    cg: Tensor

    def total(self) -> Tensor:
        """The sum of all six, a scalar."""
        return torch.stack(list(self)).sum()


def regularisers(theta: Tensor) -> Regularisers:
    """Six scalars from control points (B, N, 2). As published, turning is that of the batch's first item alone."""
    lines = rearrange(theta, "b (rows columns) xy -> b rows columns xy", rows=POINTS)
    across = lines.transpose(1, 2)
    bend_rows, bend_columns = _bending(lines), _bending(across)
    return Regularisers(*bend_rows, *bend_columns, _turning(lines[0]), _turning(across[0]))


def _bending(lines: Tensor) -> tuple[Tensor, Tensor]:
    """Second differences of squared steps along the last but one axis, floored, mean over all: x's and y's."""
    bend = lines.diff(dim=2).square().diff(dim=2).abs().clamp(min=BEND)
    return bend[..., 0].mean(), bend[..., 1].mean()


def _turning(lines: Tensor) -> Tensor:
    """Twice the area between neighbours of a line, summed over all triples, floored."""
    before, here, after = lines[:, :-2], lines[:, 1:-1], lines[:, 2:]
    a, b = before - here, after - here
    return (a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]).abs().sum().clamp(min=TURN)
