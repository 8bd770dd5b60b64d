"""The training door: the loss falls, killed runs resume exactly, wrong calls are refused."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from omfa import export
from omfa.fit import main
from omfa.pipeline import OMFAPipeline
from omfa.records.prepared import read_records
from omfa.training.checkpoints import SafeCheckpointIO, is_whole, last_checkpoint, step_of
from omfa.training.model_card import last_losses
from omfa.training.rates import Rates
from omfa.training.vae import PicturesDataModule, VAEModule
from tests.conftest import full_disk

ROOT = Path(__file__).parent.parent
TINY = ROOT / "lightning_configs" / "tiny.yaml"


def arguments(records: Path, run: Path, steps: int, *more: str) -> list[str]:
    small = ["--model.init_args.pipeline.init_args.unet.block_out_channels=[16,32]"]
    where = [f"--data.init_args.folder={records}", f"--trainer.default_root_dir={run}"]
    quiet = ["--trainer.enable_model_summary=false"]
    return ["--config", str(TINY), *where, *small, *quiet, f"--trainer.max_steps={steps}", *more]


def fit(*args: str) -> subprocess.CompletedProcess[str]:
    env = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    command = [sys.executable, "-m", "omfa.fit", *args]
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=500)


def weights(run: Path) -> dict[str, torch.Tensor]:
    checkpoint = last_checkpoint(run / "checkpoints")
    assert checkpoint is not None
    loaded = torch.load(checkpoint, weights_only=True)
    ema = next(v for k, v in loaded["callbacks"].items() if k.startswith("EMA"))["weights"]
    return loaded["state_dict"] | {f"ema.{k}": v for k, v in ema.items()}


def test_the_loss_falls_and_the_run_folder_is_complete(
    records: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(records, tmp_path, 60, "--data.init_args.batch_size=8")) == 0
    events = EventAccumulator(str(tmp_path)).Reload()
    losses = [e.value for e in events.Scalars("loss")]
    assert len(losses) == 6 and sum(losses[-2:]) < 0.8 * sum(losses[:2])
    assert last_checkpoint(tmp_path / "checkpoints") == tmp_path / "checkpoints" / "step=60.ckpt"
    pipe = OMFAPipeline.from_pretrained(tmp_path / "model")
    assert pipe.canvas.person == (16, 12) and (tmp_path / "config.yaml").is_file()
    first = [v for v, e in zip(losses, events.Scalars("loss"), strict=True) if e.step < 20]
    assert last_losses(tmp_path, 20)["loss"] == pytest.approx(sum(first) / 2) and len(first) == 2
    assert last_losses(tmp_path, 60)["loss"] == pytest.approx(sum(losses) / 6)
    assert export.main(["--run", str(tmp_path), "--out", str(tmp_path / "half"), "--dtype", "float16"]) == 0
    assert "kept in float32" not in capfd.readouterr().err
    assert export.main(["--run", str(tmp_path), "--out", str(tmp_path / "half")]) == 2  # holds something
    assert "is there already" in capfd.readouterr().err
    half = OMFAPipeline.from_pretrained(tmp_path / "half").unet
    for a, b in zip(pipe.unet.parameters(), half.parameters(), strict=True):
        assert b.dtype == torch.float32 and torch.allclose(a, b, rtol=1e-3, atol=1e-6)
    size = [sum(p.stat().st_size for p in (tmp_path / name).rglob("*.safetensors")) for name in ("model", "half")]
    assert 0.45 < size[1] / size[0] < 0.55


def test_sample_pictures_are_drawn_by_the_pipeline(records: Path, tmp_path: Path) -> None:
    assert main(arguments(records, tmp_path, 2, "--trainer.callbacks=SamplePictures", "--trainer.callbacks.every=2",
                          "--trainer.callbacks.records=2", "--trainer.callbacks.steps=2")) == 0  # fmt: skip
    sheet = np.asarray(Image.open(tmp_path / "samples" / "step=0000002.png"))
    assert sheet.shape == (4 * 64, 5 * 48, 3) and sheet.std() > 20


def test_a_run_killed_while_it_wrote_its_model_writes_it(records: Path, tmp_path: Path) -> None:
    quick = ["--trainer.callbacks=EMA", "--trainer.callbacks+=SaveModel", "--ckpt_path=last"]
    assert main(arguments(records, tmp_path, 1, *quick)) == 0
    model, part = tmp_path / "model", tmp_path / ".model.part"
    before = {p.relative_to(model): p.read_bytes() for p in model.rglob("*") if p.is_file()}
    assert len(before) > 5 and not part.exists()
    model.rename(part)  # as a kill leaves it: not whole
    (part / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"half")
    assert main(arguments(records, tmp_path, 1, *quick)) == 0
    assert {p.relative_to(model): p.read_bytes() for p in model.rglob("*") if p.is_file()} == before
    assert not part.exists() and (model / "README.md").is_file()


def test_a_run_that_ends_by_the_clock_leaves_all_it_learned(records: Path, tmp_path: Path) -> None:
    timed = ["--trainer.max_time=00:00:00:02", "--trainer.callbacks=SaveModel", "--save_every=100000"]
    assert main(arguments(records, tmp_path, 10**6, *timed)) == 0
    checkpoint = last_checkpoint(tmp_path / "checkpoints")
    assert checkpoint is not None and 0 < step_of(checkpoint) < 10**6
    assert len(list((tmp_path / "checkpoints").glob("*.ckpt"))) == 1
    learned = torch.load(checkpoint, weights_only=True)["state_dict"]
    saved = OMFAPipeline.from_pretrained(tmp_path / "model").unet.conv_out.bias
    assert any(name.endswith("conv_out.bias") and torch.equal(saved, value) for name, value in learned.items())
    assert main(arguments(records, tmp_path, 10**6, *timed, "--ckpt_path=last")) == 0  # its time is over
    assert last_checkpoint(tmp_path / "checkpoints") == checkpoint


def test_a_rehearsal_leaves_nothing_to_be_taken_for_a_model(records: Path, tmp_path: Path) -> None:
    assert main(arguments(records, tmp_path, 9, "--trainer.callbacks=SaveModel", "--trainer.fast_dev_run=true")) == 0
    assert not (tmp_path / "model").exists() and not (tmp_path / "checkpoints").exists()


def test_a_run_that_goes_back_leaves_its_later_checkpoints_aside(
    records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ["--save_every=2", "--trainer.callbacks=EMA"]
    folder = tmp_path / "checkpoints"
    assert main(arguments(records, tmp_path, 6, *quick)) == 0
    stop = ["--trainer.callbacks+=tests.killer.Killer", "--trainer.callbacks.at=5", "--trainer.callbacks.name=SIGTERM"]
    assert main(arguments(records, tmp_path, 6, *quick, *stop, f"--ckpt_path={folder / 'step=4.ckpt'}")) == 0
    assert last_checkpoint(folder) == folder / "step=5.ckpt"
    assert last_checkpoint(folder / "abandoned") == folder / "abandoned" / "step=6.ckpt"
    assert "step=6.ckpt moved to" in capsys.readouterr().out


def killed_and_resumed(records: Path, tmp_path: Path, kills: list[int], steps: int) -> None:
    options = ["--save_every=2", "--trainer.callbacks=EMA"]
    alone = fit(*arguments(records, tmp_path / "alone", steps, *options))
    assert alone.returncode == 0, alone.stderr
    for at in [*kills, None]:
        more = [] if at is None else ["--trainer.callbacks+=tests.killer.Killer", f"--trainer.callbacks.at={at}"]
        resumed = fit(*arguments(records, tmp_path / "killed", steps, *options, *more, "--ckpt_path=last"))
        assert resumed.returncode == (-9 if at is not None else 0), resumed.stderr
    expected, got = weights(tmp_path / "alone"), weights(tmp_path / "killed")
    assert expected.keys() == got.keys() and len(expected) > 100
    assert all(torch.equal(expected[k], got[k]) for k in expected)


def test_a_killed_run_resumes_exactly(records: Path, tmp_path: Path) -> None:
    killed_and_resumed(records, tmp_path, [5], 8)


@pytest.mark.slow
def test_a_run_killed_five_times_resumes_exactly(records: Path, tmp_path: Path) -> None:
    killed_and_resumed(records, tmp_path, sorted(random.Random(4).sample(range(1, 30), 5)), 30)


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_whole_batch(records: Path, tmp_path: Path) -> None:
    """DDP over gloo: the same global batch, so the same weights up to rounding."""
    for run, devices, batch in (("one", 1, 4), ("two", 2, 2)):
        options = [f"--trainer.devices={devices}", f"--data.init_args.batch_size={batch}", "--save_every=3"]
        strategy = ["--trainer.strategy=ddp"] if devices == 2 else []
        ddp = fit(*arguments(records, tmp_path / run, 3, *options, *strategy, "--trainer.callbacks=EMA"))
        assert ddp.returncode == 0, ddp.stderr
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.allclose(one[k], two[k], atol=1e-3) for k in one)


def test_damaged_checkpoints_are_noticed_and_the_one_before_is_used(tmp_path: Path) -> None:
    io = SafeCheckpointIO()
    for n in (1, 2, 3):
        io.save_checkpoint({"n": torch.tensor(n)}, tmp_path / f"step={n}.ckpt")
    third = tmp_path / "step=3.ckpt"
    data = bytearray(third.read_bytes())
    data[len(data) // 2] ^= 1
    third.write_bytes(data)
    (tmp_path / "step=2.ckpt").write_bytes((tmp_path / "step=2.ckpt").read_bytes()[:-10])
    (tmp_path / "step=4.ckpt.part").write_bytes(b"cut")
    assert not is_whole(third) and last_checkpoint(tmp_path) == tmp_path / "step=1.ckpt"
    with pytest.raises(ValueError, match="checksum"):
        io.load_checkpoint(third)
    assert io.load_checkpoint(tmp_path / "step=1.ckpt")["n"] == 1
    io.remove_checkpoint(third)
    assert not third.exists() and not (tmp_path / "step=3.ckpt.sha256").exists()


def test_an_existing_run_is_not_overwritten(records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    SafeCheckpointIO().save_checkpoint({}, tmp_path / "checkpoints" / "step=5.ckpt")
    assert main(arguments(records, tmp_path, 2)) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert main([*arguments(records, tmp_path, 2), "--ckpt_path=nowhere.ckpt"]) == 2
    assert "no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--trainer.max_steps=-1"], "trainer.max_steps"),
        (["--model.init_args.learning_rate=-1"], "learning_rate"),
        (["--model.init_args.pipeline.init_args.person_size=[60,44]"], "multiple"),
        (["--model.init_args.pipeline.init_args.vae=nowhere"], "holds no weights"),
        (["--data.init_args.folder=nowhere"], "no records folder"),
        (["--data.init_args.split=val"], "no records of split 'val'"),
    ],
)
def test_wrong_calls_exit_with_2(
    records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], words: str
) -> None:
    try:
        code: object = main(arguments(records, tmp_path / "run", 2, *more))
    except SystemExit as e:
        code = e.code
    assert code == 2 and words in capsys.readouterr().err


def test_misspelt_keys_are_refused_by_name(records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments(records, tmp_path, 2, "--model.init_args.lerning_rate=1"))
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "lerning_rate" in said and said.count("\n") == 1


def test_configs_and_folders_that_cannot_be_used_are_named(
    records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = records / read_records(records)[0].file_name
    assert main([*arguments(records, tmp_path, 2), "--config", str(picture)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {picture} is no config in YAML: ")
    (tmp_path / "file").write_text("")
    assert main(arguments(records, tmp_path / "file" / "run", 2)) == 2
    assert "can't be written to (Not a directory): give another --trainer.default_root_dir" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"size \[5\] must be height and width"):
        PicturesDataModule([str(records)], [5])


def vae_run(root: Path) -> VAEModule:
    """A run folder of a tiny VAE, one step in."""
    sizes = {"block_out_channels": [16, 16], "latent_channels": 4, "norm_num_groups": 1, "layers_per_block": 1}
    kinds = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    torch.manual_seed(0)
    module = VAEModule({**sizes, **kinds})
    module.measure(torch.randn(2, 4, 8, 8) * 30)
    model = {"class_path": "omfa.training.vae.VAEModule", "init_args": {"vae": {**sizes, **kinds}}}
    root.mkdir()
    (root / "config.yaml").write_text(yaml.safe_dump({"model": model}))
    state = {"state_dict": module.state_dict(), "global_step": 1}
    SafeCheckpointIO().save_checkpoint(state, root / "checkpoints" / "step=1.ckpt")
    return module


def test_a_vae_run_is_exported_in_half_precision(tmp_path: Path) -> None:
    module = vae_run(tmp_path / "run")
    module.save(tmp_path / "whole")
    assert export.main(["--run", str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--dtype", "float16"]) == 0
    half = load_file(tmp_path / "out" / "diffusion_pytorch_model.safetensors")
    for name, value in load_file(tmp_path / "whole" / "diffusion_pytorch_model.safetensors").items():
        assert half[name].dtype == torch.float16 and torch.equal(half[name], value.half())
    AutoencoderKL.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("", "no 'model'"),
        ("garbage: [", "node content"),
        ("[]", "no 'model'"),
        ("trainer: {}", "no 'model'"),
        ("model: 5", "no 'model'"),
        ("model: {class_path: os.system}", "not correspond to a subclass of LightningModule"),
        ("model: {class_path: omfa.training.module.OMFAModule}", "arguments are required: pipeline"),
        ("model: {class_path: omfa.training.vae.VAEModule, init_args: {vae: {nonsense: 1}}}", "argument 'nonsense'"),
    ],
)
def test_damaged_runs_are_not_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: str, words: str
) -> None:
    vae_run(tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text(config)
    assert export.main(["--run", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert words in said and str(tmp_path / "run" / "config.yaml") in said and said.count("\n") == 1


def test_checkpoints_that_do_not_fit_and_full_disks_leave_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = vae_run(tmp_path / "run")
    call = ["--run", str(tmp_path / "run"), "--out", str(tmp_path / "out" / "model")]
    with full_disk(20_000):
        assert export.main(call) == 2
    said = capsys.readouterr().err
    assert str(tmp_path / "out" / "model") in said and said.count("\n") == 1
    assert not list((tmp_path / "out").iterdir())
    state = {name: value for name, value in module.state_dict().items() if name != "latent_mean"}
    SafeCheckpointIO().save_checkpoint({"state_dict": state}, tmp_path / "run" / "checkpoints" / "step=2.ckpt")
    assert export.main(call) == 2
    said = capsys.readouterr().err
    assert "step=2.ckpt is no checkpoint of this model" in said and "latent_mean" in said and said.count("\n") == 1


def test_learning_rate_rises_and_falls() -> None:
    rates = [Rates(1.0, 0.0, 9, 0.5).at(s, 100) for s in (0, 4, 9, 50, 75, 100)]
    assert rates == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.5, 0.0])
    assert Rates(1.0, 0.0, 0, 1.0).at(100, 100) == 1.0
