"""Golden values of the metrics, from the packages the field uses, on pictures that can be drawn anywhere.

Run once by hand to write ``metrics_golden.json``, in an environment of its own that also has lpips, DISTS-pytorch,
pytorch-msssim, pyiqa, clean-fid, scikit-image and torchvision:

    python tests/metrics_golden.py

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
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
