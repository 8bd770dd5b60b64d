"""A hub: cards with the fields it reads, folders that plain diffusers loads, and plain words where it says no."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard

from omfa.hub import front_matter, plain_card
from omfa.pipeline import MODELS
from tests import figures
from tests.conftest import make_compact
from tests.fake_hub import talk


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "model"
    make_compact().save_pretrained(folder)
    return folder


def test_plain_diffusers_loads_a_folder(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers.utils import dynamic_modules_utils

    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path))
    pipe = DiffusionPipeline.from_pretrained(model, custom_pipeline=str(model), trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    photo = torch.rand(3, *figures.SIZE, generator=torch.Generator().manual_seed(0))

    def off(which: DiffusionPipeline) -> bytes:
        seed = torch.Generator().manual_seed(0)
        return which.try_off(photo, "upper", num_inference_steps=1, generator=seed).images[0].tobytes()

    assert off(pipe) == off(make_compact())


def test_cards_have_the_fields_a_hub_reads() -> None:
    shown = front_matter(
        "mine",
        base_model="owner/base",
        datasets=["vitonhd"],
        results={"ssim": 0.9, "fid": 7.0},
        measured_on="8 pictures",
    )
    for text in (shown + "# Mine\n", plain_card("owner/model"), (MODELS / "compact" / "README.md").read_text()):
        data = ModelCard(text).data
        assert data.license and data.library_name == "diffusers" and data.pipeline_tag == "image-to-image"
        assert {"virtual-try-on", "virtual-try-off"} <= set(data.tags or ())
    data = ModelCard(shown + "# Mine\n").data
    assert data.base_model == "owner/base" and data.datasets == ["vitonhd"] and data.model_name == "mine"
    read = {r.metric_type: (r.metric_value, r.dataset_name, r.task_type) for r in data.eval_results or ()}
    assert read == {"ssim": (0.9, "8 pictures", "image-to-image"), "fid": (7.0, "8 pictures", "image-to-image")}
    assert ModelCard((MODELS / "compact" / "README.md").read_text()).data.eval_results


def test_a_model_goes_to_a_hub_and_back_and_a_no_is_explained(model: Path, tmp_path: Path) -> None:
    (model / "README.md").write_text(front_matter("mine", licence="apache-2.0") + "# Mine\n")
    said = talk(model, tmp_path)
    assert said["alike"]
    assert said["files"]["README.md"] == (model / "README.md").read_bytes()  # the model's own card
    assert b"OMFAPipeline" in said["files"]["pipeline.py"]
    assert "asks for your agreement" in said["owner/gated"] and "huggingface.co/owner/gated" in said["owner/gated"]
    assert "knows no such model" in said["owner/none"]
    assert "can't be reached" in said["offline"] and "hf download owner/elsewhere" in said["offline"]
    assert all("\n" not in words for words in (said["owner/gated"], said["owner/none"], said["offline"]))
