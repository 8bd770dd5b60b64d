"""Metrics as pure functions with fixed preprocessing; variants that differ have names that differ.

Pictures are float tensors (B, 3, H, W), sRGB, in [0, 1]. Masks are (B, 1, H, W), bool or float in [0, 1], aligned with
the pictures. Every function of two pictures returns one value per example, (B,); with a mask, the value inside it
(NaN where the mask is empty). ``pred`` is judged, ``truth`` is the reference.

Legend: B batch, H W pixels, K colours of a palette.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import permutations

import cv2
import kornia.color
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

PSNR_CAP = 100.0  # dB; keeps the mean over pictures finite when one is perfect
SSIM_BORDER = 5  # pixels the 11x11 window reaches over the edge
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
MS_SSIM_SMALLEST = 161  # pixels: four halvings must leave a whole window
_C1, _C2 = 0.01**2, 0.03**2  # for a data range of 1


# ------------------------------------------------------------------------------------------------- the public door
def _check(pred: Tensor, truth: Tensor, mask: Tensor | None = None) -> None:
    if pred.ndim != 4 or pred.shape[1] != 3 or pred.shape != truth.shape:
        raise ValueError(f"pred {tuple(pred.shape)} and truth {tuple(truth.shape)} must both be (B, 3, H, W)")
    for name, x in (("pred", pred), ("truth", truth)):
        if not x.is_floating_point():
            raise ValueError(f"{name} is {x.dtype}; give floats in [0, 1] (8-bit pictures: x.float() / 255)")
        low, high = x.aminmax()
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # also false for NaN
            raise ValueError(f"{name} has values in [{low:.3g}, {high:.3g}]; pictures are in [0, 1]")
    if mask is not None:
        _check_mask(mask, pred.shape)


def _check_mask(mask: Tensor, shape: torch.Size) -> None:
    wanted = (shape[0], 1, shape[2], shape[3])
    if tuple(mask.shape) != wanted:
        raise ValueError(f"mask {tuple(mask.shape)} must be {wanted}: one channel, aligned with the pictures")


def masked_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over channels and pixels of each example, weighted by the mask.

    Args:
        x: (B, C, H, W).
        mask: (B, 1, H, W) or None for the whole picture.

    Returns:
        (B,); NaN where a mask is empty.

    Raises:
        ValueError: a mask that is not aligned with ``x``.
    """
    if mask is not None:
        _check_mask(mask, x.shape)
    per_pixel = x.mean(1, keepdim=True)
    if mask is None:
        return per_pixel.mean((1, 2, 3))
    weight = mask.to(per_pixel)
    return (per_pixel * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3))


# ------------------------------------------------------------------------------------------------------------ PSNR
def psnr(pred: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB over RGB, peak 1, at most ``PSNR_CAP``.

    Args:
        pred, truth: (B, 3, H, W) in [0, 1].
        mask: (B, 1, H, W) or None.

    Returns:
        (B,) dB.

    Raises:
        ValueError: shapes, dtype or range.
    """
    _check(pred, truth, mask)
    mse = masked_mean((pred - truth) ** 2, mask)
    return -10 * torch.log10(mse.clamp(min=10 ** (-PSNR_CAP / 10)))


# ------------------------------------------------------------------------------------------------------------ SSIM
def _window() -> list[float]:
    weights = [math.exp(-(at**2) / (2 * 1.5**2)) for at in range(-SSIM_BORDER, SSIM_BORDER + 1)]
    return [w / sum(weights) for w in weights]


def _blur(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, H - 10, W - 10): 11x11 Gaussian, sigma 1.5, valid.

    Sums of shifted views: on a CPU four times as fast as a convolution with one channel.
    """
    for axis in (2, 3):
        size = x.shape[axis] - 2 * SSIM_BORDER
        total = torch.zeros_like(x.narrow(axis, 0, size))
        for start, weight in enumerate(_window()):
            total.add_(x.narrow(axis, start, size), alpha=weight)
        x = total
    return x


def _ssim_maps(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Luminance and contrast-structure maps (B, C, H - 10, W - 10), Wang et al. 2004, eq. 6, 12 and 13."""
    if min(x.shape[-2:]) <= 2 * SSIM_BORDER:
        raise ValueError(f"SSIM needs pictures of at least 11x11 pixels, not {tuple(x.shape[-2:])}")
    mx, my, xx, yy, xy = _blur(torch.cat((x, y, x * x, y * y, x * y))).chunk(5)
    var_x, var_y, cov = xx - mx * mx, yy - my * my, xy - mx * my
    luminance = (2 * mx * my + _C1) / (mx * mx + my * my + _C1)
    return luminance, (2 * cov + _C2) / (var_x + var_y + _C2)


def ssim_rgb_full_map(pred: Tensor, truth: Tensor) -> Tensor:
    """SSIM at every pixel and channel (B, 3, H, W), edges by reflection.

    Its :func:`masked_mean` is torchmetrics' (>= 1.4.2, data_range=1); that of its :func:`inner`, where the window lies
    inside the picture, pytorch-msssim's and that of scikit-image's Wang settings.
    """
    _check(pred, truth)
    pad = [SSIM_BORDER] * 4
    luminance, structure = _ssim_maps(F.pad(pred, pad, mode="reflect"), F.pad(truth, pad, mode="reflect"))
    return luminance * structure


def inner(x: Tensor) -> Tensor:
    """A map or mask (B, C, H, W) without the border that a window centred there reaches over."""
    return x[..., SSIM_BORDER:-SSIM_BORDER, SSIM_BORDER:-SSIM_BORDER]


def ssim_luma(pred: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """SSIM of 8-bit luma, negative structure cut off, valid window, float64: pyiqa's ``ssim`` (TryOffDiff's tables).

    Higher than SSIM of RGB on the same pictures; never compare the two.

    Args:
        pred, truth: (B, 3, H, W) in [0, 1].
        mask: (B, 1, H, W) or None.

    Returns:
        (B,) in [0, 1].
    """
    _check(pred, truth, mask)
    yiq = torch.tensor([0.299, 0.587, 0.114], dtype=pred.dtype, device=pred.device).view(1, 3, 1, 1)
    x, y = (((v * yiq).sum(1, keepdim=True) * 255).round().double() / 255 for v in (pred, truth))
    luminance, structure = _ssim_maps(x, y)
    return masked_mean(luminance * structure.relu(), None if mask is None else inner(mask)).to(pred.dtype)


def ms_ssim(pred: Tensor, truth: Tensor) -> Tensor:
    """Multi-scale SSIM of RGB, five scales, valid window (Wang et al. 2003; pytorch-msssim).

    Args:
        pred, truth: (B, 3, H, W) in [0, 1], both sides at least ``MS_SSIM_SMALLEST`` pixels.

    Returns:
        (B,) in [0, 1].

    Raises:
        ValueError: too small a picture.
    """
    _check(pred, truth)
    if min(pred.shape[-2:]) < MS_SSIM_SMALLEST:
        size = tuple(pred.shape[-2:])
        raise ValueError(f"MS-SSIM needs both sides to be at least {MS_SSIM_SMALLEST} pixels, not {size}")
    x, y, result = pred, truth, torch.ones_like(pred[:, :, 0, 0])
    for level, weight in enumerate(MS_SSIM_WEIGHTS):
        luminance, structure = _ssim_maps(x, y)
        last = level == len(MS_SSIM_WEIGHTS) - 1
        term = (luminance * structure if last else structure).mean((2, 3))
        result = result * term.relu() ** weight
        pad = [side % 2 for side in x.shape[2:]]
        x, y = (F.avg_pool2d(v, 2, padding=pad) for v in (x, y))
    return result.mean(1)


# ---------------------------------------------------------------------------------------------------------- colour
def ciede2000(lab_a: Tensor, lab_b: Tensor) -> Tensor:
    """Colour difference CIEDE2000, kL = kC = kH = 1 (Sharma, Wu & Dalal 2005).

    Args:
        lab_a, lab_b: (..., 3) CIE L*a*b*, broadcast against each other.

    Returns:
        (...) difference; about 1 is just noticeable, 100 is black against white.
    """
    (l1, a1, b1), (l2, a2, b2) = lab_a.unbind(-1), lab_b.unbind(-1)
    c_mean7 = ((torch.hypot(a1, b1) + torch.hypot(a2, b2)) / 2) ** 7
    stretch = 1.5 - 0.5 * (c_mean7 / (c_mean7 + 25.0**7)).sqrt()
    a1, a2 = a1 * stretch, a2 * stretch
    c1, c2 = torch.hypot(a1, b1), torch.hypot(a2, b2)
    h1, h2 = (torch.rad2deg(torch.atan2(b, a)) % 360 for a, b in ((a1, b1), (a2, b2)))
    gray = c1 * c2 == 0
    dh = torch.where(gray, torch.zeros_like(h1 + h2), (h2 - h1 + 180) % 360 - 180)
    dl, dc, dhue = l2 - l1, c2 - c1, 2 * (c1 * c2).sqrt() * torch.sin(torch.deg2rad(dh / 2))
    # the mean hue lies half the (short) way from h1 to h2; of a grey it is the other's hue
    h = torch.where(gray, h1 + h2, h1 + dh / 2) % 360
    light, c = ((l1 + l2) / 2 - 50) ** 2, (c1 + c2) / 2

    def cos(factor: int, offset: float) -> Tensor:
        return torch.cos(torch.deg2rad(factor * h + offset))

    t = 1 - 0.17 * cos(1, -30) + 0.24 * cos(2, 0) + 0.32 * cos(3, 6) - 0.20 * cos(4, -63)
    s_l, s_c, s_h = 1 + 0.015 * light / (20 + light).sqrt(), 1 + 0.045 * c, 1 + 0.015 * c * t
    turn = 2 * (c**7 / (c**7 + 25.0**7)).sqrt() * torch.sin(torch.deg2rad(60 * torch.exp(-(((h - 275) / 25) ** 2))))
    dl, dc, dhue = dl / s_l, dc / s_c, dhue / s_h
    return (dl**2 + dc**2 + dhue**2 - turn * dc * dhue).clamp(min=0).sqrt()


def _lloyd(points: Tensor, centres: Tensor, steps: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    """k-means from R starts at once: points (N, 3), centres (R, K, 3) -> centres, shares (R, K), inertia (R,)."""
    numbers = torch.arange(centres.shape[1], device=points.device)[:, None]
    for _ in range(steps):
        # |p - c|^2 without |p|^2, which is the same for every c
        distance = (centres**2).sum(-1, keepdim=True) - 2 * centres @ points.T  # (R, K, N)
        member = (distance.argmin(1, keepdim=True) == numbers).to(points)
        count = member.sum(-1, keepdim=True)
        moved = torch.where(count > 0, member @ points / count.clamp(min=1), centres)  # an empty cluster stays
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres, member.mean(-1), distance.amin(1).mean(-1)


def _far_apart(points: Tensor, count: int) -> Tensor:
    """(count, 3) of the points, each as far as can be from those before it: small areas of another colour are found."""
    chosen = [points[(points**2).sum(-1).argmin()]]
    for _ in range(count - 1):
        chosen.append(points[torch.stack([((points - c) ** 2).sum(-1) for c in chosen]).amin(0).argmax()])
    return torch.stack(chosen)


def palette(image: Tensor, mask: Tensor, colours: int = 3, sample: int = 2048) -> tuple[Tensor, Tensor]:
    """The main colours of a region: k-means in L*a*b*, the best of four fixed starts; the same call, the same result.

    Args:
        image: (3, H, W) in [0, 1].
        mask: (1, H, W); pixels above one half count.
        colours: K.
        sample: at most that many pixels are looked at, drawn by a fixed seed.

    Returns:
        L*a*b* colours (K, 3) and their shares of the region (K,), largest first; NaN and 0 for an empty region.
    """
    rgb = rearrange(image, "c h w -> (h w) c")[mask.flatten() > 0.5].float()
    if len(rgb) == 0:
        return rgb.new_full((colours, 3), torch.nan), rgb.new_zeros(colours)
    generator = torch.Generator().manual_seed(0)
    rgb = rgb[torch.randperm(len(rgb), generator=generator)[:sample].to(rgb.device)]
    points = rearrange(kornia.color.rgb_to_lab(rearrange(rgb, "n c -> c 1 n").clamp(0, 1)), "c 1 n -> n c")
    # Cluster at double precision, so that the winner among near-equal starts does not hang on rounding.
    points = points.double()
    middle = points.mean(0)
    points = points - middle
    starts = points[torch.randint(len(points), (2, colours), generator=generator).to(points.device)]
    by_light = points[points[:, 0].argsort()]
    middles = by_light[[(2 * k + 1) * len(points) // (2 * colours) for k in range(colours)]]
    centres, share, inertia = _lloyd(points, torch.cat((middles[None], _far_apart(points, colours)[None], starts)))
    best = int(inertia.argmin())
    order = share[best].argsort(descending=True, stable=True)
    return (centres[best] + middle)[order].to(rgb), share[best][order].to(rgb)


def palette_distance(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
    """CIEDE2000 between two palettes, each colour matched to one of the other's by the best of all assignments.

    Args:
        a, b: colours (K, 3) and shares (K,), as :func:`palette` gives them.

    Returns:
        () mean difference over the pairs, weighted by the mean of their two shares.
    """
    difference = ciede2000(a[0][:, None], b[0][None])  # (K, K)
    weight = (a[1][:, None] + b[1][None]) / 2
    rows = torch.arange(len(a[1]), device=difference.device)
    cost = [(difference * weight)[rows, list(p)].sum() for p in permutations(range(len(a[1])))]
    return torch.stack(cost).min()


def palette_error(pred: Tensor, truth: Tensor, mask: Tensor, pred_mask: Tensor | None = None) -> Tensor:
    """Colour error of a garment: CIEDE2000 of matched three-colour palettes.

    Args:
        pred, truth: (B, 3, H, W) in [0, 1].
        mask: (B, 1, H, W), the true garment.
        pred_mask: the garment in ``pred``; None: where the true one is.

    Returns:
        (B,) mean CIEDE2000; 0 is perfect; NaN where a mask is empty.
    """
    _check(pred, truth, mask)
    pred_mask = mask if pred_mask is None else pred_mask
    _check_mask(pred_mask, pred.shape)
    pairs = zip(pred, pred_mask, truth, mask, strict=True)
    return torch.stack([palette_distance(palette(p, pm), palette(t, tm)) for p, pm, t, tm in pairs])


# --------------------------------------------------------------------------------------------- outline and pattern
def silhouette_iou(pred_mask: Tensor, truth_mask: Tensor, where: Tensor | None = None) -> Tensor:
    """Intersection over union of two outlines.

    Args:
        pred_mask, truth_mask: (B, 1, H, W); pixels above one half belong.
        where: (B, 1, H, W) the only pixels that count (the surroundings of a forearm, say), or None.

    Returns:
        (B,) in [0, 1]; 1 where both are empty, since they agree.
    """
    _check_mask(truth_mask, pred_mask.shape)
    a, b = pred_mask > 0.5, truth_mask > 0.5
    if where is not None:
        _check_mask(where, pred_mask.shape)
        a, b = a & (where > 0.5), b & (where > 0.5)
    inside, union = (a & b).sum((1, 2, 3)), (a | b).sum((1, 2, 3))
    return torch.where(union > 0, inside / union.clamp(min=1), torch.ones_like(inside, dtype=torch.float32))


def pattern_agreement(pred_kinds: Sequence[str], true_kinds: Sequence[str]) -> Tensor:
    """1 where the kind of pattern (plain, stripes, dots, ...) is right, 0 elsewhere; (B,).

    Args:
        pred_kinds: what a classifier sees in the predictions.
        true_kinds: what the garments are known to be, or what the same classifier sees in the truth.

    Raises:
        ValueError: not as many of the one as of the other.
    """
    if len(pred_kinds) != len(true_kinds):
        raise ValueError(f"{len(pred_kinds)} predicted kinds against {len(true_kinds)} true ones: give one per picture")
    return torch.tensor([float(p == t) for p, t in zip(pred_kinds, true_kinds, strict=True)])


def foreground(image: Tensor, tolerance: float = 4.0) -> Tensor:
    """What stands on a plain light ground (a shop picture): pixels that differ from the ground, holes filled.

    The ground's colour is the median of the picture's rim; what cannot be reached from the rim over ground-coloured
    pixels belongs to the garment, so white stripes inside it do too.

    Args:
        image: (B, 3, H, W) in [0, 1].
        tolerance: distance in L*a*b* from the ground that still counts as ground.

    Returns:
        (B, 1, H, W) bool.
    """
    lab = kornia.color.rgb_to_lab(image.float().clamp(0, 1))
    rim = torch.cat((lab[..., 0, :], lab[..., -1, :], lab[..., :, 0], lab[..., :, -1]), -1)
    ground = rim.median(-1).values[..., None, None]
    near = ((lab - ground).norm(dim=1) <= tolerance).cpu().numpy().astype(np.uint8)
    result = []
    for plane in near:
        framed = np.pad(plane, 1, constant_values=1)  # one connected rim, whatever touches the picture's edge
        cv2.floodFill(framed, None, (0, 0), 2)
        result.append(framed[1:-1, 1:-1] != 2)
    return torch.from_numpy(np.stack(result))[:, None].to(image.device)
