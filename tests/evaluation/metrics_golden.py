"""Golden values of the metrics, from the packages the field uses, on pictures that can be drawn anywhere.

Run once by hand to write ``metrics_golden.json``, in an environment of its own that also has lpips, DISTS-pytorch,
pytorch-msssim, pyiqa, clean-fid, scikit-image and torchvision:

    python -m tests.evaluation.metrics_golden

The tests read the values and draw the same pictures.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).with_name("metrics_golden.json")


def picture(seed: int, height: int = 256, width: int = 192) -> torch.Tensor:
    """A colourful 8-bit picture (1, 3, H, W) in [0, 1]: waves, a striped box, fine noise on a light ground."""
    rng = np.random.RandomState(seed)  # this generator's stream is frozen by NumPy for ever
    y, x = np.mgrid[0:height, 0:width] / 64
    image = np.empty((height, width, 3))
    for channel in range(3):
        fx, fy, phase = rng.rand(3) * [3, 3, 6]
        image[..., channel] = 0.7 + 0.25 * np.sin(fx * x + fy * y + phase)
    top, left = (rng.rand(2) * [height / 3, width / 3]).astype(int)
    box = image[top : top + height // 2, left : left + width // 2]
    stripes = (np.arange(box.shape[0]) // 7 % 2)[:, None, None]
    box[:] = np.where(stripes == 1, rng.rand(3), rng.rand(3))
    image += rng.randn(*image.shape) * 0.02
    return torch.from_numpy(np.round(image.clip(0, 1) * 255) / 255).float().permute(2, 0, 1)[None]


def distorted(truth: torch.Tensor, seed: int) -> torch.Tensor:
    """The picture moved by two pixels, a little darker, with noise."""
    rng = np.random.RandomState(1000 + seed)
    noise = torch.from_numpy(rng.randn(*truth.shape)).float() * 0.04
    moved = torch.roll(truth, (2, -1), (2, 3)) * 0.9 + noise
    return (moved.clamp(0, 1) * 255).round() / 255


def random_state(net: str) -> dict[str, torch.Tensor]:
    """Weights of a trunk that anybody can draw again, in the official names; large enough to keep signals alive."""
    from omfa.evaluation.learned_metrics import TRUNKS

    rng = np.random.RandomState(len(net))
    state = {}
    for key, like in TRUNKS[net]().state_dict().items():
        fan_in = like[0].numel() if like.ndim > 1 else 100
        state[f"features.{key}"] = torch.from_numpy(rng.randn(*like.shape) * (2 / fan_in) ** 0.5).float()
    return state


def _fill(module: torch.nn.Module, net: str) -> None:
    """Load ``random_state`` into a package's network, whose keys end in the official ones: slice1.0.weight."""
    state = random_state(net)
    own = module.state_dict()
    filled = {k: state[f] for k in own if (f := "features." + k.split(".", 1)[-1]) in state}
    assert len(filled) == len([k for k in own if k.endswith(("weight", "bias"))])
    module.load_state_dict(filled, strict=False)


def learned(keep) -> None:
    """LPIPS and DISTS by their authors' packages, heads official, trunks of ``random_state``."""
    import lpips
    import torchvision
    from DISTS_pytorch import DISTS

    torchvision.models.vgg16 = lambda pretrained=False, vgg16=torchvision.models.vgg16: vgg16(weights=None)
    dists = DISTS()
    _fill(dists, "vgg")
    models = {net: lpips.LPIPS(net=net, pnet_rand=True, verbose=False) for net in ("alex", "vgg", "squeeze")}
    for net, model in models.items():
        _fill(model.net, net)
    for seed, size in enumerate([(256, 192), (341, 257)]):
        truth = picture(seed, *size)
        pred = distorted(truth, seed)
        with torch.no_grad():
            for net, model in models.items():
                keep(f"lpips_{net}", model(pred, truth, normalize=True))
            keep("dists", dists(pred, truth))


def features(seed: int, count: int, width: int) -> np.ndarray:
    """Correlated features (count, width), shifted and stretched a little by the seed."""
    rng = np.random.RandomState(seed)
    mix = np.random.RandomState(7).randn(width, width) / width**0.5
    return (np.abs(rng.randn(count, width) @ mix) * (1 + 0.05 * seed) + 0.02 * seed).astype(np.float32)


def sets(keep) -> None:
    """FID's formula with SciPy's matrix root, KID by clean-fid with one subset of everything."""
    import scipy.linalg
    from cleanfid.fid import kernel_distance

    for count, width in ((900, 64), (500, 256)):
        x, y = features(1, count, width).astype(np.float64), features(2, count, width).astype(np.float64)
        sx, sy = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
        root = scipy.linalg.sqrtm(sx @ sy)
        keep("fid", ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(sx) + np.trace(sy) - 2 * np.trace(root).real)
        keep("kid", kernel_distance(x, y, num_subsets=1, max_subset_size=count))


def main() -> None:
    import pytorch_msssim
    import skimage.metrics
    import torchmetrics.functional.image as tm
    from pyiqa.archs.ssim_arch import SSIM as LumaSSIM

    golden: dict[str, list[float]] = {}

    def keep(name: str, value: object) -> None:
        golden.setdefault(name, []).append(float(value))  # type: ignore[arg-type]

    for seed, size in enumerate([(256, 192), (341, 257), (512, 384)]):
        truth = picture(seed, *size)
        pred = distorted(truth, seed)
        wide = pred.double(), truth.double()
        keep("psnr", tm.peak_signal_noise_ratio(*wide, data_range=1.0))
        keep("ssim_rgb_full", tm.structural_similarity_index_measure(*wide, data_range=1.0))
        wang = {"gaussian_weights": True, "use_sample_covariance": False, "data_range": 1.0, "channel_axis": 0}
        keep("ssim_rgb_valid", skimage.metrics.structural_similarity(*(x[0].numpy() for x in wide), **wang))
        keep("ssim_rgb_valid_msssim", pytorch_msssim.ssim(*wide, data_range=1.0))
        keep("ssim_luma", LumaSSIM()(pred, truth))
        keep("ms_ssim", pytorch_msssim.ms_ssim(*wide, data_range=1.0))
    learned(keep)
    sets(keep)
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
