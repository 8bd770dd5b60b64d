"""The model that ships: small, whole, and better than no model on people it has never seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image

from data_prep.__main__ import main as prepare
from omfa.conditioning import SlotTokens
from omfa.images import read_image
from omfa.metrics import psnr
from omfa.pipeline import MODELS, OMFAPipeline
from omfa.prepared import Record, read_records

COMPACT = MODELS / "compact"


@pytest.fixture(scope="module")
def pipe() -> OMFAPipeline:
    pipe = OMFAPipeline.from_pretrained("compact")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Record]]:
    """Four people of another seed than the model's training, one picture each."""
    folder = tmp_path_factory.mktemp("strangers")
    assert prepare(["synthetic", "--records", "24", "--seed", "31", "--size", "128x96", "--out", str(folder)]) == 0
    facing = [r for r in read_records(folder) if abs(r.view_yaw or 0) <= 45]
    return folder, list({r.person_id: r for r in facing}.values())[:4]


def pixels(picture: Image.Image, like: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture.resize(like.size))).permute(2, 0, 1)[None].float() / 255


def test_it_is_small_safe_and_plain_diffusers() -> None:
    files = [p for p in COMPACT.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 32 * 2**20
    assert {p.suffix for p in files} <= {".json", ".safetensors", ".md", ".png", ".jpg"}
    UNet2DConditionModel.from_pretrained(COMPACT, subfolder="unet")
    AutoencoderKL.from_pretrained(COMPACT, subfolder="vae")
    SlotTokens.from_pretrained(COMPACT, subfolder="slot_tokens")


def test_both_directions_follow_what_is_given(pipe: OMFAPipeline, strangers: tuple[Path, list[Record]]) -> None:
    folder, records = strangers
    own, crossed = [], []
    for record in records:
        garment = record.garments[0]
        truth, photo = read_image(folder / garment.path), read_image(folder / record.file_name)
        options = {"num_inference_steps": 8, "generator": torch.Generator().manual_seed(0)}
        assert record.pose is not None and record.pose.map is not None and record.face is not None
        off = pipe.try_off(photo, garment.category.value, **options).images[0]
        worn = {g.category.value: folder / g.path for g in record.garments}
        on = pipe.try_on(None, worn, folder / record.pose.map, folder / record.face.path, **options).images[0]
        own.append((pixels(off, truth), pixels(truth, truth), pixels(on, photo), pixels(photo, photo)))
    for i, (off, _, on, _) in enumerate(own):
        crossed.append([float(psnr(off, own[k][1])) for k in range(len(own))])
        crossed.append([float(psnr(on, own[k][3])) for k in range(len(own))])
        assert crossed[-2][i] > np.mean([v for k, v in enumerate(crossed[-2]) if k != i])
        assert crossed[-1][i] > np.mean([v for k, v in enumerate(crossed[-1]) if k != i])
