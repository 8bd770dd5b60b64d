"""SDXL's recipes: each parses and trains with a tiny model swapped in, and leaves a model that makes pictures."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file

from omfa import encode, export
from omfa.fit import main as fit
from omfa.pipeline import OMFAPipeline
from omfa.sdxl import load_small, text_encoders
from omfa.training.checkpoints import last_checkpoint
from tests import ranks
from tests.conftest import SIZE, encode_call, make_sdxl_folder
from tests.test_sdxl import picture, silent
from tests.training.test_scale import needs_deepspeed

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "lightning_configs"
LAYERS = {
    "paper": [],
    "deepfashion": ["paper_deepfashion"],
    "one_80gb": ["one_80gb"],
    "one_24gb_lora": ["one_24gb_lora"],
    "one_24gb_attention": ["paper_deepfashion", "one_24gb_attention"],
    "rows": ["rows_vitonhd"],
    "rows_portraits": ["rows_vitonhd", "rows_portraits"],
    "rows_lora": ["rows_vitonhd", "rows_deepfashion", "one_24gb_lora"],
}


def recipe(layers: list[str], swap: dict[str, object], path: Path) -> list[str]:
    """Arguments of ``omfa.fit`` for layers of recipes with a tiny model as the last one."""
    path.write_text(yaml.safe_dump(swap))
    files = [*(CONFIGS / f"{name}.yaml" for name in ["paper_vitonhd", *layers]), path]
    return [arg for file in files for arg in ("--config", str(file))]


def tiny(base: Path, latents: Path | None, records: Path, run: Path, **trainer: object) -> dict[str, object]:
    ahead = {"text": latents and str(latents), "base": str(base), "person_size": list(SIZE)}
    here = {"accelerator": "cpu", "devices": 1, "strategy": "auto", "max_steps": 2, "default_root_dir": str(run)}
    where = {"folder": str(records), "latents": latents and str(latents), "workers": 0}
    return {
        "trainer": here | trainer,
        "model": {"init_args": {"warmup_steps": 0, "pipeline": {"init_args": ahead}}},
        "data": {"init_args": where},
    }


@pytest.fixture(scope="module")
def drafts(base: Path, records: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoded ahead with drafts, as far as these records' bodies are known: not at all."""
    out = tmp_path_factory.mktemp("ahead") / "drafts"
    assert encode.main(encode_call(base, records, out, "--draft", "surface")) == 0
    return out


@pytest.mark.parametrize("name", LAYERS)
def test_a_recipe_trains_and_its_model_makes_pictures(
    name: str,
    inpainting: Path,
    latents: Path,
    drafts: Path,
    records: Path,
    tmp_path: Path,
) -> None:
    run, rows = tmp_path / "run", name.startswith("rows")
    swap = tiny(inpainting, drafts if rows else latents, records, run, max_steps=1, log_every_n_steps=1)
    assert fit(recipe(LAYERS[name], swap, tmp_path / "tiny.yaml")) == 0
    shown = yaml.safe_load((run / "config.yaml").read_text())
    assert shown["trainer"]["precision"] == "bf16-mixed" and shown["data"]["init_args"]["captions"] is False
    devices = 4 if name in ("paper", "deepfashion", "rows", "rows_portraits") else 1
    assert shown["data"]["init_args"]["batch_size"] * shown["trainer"]["accumulate_grad_batches"] * devices == 8
    small = any(layer.startswith("one_24gb") for layer in LAYERS[name])
    model = run / "model"
    pipe = load_small(model, str(inpainting)) if small else OMFAPipeline.from_pretrained(model)
    assert pipe.config.join == ("rows" if rows else "canvas")
    assert pipe.config.portraits == (name == "rows_portraits")
    assert np.isfinite(picture(silent(pipe))).all()
    card = (model / "README.md").read_text()
    assert "| steps | 1 |" in card and "| 8 of split train, fingerprint" in card
    assert "last loss |" in card and "learning_rate" in card
    for path in model.rglob("*"):
        if path.suffix in (".md", ".json"):
            assert str(tmp_path.parent) not in path.read_text() and str(inpainting) not in path.read_text(), path
    if small:
        with pytest.raises(ValueError, match="load_small"):
            OMFAPipeline.from_pretrained(model)
        with pytest.raises(ValueError, match="give base="):
            load_small(model)


@pytest.mark.parametrize("name", ["nodes_zero2", "nodes_zero3"])
def test_deepspeed_recipes_parse(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(CONFIGS / f"{n}.yaml") for n in ("paper_vitonhd", "paper_deepfashion", name)]
    with pytest.raises(SystemExit) as stop:
        fit([*(a for f in files for a in ("--config", f)), "--print_config"])
    printed = capsys.readouterr().out
    shown = yaml.safe_load(printed[printed.index("seed_everything:") :])
    assert stop.value.code == 0
    assert shown["trainer"]["strategy"]["class_path"] == "omfa.training.zero.ZeRO"
    assert shown["trainer"]["strategy"]["init_args"]["stage"] == int(name[-1])
    assert shown["data"]["init_args"]["folder"] == "data/deepfashion" and shown["data"]["init_args"]["batch_size"] == 1
    assert shown["model"]["init_args"]["learning_rate"] == 1e-5


@pytest.mark.parametrize("train", ["lora", "attention"])
def test_small_files_hold_what_was_trained(
    train: str,
    base: Path,
    latents: Path,
    records: Path,
    tmp_path: Path,
) -> None:
    """Resumed exactly; small checkpoints; the small files, laid onto the base or merged, make the same picture."""
    call = {"train": train, "rank": 2, "frozen_bf16": False, "learning_rate": 3e-3}
    options = {"precision": "32-true", "accumulate_grad_batches": 1}
    for run, stops in (("whole", [4]), ("halves", [2, 4])):
        for stop in stops:
            swap = tiny(base, latents, records, tmp_path / run, max_steps=stop, **options)
            swap["model"]["init_args"] |= call  # type: ignore[index]
            assert fit([*recipe(["one_80gb"], swap, tmp_path / "tiny.yaml"), "--ckpt_path=last"]) == 0
    ends = [last_checkpoint(tmp_path / run / "checkpoints") for run in ("whole", "halves")]
    one, two = (torch.load(end, weights_only=True) for end in ends if end is not None)
    assert one["state_dict"].keys() == two["state_dict"].keys()
    assert all(torch.equal(one["state_dict"][k], two["state_dict"][k]) for k in one["state_dict"])
    ema = next(v for k, v in one["callbacks"].items() if k.startswith("EMA"))["weights"]
    assert ema.keys() == one["state_dict"].keys() and all("lora_" in k or "attn" in k or "conv_in" in k for k in ema)

    assert export.main(["--run", str(tmp_path / "whole"), "--out", str(tmp_path / "small")]) == 0
    assert export.main(["--run", str(tmp_path / "whole"), "--out", str(tmp_path / "merged"), "--whole"]) == 0
    small, merged = load_small(tmp_path / "small", str(base)), OMFAPipeline.from_pretrained(tmp_path / "merged")
    weights = load_file(base / "unet" / "diffusion_pytorch_model.safetensors")
    assert merged.unet.state_dict().keys() == weights.keys()
    assert np.abs(picture(silent(small)) - picture(silent(merged))).max() < 2 / 255
    name = {"lora": "pytorch_lora_weights", "attention": "attention"}[train]
    kept = load_file(tmp_path / "small" / f"{name}.safetensors")
    assert sum(v.numel() for v in kept.values()) < 0.5 * sum(v.numel() for v in weights.values())
    with pytest.raises(ValueError, match="trained from other weights"):
        other = UNet2DConditionModel.from_config(dict(merged.unet.config, in_channels=9))
        other.save_pretrained(tmp_path / "other")
        from omfa.tuning import load_tuned

        load_tuned(other, tmp_path / "small")
    if train == "lora":  # what diffusers' own loader makes of it
        plain = UNet2DConditionModel.from_pretrained(tmp_path / "merged" / "unet")
        plain.load_state_dict({k: v for k, v in weights.items() if "conv_in" not in k}, strict=False)
        parts = text_encoders(str(base)) | {"vae": merged.vae, "scheduler": merged.scheduler, "unet": plain}
        theirs = StableDiffusionXLPipeline(**parts)
        theirs.load_lora_weights(tmp_path / "small")
        theirs.fuse_lora(components=["unet"])
        theirs.unload_lora_weights()
        for key, value in theirs.unet.state_dict().items():
            assert torch.allclose(value, merged.unet.state_dict()[key], atol=1e-5), key


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a call that exits with 2 says: short, and without jsonargparse's types."""
    assert fit(arguments) == 2
    said = capsys.readouterr().err
    assert "error: " in said and "Union" not in said and "Namespace" not in said and len(said) < 1500, said
    return said


def test_small_weights_go_on_their_own_base_alone(
    base: Path, latents: Path, records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """LoRA of one base fits another one of the same shapes, and spoils its pictures: loading, resuming, exporting."""
    run, other = tmp_path / "run", make_sdxl_folder(tmp_path / "other", seed=3)
    for part in ("vae", "text_encoder", "text_encoder_2"):
        shutil.copytree(base / part, other / part, dirs_exist_ok=True)

    def call(where: Path, steps: int, *more: str) -> list[str]:
        swap = tiny(where, latents, records, run, max_steps=steps, accumulate_grad_batches=1)
        return [*recipe(["one_24gb_lora"], swap, tmp_path / "tiny.yaml"), "--model.init_args.rank=2", *more]

    assert fit(call(base, 1)) == 0
    with pytest.raises(ValueError, match="trained from other weights"):
        load_small(run / "model", str(other))
    whole = load_small(run / "model", str(base)).unet
    assert whole.conv_in.weight.abs().sum() > 0
    settings = (run / "config.yaml").read_text()
    assert "began with other weights" in refused(call(other, 2, "--ckpt_path=last"), capsys)
    (run / "config.yaml").write_text(settings.replace(str(base), str(other)))
    assert export.main(["--run", str(run), "--out", str(tmp_path / "small")]) == 2
    assert "began with other weights" in capsys.readouterr().err and not (tmp_path / "small").exists()
    said = refused(call(base, 2, "--ckpt_path=last", "--model.init_args.rank=4"), capsys)
    assert "there [2, 32], here [4, 32]" in said and "rank" in said
    said = refused(call(base, 2, "--ckpt_path=last", "--trainer.precision=32-true"), capsys)
    assert "frozen_bf16 needs trainer.precision bf16-mixed" in said


def test_missing_weights_and_captions_are_told_in_a_few_lines(
    base: Path, records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "latents"
    assert encode.main(encode_call(base, records, out)) == 0
    swap = tiny(base, out, records, tmp_path / "run", max_steps=1)
    said = refused([*recipe([], swap, tmp_path / "a.yaml"), "--data.init_args.captions=true"], capsys)
    assert "the captions of 8 of 8 records" in said and "again with --captions" in said
    swap = tiny(tmp_path / "nowhere", out, records, tmp_path / "run", max_steps=1)
    said = refused(recipe([], swap, tmp_path / "b.yaml"), capsys)
    assert "error: unet could not be read" in said and "hf download" in said


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("layers", [["nodes_zero2"], ["paper_deepfashion", "nodes_zero3"]])
def test_deepspeed_recipes_run(
    layers: list[str], inpainting: Path, latents: Path, records: Path, tmp_path: Path
) -> None:
    """The real strategy on two CPU processes: a rehearsal."""
    stage = int(layers[-1][-1])
    strategy = {"class_path": "tests.cpu_zero.CPUZeRO", "init_args": {"stage": stage, "offload": stage == 3}}
    swap = tiny(inpainting, latents, records, tmp_path / "run", strategy=strategy)
    ended = ranks.run([*recipe(layers, swap, tmp_path / "tiny.yaml"), "--trainer.fast_dev_run=true"], 2)
    assert ended.codes == [0, 0], ended.log
    assert not (tmp_path / "run" / "model").exists()


def test_sample_pictures_on_the_way(base: Path, latents: Path, records: Path, tmp_path: Path) -> None:
    """Frozen weights in bfloat16, nothing but latents loaded: the callback brings VAE and autocast along."""
    swap = tiny(base, latents, records, tmp_path, max_steps=1, accumulate_grad_batches=1)
    pictures = {
        "class_path": "omfa.training.sample_pictures.SamplePictures",
        "init_args": {"every": 1, "records": 1, "steps": 2},
    }
    swap["trainer"]["callbacks"] = [pictures]  # type: ignore[index]
    assert fit(recipe(["one_24gb_lora"], swap, tmp_path / "tiny.yaml")) == 0
    assert np.asarray(Image.open(tmp_path / "samples" / "step=0000001.png")).std() > 5


def test_latents_of_another_vae_are_refused(
    base: Path,
    latents: Path,
    records: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    torch.manual_seed(5)
    other = AutoencoderKL.from_config(AutoencoderKL.load_config(base / "vae"))
    other.save_pretrained(tmp_path / "vae")
    swap = tiny(base, latents, records, tmp_path / "run")
    swap["model"]["init_args"]["pipeline"]["init_args"]["vae"] = str(tmp_path / "vae")  # type: ignore[index]
    assert fit(recipe([], swap, tmp_path / "tiny.yaml")) == 2
    assert "made by another VAE" in capsys.readouterr().err
