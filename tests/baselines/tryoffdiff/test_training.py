"""Training: the published noise and groups of the optimiser, a falling loss, exact resume, recipes that run."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from omfa.baselines.tryoffdiff.networks import Version, make_scheduler
from omfa.baselines.tryoffdiff.pipeline import TryOffDiffPipeline
from omfa.baselines.tryoffdiff.start import sd14_pipeline, small_pipeline
from omfa.baselines.tryoffdiff.training import PairsDataset, TryOffDiffModule, noised
from omfa.fit import main
from omfa.records.prepared import RecordError
from omfa.training.checkpoints import last_checkpoint
from tests import ranks
from tests.baselines.tryoffdiff.common import golden, largest
from tests.baselines.tryoffdiff.test_pipeline import ENCODER, PHOTOS, UNET, tiny
from tests.conftest import VAE
from tests.training.test_scale import needs_deepspeed

CONFIGS = Path(__file__).parents[3] / "lightning_configs"


def test_noise_is_the_published_one() -> None:
    numbers = golden("noise")
    for version, name in (("v2", "euler"), ("v1", "pndm")):
        alpha_bar = make_scheduler(version).alphas_cumprod[numbers["timesteps"]]  # type: ignore[arg-type]
        made = noised(numbers["latents"], numbers["noise"], alpha_bar, version == "v2")
        assert largest(made, numbers[f"{name}_add_noise"]) < 1e-5
    assert largest(((1 - alpha_bar) / alpha_bar).sqrt(), numbers["euler_sigma_of_t"]) < 1e-5


def groups(module: TryOffDiffModule) -> list[tuple[float, float, int]]:
    module.trainer = SimpleNamespace(max_steps=10)  # type: ignore[assignment]
    optimizer = module.configure_optimizers()["optimizer"]
    return [(g["initial_lr"], g["weight_decay"], len(g["params"])) for g in optimizer.param_groups]


def test_the_optimiser_has_the_published_groups() -> None:
    pipe = tiny("v2", categories=["upper"])
    made = groups(TryOffDiffModule(pipe, 1e-4, 1e-3, decay_norms=False, train_norm=False))
    flat = sum(p.ndim < 2 for p in pipe.unet.parameters())
    every = len(list(pipe.unet.parameters()))
    assert made == [(1e-4, 0.01, every - flat), (1e-4, 0.0, flat), (1e-3, 0.01, 1), (1e-3, 0.0, 1)]
    pipe = tiny("v1", categories=["upper"])
    counts = [len(list(p.parameters())) for p in (pipe.unet, pipe.adapter)]
    assert groups(TryOffDiffModule(pipe)) == [(1e-4, 0.01, n) for n in counts]
    assert len(groups(TryOffDiffModule(tiny(), train_encoder=True))) == 3
    frozen = TryOffDiffModule(pipe).pipeline.image_encoder
    assert not frozen.training and not any(p.requires_grad for p in frozen.parameters())
    with pytest.raises(ValueError, match="must be over 0"):
        TryOffDiffModule(tiny(), learning_rate=0)


def test_pairs_are_of_the_wanted_categories_and_the_same_every_time(records: Path) -> None:
    for categories, number in ((["upper"], 6), (["dress"], 2), (["upper", "lower", "dress"], 14)):
        assert len(PairsDataset(records, 64, categories)) == number
    data = PairsDataset(records, 64, ["upper", "lower"])
    one, two, other = data[0, 3], PairsDataset(records, 64, ["upper", "lower"])[0, 3], data[1, 3]
    assert one.t == two.t and torch.equal(one.generator, two.generator) and torch.equal(one.garment, two.garment)
    assert one.t != other.t and one.person.shape == (3, 64, 64)
    assert {data[0, i].label for i in range(2)} == {0, 1}  # one record's two garments
    with pytest.raises(RecordError, match="no dress garments in split 'test'"):
        PairsDataset(records, 64, ["dress"], "test")


def test_a_loss_depends_on_its_own_example_alone(records: Path) -> None:
    data = PairsDataset(records, 64, ["upper", "lower", "dress"])
    module = TryOffDiffModule(tiny()).eval()
    pairs = [data[0, i] for i in range(3)]
    whole = torch.utils.data.default_collate(pairs)
    with torch.no_grad():
        together, alone = module.losses(whole), module.losses(torch.utils.data.default_collate(pairs[1:2]))
    assert together.shape == (3,) and torch.allclose(together[1:2], alone, rtol=1e-4)


LAYERS = {
    "v1": ["v1"], "v2": ["v2"], "mgt": ["v2", "mgt"], "compact": ["compact"],
    "v1_24gb": ["v1", "24gb"], "v1_zero2": ["v1", "zero2"],
}  # fmt: skip


def call(recipe: str, records: Path, run: Path, steps: int, *more: str) -> list[str]:
    """A tiny training by a recipe: all its settings, tiny networks in place of SD 1.4, SigLIP and the VAE.

    The first layer's pipeline is the tiny one, of the recipe's version; what layers on it say of it stays.
    """
    here = {
        "trainer": {"accelerator": "cpu", "devices": 1, "max_steps": steps, "default_root_dir": str(run)},
        "model": {"init_args": {"warmup_steps": 0, "train_encoder": True}},
        "data": {"init_args": {"folder": str(records), "batch_size": 4, "workers": 0}},
    }
    layers = [yaml.safe_load((CONFIGS / f"tryoffdiff_{n}.yaml").read_text()) for n in LAYERS[recipe]]
    first = layers[0]["model"]["init_args"]["pipeline"]
    kept = {k: v for k, v in first["init_args"].items() if k in ("version", "categories")}
    first["class_path"] = "omfa.baselines.tryoffdiff.start.small_pipeline"
    first["init_args"] = {"vae": VAE, "unet": UNET, "image_encoder": ENCODER, **kept}
    if "zero2" in recipe:
        layers[1]["trainer"]["strategy"]["class_path"] = "tests.cpu_zero.CPUZeRO"  # the same, without a GPU
    if "24gb" in recipe:
        del here["data"]["init_args"]["batch_size"]
    files = []
    run.mkdir(exist_ok=True)
    for i, layer in enumerate([*layers, here]):
        (run / f"{i}.yaml").write_text(yaml.safe_dump(layer))
        files += ["--config", str(run / f"{i}.yaml")]
    return [*files, *more]


def moments(checkpoint: dict[str, Any]) -> list[Tensor]:
    return [v for state in checkpoint["optimizer_states"][0]["state"].values() for v in state.values()]


@pytest.mark.parametrize("version", ["v1", "v2", "mgt", "compact"])
def test_a_recipe_trains_resumes_exactly_and_its_model_makes_pictures(
    version: str, records: Path, tmp_path: Path
) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert main(call(version, records, whole, 4, "--save_every=2")) == 0
    if version == "compact":
        killer = ["--trainer.callbacks+=tests.killer.Killer", "--trainer.callbacks.at=3"]
        assert ranks.run(call(version, records, halves, 4, "--save_every=2", *killer)).codes == [-9]
        assert last_checkpoint(halves / "checkpoints") == halves / "checkpoints" / "step=2.ckpt"
        assert not (halves / "model").exists()
    else:
        (halves / "checkpoints").mkdir(parents=True)
        for path in (whole / "checkpoints").glob("step=2.ckpt*"):
            shutil.copy(path, halves / "checkpoints")
    assert main(call(version, records, halves, 4, "--ckpt_path=last")) == 0
    ends = [last_checkpoint(run / "checkpoints") for run in (whole, halves)]
    one, two = (torch.load(end, weights_only=True) for end in ends if end is not None)
    assert one["global_step"] == two["global_step"] == 4 and one["lr_schedulers"] == two["lr_schedulers"]
    assert all(torch.equal(one["state_dict"][k], v) for k, v in two["state_dict"].items())
    assert all(map(torch.equal, moments(one), moments(two))) and len(moments(one)) == len(moments(two)) > 0
    middle = torch.load(whole / "checkpoints" / "step=2.ckpt", weights_only=True)["state_dict"]
    assert not torch.equal(middle["unet.conv_in.weight"], one["state_dict"]["unet.conv_in.weight"])
    saved = [p for p in sorted((whole / "model").rglob("*.safetensors"))]
    assert saved and all(
        p.read_bytes() == (halves / "model" / p.relative_to(whole / "model")).read_bytes() for p in saved
    )
    pipe = TryOffDiffPipeline.from_pretrained(whole / "model")
    pipe.set_progress_bar_config(disable=True)
    made = pipe.try_off(PHOTOS, pipe.config.categories, num_inference_steps=2).garments
    assert list(made) == (["upper"] if version in ("v1", "v2") else ["upper", "lower", "dress"])
    assert all(p.size == (48, 64) for pictures in made.values() for p in pictures)
    for path in (whole / "model").rglob("*.json"):
        assert str(tmp_path.parent) not in path.read_text()
    if version in ("v2", "mgt"):
        assert torch.equal(pipe.adapter.norm.weight, torch.ones(32)) and not pipe.adapter.norm.bias.any()


@pytest.mark.parametrize("recipe", ["v1_24gb", pytest.param("v1_zero2", marks=needs_deepspeed)])
def test_a_layer_trains_on_its_recipe(recipe: str, records: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = ranks.run(call(recipe, records, run, 1))
    assert ended.codes == [0], ended.log
    shown = yaml.safe_load((run / "config.yaml").read_text())
    if recipe == "v1_24gb":
        assert shown["trainer"]["precision"] == "bf16-mixed" and shown["model"]["init_args"]["gradient_checkpointing"]
        assert shown["data"]["init_args"]["batch_size"] * shown["trainer"]["accumulate_grad_batches"] == 16
    assert TryOffDiffPipeline.from_pretrained(run / "model").config.categories == ["upper"]


def printed(capsys: pytest.CaptureFixture[str], *names: str) -> dict[str, Any]:
    """What layers of recipes come to."""
    files = [str(CONFIGS / f"tryoffdiff_{n}.yaml") for n in names]
    with pytest.raises(SystemExit) as stop:
        main([*(a for f in files for a in ("--config", f)), "--print_config"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    return yaml.safe_load(said[said.index("seed_everything:") :])


def test_layers_come_to_what_their_notes_say(capsys: pytest.CaptureFixture[str]) -> None:
    shown = printed(capsys, "v1", "zero2")
    assert shown["trainer"]["strategy"]["class_path"] == "omfa.training.zero.ZeRO"
    assert shown["trainer"]["strategy"]["init_args"]["stage"] == 2
    assert shown["trainer"]["devices"] == 4 and shown["trainer"]["precision"] in (None, "32-true")
    assert shown["data"]["init_args"]["batch_size"] == 16 and shown["data"]["init_args"]["folder"].startswith(
        "data/vito"
    )
    shown = printed(capsys, "v2", "mgt")
    pipeline = shown["model"]["init_args"]["pipeline"]
    assert pipeline["class_path"].endswith("sd14_pipeline") and pipeline["init_args"]["version"] == "mgt"
    assert pipeline["init_args"]["categories"] == ["upper", "lower", "dress"]
    epoch = math.ceil(48_392 / shown["data"]["init_args"]["batch_size"])
    assert (shown["trainer"]["max_steps"], shown["model"]["init_args"]["warmup_steps"]) == (200 * epoch, 10 * epoch)


def test_the_loss_falls(records: Path) -> None:
    data = PairsDataset(records, 64, ["upper", "lower", "dress"])
    module = TryOffDiffModule(tiny(noise="preserving"), 3e-3, train_encoder=True)
    module.trainer = SimpleNamespace(max_steps=40)  # type: ignore[assignment]
    optimizer = module.configure_optimizers()["optimizer"]
    seen = []
    for step in range(40):
        batch = torch.utils.data.default_collate([data[step, i % len(data)] for i in range(4)])
        loss = module.losses(batch).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(float(loss))
    assert sum(seen[-10:]) < 0.8 * sum(seen[:10])


def test_what_is_missing_is_named_with_its_cure() -> None:
    with pytest.raises(ValueError, match=r"unet could not be read from './nowhere/unet'.*hf download"):
        sd14_pipeline(base="./nowhere")
    with pytest.raises(ValueError, match="version 'v3' must be one of v1, v2, mgt"):
        sd14_pipeline("v3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="can't be cut into patches of 7"):
        small_pipeline(VAE, UNET, {**ENCODER, "patch_size": 7})
    with pytest.raises(ValueError, match="needs its sample_size"):
        small_pipeline(VAE, {}, ENCODER)


def test_a_small_sd14_begins_each_version(tmp_path: Path) -> None:
    pipe = tiny("v2", categories=["upper"])
    pipe.save_pretrained(tmp_path)
    versions: list[Version] = ["v1", "v2", "mgt"]
    for version in versions:
        made = sd14_pipeline(version, str(tmp_path), str(tmp_path / "image_encoder"))
        assert made.config.categories == (["upper"] if version != "mgt" else ["upper", "lower", "dress"])
        assert made.config.noise == ("preserving" if version == "v1" else "exploding")
        assert torch.equal(made.unet.conv_in.weight, pipe.unet.conv_in.weight)
        assert (made.unet.config.num_class_embeds == 3) == (version == "mgt")
