"""SCHP: a ResNet-101 that parses people (Li et al., Self-Correction for Human Parsing, 2020), for inference.

Written from the network's description with the official names of its weights, so that the official LIP and ATR
checkpoints load as they are. ``B`` batch, ``C`` labels, ``D`` side of the square the network sees, ``H W`` pixels.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omfa.records.labels import ATR, LIP

SCHEMES = {len(LIP): (LIP, 473), len(ATR): (ATR, 512)}  # number of labels: their names and D
_MEAN, _STD = np.array([0.406, 0.456, 0.485], np.float32), np.array([0.225, 0.224, 0.229], np.float32)  # BGR


class ABN(nn.Module):
    """In-place activated batch norm as it is at inference: the scale is ``|weight| + eps``; then LeakyReLU(0.01)."""

    def __init__(self, channels: int, slope: float = 0.01, eps: float = 1e-5) -> None:
        super().__init__()
        self.slope, self.eps = slope, eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.running_mean: Tensor
        self.running_var: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(B, c, h, w) to the same."""
        scale = (self.weight.abs() + self.eps) * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return F.leaky_relu(x * scale[:, None, None] + shift[:, None, None], self.slope)


def _conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, dilation * (kernel // 2), dilation, bias=False)


def _conv_abn(inputs: int, outputs: int, kernel: int = 1) -> list[nn.Module]:
    return [_conv(inputs, outputs, kernel), ABN(outputs)]


class _Linear(ABN):
    """ABN without activation, as in the backbone."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, slope=1.0)


class _Bottleneck(nn.Module):
    def __init__(self, inputs: int, planes: int, stride: int, dilation: int) -> None:
        super().__init__()
        outputs = 4 * planes
        self.conv1, self.bn1 = _conv(inputs, planes), _Linear(planes)
        self.conv2, self.bn2 = _conv(planes, planes, 3, stride, dilation), _Linear(planes)
        self.conv3, self.bn3 = _conv(planes, outputs), _Linear(outputs)
        project = inputs != outputs or stride != 1
        self.downsample = nn.Sequential(_conv(inputs, outputs, 1, stride), _Linear(outputs)) if project else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) to (B, 4 planes, h / stride, w / stride)."""
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y)).relu()
        y = self.bn3(self.conv3(y))
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


def _layer(blocks: int, inputs: int, planes: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    first = _Bottleneck(inputs, planes, stride, dilation)
    return nn.Sequential(first, *(_Bottleneck(4 * planes, planes, 1, dilation) for _ in range(blocks - 1)))


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=True)


class _Pyramid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        stages = [nn.Sequential(nn.AdaptiveAvgPool2d(bins), *_conv_abn(2048, 512)) for bins in (1, 2, 3, 6)]
        self.stages = nn.ModuleList(stages)
        self.bottleneck = nn.Sequential(*_conv_abn(4096, 512, 3))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 2048, h, w) to (B, 512, h, w)."""
        return self.bottleneck(torch.cat([*(_resize(stage(x), x) for stage in self.stages), x], 1))


class _Edge(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(*_conv_abn(256, 256))
        self.conv2 = nn.Sequential(*_conv_abn(512, 256))
        self.conv3 = nn.Sequential(*_conv_abn(1024, 256))
        self.conv4 = nn.Conv2d(256, 2, 3, padding=1)
        self.conv5 = nn.Conv2d(6, 2, 1)

    def forward(self, x2: Tensor, x3: Tensor, x4: Tensor) -> tuple[Tensor, Tensor]:
        """Features at strides 4, 8, 16 to edge logits (B, 2, h, w) and edge features (B, 768, h, w) at stride 4."""
        features = [self.conv1(x2), self.conv2(x3), self.conv3(x4)]
        edges = [_resize(self.conv4(f), x2) for f in features]
        return self.conv5(torch.cat(edges, 1)), torch.cat([_resize(f, x2) for f in features], 1)


class _Decoder(nn.Module):
    def __init__(self, labels: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(*_conv_abn(512, 256))
        self.conv2 = nn.Sequential(*_conv_abn(256, 48))
        self.conv3 = nn.Sequential(*_conv_abn(304, 256), *_conv_abn(256, 256))
        self.conv4 = nn.Conv2d(256, labels, 1)

    def forward(self, context: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        """Context (stride 16) and x2 (stride 4) to logits (B, C, h, w), features (B, 256, h, w) at 4."""
        features = self.conv3(torch.cat([_resize(self.conv1(context), x2), self.conv2(x2)], 1))
        return self.conv4(features), features


class SCHP(nn.Module):
    """Parsing and edges are predicted apart and fused (``AugmentCE2P``).

    Args:
        labels: number of labels, 20 (LIP) or 18 (ATR).
    """

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(3, 64, 3, stride=2), _Linear(64)
        self.conv2, self.bn2 = _conv(64, 64, 3), _Linear(64)
        self.conv3, self.bn3 = _conv(64, 128, 3), _Linear(128)
        self.layer1 = _layer(3, 128, 64)
        self.layer2 = _layer(4, 256, 128, stride=2)
        self.layer3 = _layer(23, 512, 256, stride=2)
        self.layer4 = _layer(3, 1024, 512, dilation=2)
        self.context_encoding = _Pyramid()
        self.edge = _Edge()
        self.decoder = _Decoder(labels)
        self.fushion = nn.Sequential(*_conv_abn(1024, 256), nn.Dropout2d(0.1), nn.Conv2d(256, labels, 1))  # so spelt

    def forward(self, x: Tensor) -> Tensor:
        """Normalised BGR (B, 3, D, D) to the fused logits (B, C, ceil(D/4), ceil(D/4))."""
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x)).relu()
        x = self.bn3(self.conv3(x)).relu()
        x2 = self.layer1(F.max_pool2d(x, 3, stride=2, padding=1))
        x3 = self.layer2(x2)
        x4 = self.layer3(x3)
        _, parsing = self.decoder(self.context_encoding(self.layer4(x4)), x2)
        _, edge = self.edge(x2, x3, x4)
        return self.fushion(torch.cat([parsing, edge], 1))


@lru_cache(maxsize=1)
def load(path: Path, device: str = "cpu") -> SCHP:
    """The network with an official checkpoint; which one is told by its number of labels. No code in it is run.

    Raises:
        ValueError: no file of weights, or not those of this network; says what was expected.
    """
    try:
        checkpoint: Any = torch.load(path, map_location="cpu", weights_only=True)
        weights = {key.removeprefix("module."): value for key, value in checkpoint["state_dict"].items()}
        labels = len(weights["fushion.3.bias"])
    except Exception as e:  # whatever a wrong or hostile file sets off
        raise ValueError(f"{path} is no SCHP checkpoint ({type(e).__name__}: {str(e).splitlines()[0]})") from None
    if labels not in SCHEMES:
        raise ValueError(f"{path} tells {labels} labels apart: give the LIP checkpoint (20) or the ATR one (18)")
    with torch.device("meta"):
        model = SCHP(labels)
    try:
        model.load_state_dict(weights, strict=True, assign=True)
    except (RuntimeError, TypeError) as e:
        raise ValueError(f"{path} does not fit SCHP: {' '.join(str(e).split())[:400]}") from None
    return model.eval().requires_grad_(False).to(device)


def letterbox(height: int, width: int, side: int) -> np.ndarray:
    """The affine map (2, 3) of pixel centres (x, y, 1) that centres a picture in a square, longer side to its corners.

    k = (D-1) / max(W-1, H-1); u = (x - (W-1)/2) k + (D-1)/2, and so for y.
    """
    k = (side - 1) / max(width - 1, height - 1)
    return np.array([[k, 0, (side - 1) / 2 - k * (width - 1) / 2], [0, k, (side - 1) / 2 - k * (height - 1) / 2]])


def preprocess(rgb: np.ndarray, side: int) -> Tensor:
    """A picture (H, W, 3) uint8 RGB as the network sees it: (1, 3, D, D), BGR, normalised, black around."""
    square = cv2.warpAffine(rgb[..., ::-1].copy(), letterbox(rgb.shape[0], rgb.shape[1], side), (side, side))
    normal = (square.astype(np.float32) / 255 - _MEAN) / _STD
    return torch.from_numpy(normal.transpose(2, 0, 1).copy())[None]


def postprocess(logits: Tensor, size: tuple[int, int], side: int) -> np.ndarray:
    """Logits (1, C, h, w) to the labels (H, W) uint8 of a picture: up to D, back into place, argmax."""
    square = F.interpolate(logits.float(), (side, side), mode="bilinear", align_corners=True)[0].cpu().numpy()
    back, flags = letterbox(*size, side), cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return (
        np.stack([cv2.warpAffine(plane, back, size[::-1], flags=flags) for plane in square]).argmax(0).astype(np.uint8)
    )


@torch.inference_mode()
def parse(rgb: np.ndarray, checkpoint: Path, device: str = "cpu") -> tuple[np.ndarray, tuple[str, ...]]:
    """Label map (H, W) uint8 of a picture (H, W, 3) uint8 RGB, and the names of its labels."""
    model = load(checkpoint, device)
    names, side = SCHEMES[model.decoder.conv4.out_channels]
    return postprocess(model(preprocess(rgb, side).to(device)), (rgb.shape[0], rgb.shape[1]), side), names
