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
from omfa.evaluation.judges import person_outline
from omfa.evaluation.metrics import silhouette_iou
from omfa.images import read_image
from omfa.pipeline import MODELS, OMFAPipeline
from omfa.records.prepared import Record, read_records

COMPACT = MODELS / "compact"


@pytest.fixture(scope="module")
def pipe() -> OMFAPipeline:
    pipe = OMFAPipeline.from_pretrained("compact")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Record]]:
    """Some people of another seed than the model's training, one picture each."""
    folder = tmp_path_factory.mktemp("strangers")
    assert prepare(["synthetic", "--records", "24", "--seed", "31", "--size", "128x96", "--out", str(folder)]) == 0
    facing = [r for r in read_records(folder) if abs(r.view_yaw or 0) <= 45]
    return folder, list({r.person_id: r for r in facing}.values())[:4]


def pixels(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255


def test_it_is_small_safe_and_plain_diffusers() -> None:
    files = [p for p in COMPACT.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 32 * 2**20
    assert {p.suffix for p in files} <= {".json", ".safetensors", ".md", ".png", ".jpg"}
    assert not [p for p in files if p.suffix == ".json" and "_name_or_path" in p.read_text()]  # of whoever trained it
    UNet2DConditionModel.from_pretrained(COMPACT, subfolder="unet")
    AutoencoderKL.from_pretrained(COMPACT, subfolder="vae")
    SlotTokens.from_pretrained(COMPACT, subfolder="slot_tokens")


def test_people_take_their_own_poses(pipe: OMFAPipeline, strangers: tuple[Path, list[Record]]) -> None:
    folder, records = strangers
    made, true = [], []
    for record in records:
        assert record.pose is not None and record.pose.params is not None and record.face is not None
        worn = {g.category.value: folder / g.path for g in record.garments}
        options = {"num_inference_steps": 8, "generator": torch.Generator().manual_seed(0)}
        on = pipe.try_on(None, worn, folder / str(record.pose.params), folder / record.face.path, **options).images[0]
        made.append(person_outline(pixels(on)).float())
        true.append(person_outline(pixels(read_image(folder / record.file_name))).float())
    overlap = torch.tensor([[float(silhouette_iou(a, b)) for b in true] for a in made])
    own, others = overlap.diagonal().mean(), (overlap.sum() - overlap.trace()) / (overlap.numel() - len(overlap))
    assert own > others + 0.1, overlap


def test_garments_lie_on_white(pipe: OMFAPipeline, strangers: tuple[Path, list[Record]]) -> None:
    folder, records = strangers
    photos = [folder / r.file_name for r in records]
    for picture in pipe.try_off(
        photos, "upper", num_inference_steps=8, generator=torch.Generator().manual_seed(0)
    ).images:
        x = pixels(picture)[0]
        border = torch.cat([x[:, :4].flatten(), x[:, -4:].flatten(), x[..., :4].flatten(), x[..., -4:].flatten()])
        assert border.mean() > 0.85 and x[:, 30:90, 30:66].mean() < border.mean() - 0.1
