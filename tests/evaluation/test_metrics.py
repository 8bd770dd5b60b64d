"""Metrics: agreement with independent implementations, and properties any sane metric has."""

from __future__ import annotations

import json

import pytest
import torch
import torchmetrics.functional.image as tm
from torch import Tensor

from omfa.evaluation import metrics
from omfa.evaluation.metrics import (
    ciede2000,
    foreground,
    inner,
    masked_mean,
    palette,
    palette_error,
    pattern_agreement,
    psnr,
    silhouette_iou,
)
from tests.evaluation.metrics_golden import GOLDEN, distorted, picture

GOLDEN_VALUES: dict[str, list[float]] = json.loads(GOLDEN.read_text())
SIZES = [(256, 192), (341, 257), (512, 384)]


def ssim_rgb_full(pred: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    return masked_mean(metrics.ssim_rgb_full_map(pred, truth), mask)


def ssim_rgb_valid(pred: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    return masked_mean(inner(metrics.ssim_rgb_full_map(pred, truth)), None if mask is None else inner(mask))


SIMILARITIES = [ssim_rgb_full, ssim_rgb_valid, metrics.ssim_luma]
AGREEING = {f.__name__: f for f in (psnr, *SIMILARITIES, metrics.ms_ssim)}


@pytest.mark.parametrize("name", AGREEING)
def test_agrees_with_the_packages(name: str) -> None:
    for seed, size in enumerate(SIZES):
        truth = picture(seed, *size)
        value = AGREEING[name](distorted(truth, seed), truth)
        assert value.shape == (1,)
        assert value.item() == pytest.approx(GOLDEN_VALUES[name][seed], rel=1e-4)


def test_agrees_with_torchmetrics_here_and_now() -> None:
    truth = picture(3).double()
    pred = distorted(truth, 3).double()
    theirs = tm.structural_similarity_index_measure(pred, truth, data_range=1.0)
    assert ssim_rgb_full(pred, truth).item() == pytest.approx(theirs.item(), rel=1e-9)
    theirs = tm.peak_signal_noise_ratio(pred, truth, data_range=1.0)
    assert psnr(pred, truth).item() == pytest.approx(theirs.item(), rel=1e-6)  # its logarithm is in single precision


@pytest.mark.parametrize("f", [psnr, *SIMILARITIES, metrics.ms_ssim])
def test_perfect_is_perfect_and_worse_is_worse(f) -> None:
    truth = picture(0)
    assert f(truth, truth).item() == pytest.approx(metrics.PSNR_CAP if f is psnr else 1.0, abs=1e-6)
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    values = [f((truth + amount * noise).clamp(0, 1), truth).item() for amount in (0.01, 0.05, 0.2)]
    assert values[0] > values[1] > values[2]


@pytest.mark.parametrize("f", [psnr, *SIMILARITIES, metrics.ms_ssim])
def test_a_batch_is_its_examples(f) -> None:
    truth = torch.cat([picture(s) for s in range(3)])
    pred = torch.cat([distorted(t[None], s) for s, t in enumerate(truth)])
    alone = torch.cat([f(p[None], t[None]) for p, t in zip(pred, truth, strict=True)])
    torch.testing.assert_close(f(pred, truth), alone)


@pytest.mark.parametrize("f", [psnr, *SIMILARITIES])
def test_a_mask_sees_only_its_inside(f) -> None:
    truth, mask = picture(1), torch.zeros(1, 1, 256, 192)
    mask[..., 60:150, 40:120] = 1
    far = 1 - torch.nn.functional.max_pool2d(mask, 23, 1, 11)  # beyond the window's reach
    pred = distorted(truth, 1)
    spoiled = torch.where(far > 0, torch.rand_like(pred), pred)
    torch.testing.assert_close(f(spoiled, truth, mask), f(pred, truth, mask))
    assert f(spoiled, truth).item() < f(pred, truth).item()
    torch.testing.assert_close(f(pred, truth, torch.ones_like(mask)), f(pred, truth))
    assert f(pred, truth, torch.zeros_like(mask)).isnan().all()


def test_masked_psnr_is_that_of_the_crop() -> None:
    truth, mask = picture(2), torch.zeros(1, 1, 256, 192, dtype=torch.bool)
    mask[..., 30:90, 50:100] = True
    pred = distorted(truth, 2)
    crop = (slice(None), slice(None), slice(30, 90), slice(50, 100))
    torch.testing.assert_close(psnr(pred, truth, mask), psnr(pred[crop], truth[crop]))


# From the supplementary test data of Sharma, Wu & Dalal (2005): the pairs that catch wrong mean hues and signs.
SHARMA = [
    ((50.0000, 2.6772, -79.7751), (50.0000, 0.0000, -82.7485), 2.0425),
    ((50.0000, -1.3802, -84.2814), (50.0000, 0.0000, -82.7485), 1.0000),
    ((50.0000, 0.0000, 0.0000), (50.0000, -1.0000, 2.0000), 2.3669),
    ((50.0000, 2.4900, -0.0010), (50.0000, -2.4900, 0.0009), 7.1792),
    ((50.0000, 2.4900, -0.0010), (50.0000, -2.4900, 0.0011), 7.2195),
    ((50.0000, -0.0010, 2.4900), (50.0000, 0.0009, -2.4900), 4.8045),
    ((50.0000, 2.5000, 0.0000), (50.0000, 0.0000, -2.5000), 4.3065),
    ((50.0000, 2.5000, 0.0000), (73.0000, 25.0000, -18.0000), 27.1492),
    ((50.0000, 2.5000, 0.0000), (56.0000, -27.0000, -3.0000), 31.9030),
    ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
    ((22.7233, 20.0904, -46.6940), (23.0331, 14.9730, -42.5619), 2.0373),
    ((90.8027, -2.0831, 1.4410), (91.1528, -1.6435, 0.0447), 1.4441),
    ((6.7747, -0.2908, -2.4247), (5.8714, -0.0985, -2.2286), 0.6377),
    ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
]


@pytest.mark.parametrize(("a", "b", "wanted"), SHARMA)
def test_ciede2000_on_published_pairs(a, b, wanted: float) -> None:
    a, b = (torch.tensor(x, dtype=torch.float64) for x in (a, b))
    assert ciede2000(a, b).item() == pytest.approx(wanted, abs=5e-5)
    assert ciede2000(b, a).item() == pytest.approx(wanted, abs=5e-5)


def _striped(colours: list[tuple[float, float, float]], widths: list[int]) -> torch.Tensor:
    rows = [torch.tensor(c).view(3, 1, 1).expand(3, w, 64) for c, w in zip(colours, widths, strict=True)]
    return torch.cat(rows, 1)[None]


RED, WHITE, NAVY, GREEN = (0.8, 0.1, 0.1), (0.95, 0.95, 0.95), (0.05, 0.1, 0.4), (0.1, 0.6, 0.2)


def test_palette_finds_colours_and_shares() -> None:
    image = _striped([WHITE, NAVY, RED], [60, 30, 10])
    colours, shares = palette(image[0], torch.ones(1, 100, 64))
    torch.testing.assert_close(shares, torch.tensor([0.6, 0.3, 0.1]), atol=0.02, rtol=0)
    import kornia.color

    wanted = kornia.color.rgb_to_lab(torch.tensor([WHITE, NAVY, RED]).T[None, :, None])[0, :, 0].T
    torch.testing.assert_close(colours, wanted, atol=0.5, rtol=0)


def test_palette_error_ranks_recolouring_and_forgives_moving() -> None:
    truth = _striped([WHITE, NAVY, RED], [60, 30, 10])
    mask = torch.ones(1, 1, 100, 64)
    assert palette_error(truth, truth, mask).item() == 0
    assert palette_error(truth.flip(2), truth, mask).item() < 0.5  # the same colours elsewhere
    slightly = palette_error((truth * 0.95), truth, mask).item()
    one = palette_error(_striped([WHITE, NAVY, GREEN], [60, 30, 10]), truth, mask).item()
    all_wrong = palette_error(_striped([GREEN, RED, NAVY], [60, 30, 10]), truth, mask).item()
    assert 0 < slightly < 5 < one < 10 < all_wrong
    assert palette_error(truth, truth, torch.zeros_like(mask)).isnan().all()


def test_palette_error_looks_inside_the_garment_only() -> None:
    truth, mask = picture(0), torch.zeros(1, 1, 256, 192)
    mask[..., 100:200, 50:150] = 1
    pred = torch.where(mask > 0, truth, 1 - truth)
    assert palette_error(pred, truth, mask).item() == 0


def test_silhouette_iou() -> None:
    a, b = torch.zeros(2, 1, 20, 20), torch.zeros(2, 1, 20, 20)
    a[0, :, :10], b[0, :, 5:15] = 1, 1
    assert silhouette_iou(a, b).tolist() == pytest.approx([1 / 3, 1.0])
    where = torch.zeros_like(a)
    where[:, :, :8] = 1
    assert silhouette_iou(a, b, where).tolist() == pytest.approx([3 / 8, 1.0])


def test_pattern_agreement() -> None:
    assert pattern_agreement(["plain", "dots"], ["plain", "stripes"]).tolist() == [1, 0]
    with pytest.raises(ValueError, match="one per picture"):
        pattern_agreement(["plain"], [])


def test_foreground_keeps_white_stripes_inside_a_garment() -> None:
    image, garment = torch.ones(1, 3, 64, 48), torch.zeros(1, 1, 64, 48, dtype=torch.bool)
    garment[..., 10:50, 8:40] = True
    navy = torch.tensor(NAVY).view(1, 3, 1, 1)
    image = torch.where(garment, navy, image)
    image[..., 20:25, 12:36] = 1
    assert silhouette_iou(foreground(image).float(), garment.float()).item() == 1


@pytest.mark.parametrize("f", [psnr, *SIMILARITIES, metrics.ms_ssim])
def test_wrong_input_is_refused(f) -> None:
    x = picture(0)
    for pred in (x * 255, x * 2 - 1, x.mul(255).byte(), x[0], x[..., :-1], x[:, :1], x.clone().fill_(torch.nan)):
        with pytest.raises(ValueError, match=r"must both be|are in|give floats"):
            f(pred, x)
    if f is not metrics.ms_ssim:
        with pytest.raises(ValueError, match="aligned with the pictures"):
            f(x, x, torch.ones(1, 3, 256, 192))


def test_too_small_for_the_window() -> None:
    small = picture(0, 160, 200)
    with pytest.raises(ValueError, match="161"):
        metrics.ms_ssim(small, small)
    with pytest.raises(ValueError, match="11x11"):
        metrics.ssim_luma(small[..., :10], small[..., :10])
