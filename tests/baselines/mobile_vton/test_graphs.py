"""Mobile-VTON without torch: the same picture as the pipeline's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from omfa import device
from omfa.baselines.mobile_vton.graphs import write_graphs
from omfa.baselines.mobile_vton.pipeline import MobileVTON
from tests.baselines.mobile_vton import tiny

pytest.importorskip("onnxruntime")


def test_the_same_picture_as_the_pipelines(tmp_path: Path) -> None:
    pipe = MobileVTON(tiny.parts(tmp_path))
    pipe.quiet = True
    out = tmp_path / "device"
    out.mkdir()
    write_graphs(pipe, out)
    rng = np.random.default_rng(0)
    small = [Image.fromarray(rng.integers(0, 256, (6, 3, 3), np.uint8)) for _ in range(2)]
    photo, garment = (p.resize((32, 64), Image.Resampling.BICUBIC) for p in small)
    model = device.Model(out, 1)
    for guidance in (1.0, 2.5):
        wanted = pipe(
            *(photo, garment, "lower"),
            num_inference_steps=2,
            guidance_scale=guidance,
            generator=torch.Generator().manual_seed(3),
        ).persons[0]
        made = device.try_on(model, np.asarray(photo), np.asarray(garment), "lower", 2, guidance, seed=3)
        assert np.abs(np.asarray(made).astype(int) - np.asarray(wanted)).max() <= 1
    with pytest.raises(ValueError, match="nothing drawn"):
        device.try_on(model, np.asarray(photo), np.asarray(garment), drawn={})
