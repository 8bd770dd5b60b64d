"""A published file, predictions for whole records, and the evaluator that judges OMFA too: the walk of the README."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from omfa.baselines.tryoffdiff.networks import make_encoder
from omfa.baselines.tryoffdiff.pipeline import TryOffDiffPipeline
from omfa.baselines.tryoffdiff.weights import official_weights
from omfa.evaluate import main as evaluate
from omfa.evaluation.metrics import ms_ssim
from omfa.images import pixels_to_tensor
from omfa.predict import main as predict
from omfa.records.prepared import read_records
from tests import figures
from tests.baselines.tryoffdiff.common import networks, unet_config
from tests.baselines.tryoffdiff.test_pipeline import ENCODER, tiny
from tests.conftest import VAE, make_compact

CLASS = "omfa.baselines.tryoffdiff.judged.TryOffDiffModel"


def call(records: Path, model: Path, out: Path, *more: str) -> int:
    return predict(
        [
            "--records",
            str(records),
            "--task",
            "try_off",
            "--out",
            str(out),
            "--model",
            str(model),
            "--steps",
            "2",
            *more,
        ]
    )


def judge(records: Path, predictions: Path, *more: str) -> Path:
    out = predictions.with_name(f"{predictions.name}_judged")
    assert (
        evaluate(["run", "--records", str(records), "--predictions", str(predictions), "--out", str(out), *more]) == 0
    )
    return out


def test_judged_beside_omfa_by_one_evaluator(records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny(as_published=False, cut_to_person=True).save_pretrained(tmp_path / "mgt")
    make_compact().save_pretrained(tmp_path / "omfa")
    assert call(records, tmp_path / "mgt", tmp_path / "a", "--class-path", CLASS, "--batch", "4", "--name", "MGT") == 0
    assert call(records, tmp_path / "omfa", tmp_path / "b", "--name", "OMFA") == 0
    made = sorted(p.name for p in (tmp_path / "a").glob("*.png"))
    assert len(made) == 14 and made == sorted(p.name for p in (tmp_path / "b").glob("*.png"))
    judged = [judge(records, tmp_path / name, "--protocol", "records") for name in "ab"]
    capsys.readouterr()
    assert evaluate(["compare", *map(str, judged)]) == 0
    table = capsys.readouterr().out
    assert "MGT" in table and "OMFA" in table and "PSNR" in table


def test_its_own_protocol_takes_the_square_pictures(records: Path, tmp_path: Path) -> None:
    tiny("v2", categories=["upper"]).save_pretrained(tmp_path / "v2")
    assert call(records, tmp_path / "v2", tmp_path / "a", "--class-path", CLASS, "--limit", "1") == 0
    (picture,) = (tmp_path / "a").glob("*.upper.png")
    assert Image.open(picture).size == (64, 64)
    out = judge(records, tmp_path / "a", "--protocol", "tryoffdiff")
    row = json.loads((out / "results.json").read_text())["metrics"]["ms_ssim"]
    item = read_records(records)[0]
    garment = next(g for g in item.garments if g.category == "upper")
    made, true = (Image.open(p).convert("RGB") for p in (picture, records / garment.path))
    made = made.crop((8, 0, 56, 64))
    pixels = [
        pixels_to_tensor(np.asarray(p.resize((768, 1024), Image.Resampling.BICUBIC)))[None] / 2 + 0.5
        for p in (made, true)
    ]
    assert row["n"] == 1 and row["value"] == pytest.approx(float(ms_ssim(*pixels)), abs=1e-5)


def test_garments_it_does_not_know_are_named(records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny("v2", categories=["dress"]).save_pretrained(tmp_path / "v2")
    assert call(records, tmp_path / "v2", tmp_path / "a", "--class-path", CLASS, "--limit", "2") == 1
    assert "takes off dress" in capsys.readouterr().err
    assert call(records, tmp_path / "v2", tmp_path / "b", "--class-path", CLASS, "--category", "dress") == 0
    assert [p.name.split(".")[1] for p in (tmp_path / "b").glob("*.png")] == ["dress", "dress"]


def test_the_walk_of_the_readme(records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a file in the published layout to pictures and to a folder that predict takes."""
    torch.save({f"_orig_mod.{k}": v for k, v in official_weights(*networks("mgt")).items()}, tmp_path / "multi.pth")
    AutoencoderKL(**VAE).save_pretrained(tmp_path / "vae")
    make_encoder({**ENCODER, "hidden_size": 768, "image_size": 256, "patch_size": 8}).save_pretrained(tmp_path / "sig")
    parts = {"image_encoder": str(tmp_path / "sig"), "vae": str(tmp_path / "vae")}
    pipe = TryOffDiffPipeline.from_pretrained(tmp_path / "multi.pth", **parts, unet=unet_config())
    photo = tmp_path / "anna.png"
    Image.fromarray(figures.draw_person("ann", 0, 0)).save(photo)
    made = pipe.try_off(photo, ["upper", "lower"], num_inference_steps=1)
    assert [p.size for pictures in made.garments.values() for p in pictures] == [(256, 256)] * 2
    pipe.save_pretrained(tmp_path / "folder")
    assert call(records, tmp_path / "multi.pth", tmp_path / "made", "--class-path", CLASS) == 2
    assert "pipe.save_pretrained(DIR), and give DIR" in capsys.readouterr().err
    assert TryOffDiffPipeline.sampler_defaults(tmp_path / "multi.pth") == (20, 2.5)
    assert TryOffDiffPipeline.sampler_defaults(tmp_path / "folder") == (20, 2.5)
    assert TryOffDiffPipeline.from_pretrained(tmp_path / "folder").config.categories == ["upper", "lower", "dress"]
