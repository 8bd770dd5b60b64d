"""Training on several processes: ZeRO is AdamW; one checkpoint for all; killed runs go on as if nothing had been."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml
from jsonargparse import ArgumentParser
from pytorch_lightning.plugins.precision import MixedPrecision
from safetensors.torch import load_file

from omfa.fit import main
from omfa.pipeline import OMFAPipeline
from omfa.training.checkpoints import last_checkpoint
from omfa.training.ema import EMA
from omfa.training.examples import Batch
from omfa.training.guards import BadLoss, LossGuard, load_batch
from tests.ranks import Ended, run, saved

needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="pip install omfa[deepspeed]")

ROOT = Path(__file__).parents[2]
STRATEGIES = {
    "one": "auto",
    "ddp": "ddp",
    "zero2": "{class_path: tests.cpu_zero.CPUZeRO, init_args: {stage: 2}}",
    "zero3": "{class_path: tests.cpu_zero.CPUZeRO, init_args: {stage: 3, offload: true}}",
}


def train(
    records: Path,
    root: Path,
    name: str,
    strategy: str,
    processes: int,
    steps: int,
    *more: str,
    batch: int = 4,
    own: Sequence[Sequence[str]] = (),
) -> Ended:
    """One run of a global batch of ``batch``: tiny.yaml and on top a config with the strategy, an average, no pictures.

    ``more`` are options; those that begin with "- " are callbacks. ``own`` are options of each process.
    """
    callbacks = [
        "- {class_path: omfa.training.ema.EMA, init_args: {decay: 0.9}}",
        "- class_path: omfa.training.checkpoints.SaveModel",
    ]
    callbacks += [x for x in more if x.startswith("- ")]
    trainer = {
        "default_root_dir": root / name,
        "strategy": STRATEGIES[strategy],
        "max_steps": steps,
        "gradient_clip_val": 0.5,
        "enable_model_summary": "false",
        "callbacks": "".join(f"\n    {x}" for x in callbacks),
    }
    config = root / f"{name}.yaml"
    config.write_text("trainer:\n" + "".join(f"  {k}: {v}\n" for k, v in trainer.items()))
    unet = "--model.init_args.pipeline.init_args.unet."
    small = [f"{unet}block_out_channels=[8,16]", f"{unet}norm_num_groups=4"]
    data = [f"--data.init_args.batch_size={batch // processes}", f"--data.init_args.folder={records}"]
    tiny = str(ROOT / "lightning_configs" / "tiny.yaml")
    options = [x for x in more if not x.startswith("- ")]
    return run(["--config", tiny, "--config", str(config), *small, *data, *options], processes, own=own)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], losses: float = 1e-5) -> None:
    """The same run up to the order of additions."""
    assert a.keys() == b.keys()
    assert (a["losses"] - b["losses"]).abs().max() < losses
    for name in a:
        assert torch.allclose(a[name].double(), b[name].double(), rtol=1e-3, atol=20 * losses), name


@needs_deepspeed
@pytest.mark.parametrize("strategy", ["zero2", pytest.param("zero3", marks=pytest.mark.slow)])
def test_zero_trains_as_one_process_with_the_whole_batch(records: Path, tmp_path: Path, strategy: str) -> None:
    """Losses to 1e-5; AdamW's state, the average, and a folder that from_pretrained reads."""
    assert (one := train(records, tmp_path, "one", "one", 1, 4)).codes == [0], one.log
    assert (two := train(records, tmp_path, "two", strategy, 2, 4)).codes == [0, 0], two.log
    close(saved(tmp_path / "one"), saved(tmp_path / "two"))
    assert len(saved(tmp_path / "one")["losses"]) == 4
    a, b = (OMFAPipeline.from_pretrained(tmp_path / x / "model").unet for x in ("one", "two"))
    assert all(torch.allclose(p, q, atol=2e-4) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_zero_in_bfloat16(records: Path, tmp_path: Path, strategy: str) -> None:
    """The network in bfloat16, AdamW in float32: within bfloat16 of one process in autocast."""
    for name, how, processes in (("one", "one", 1), ("two", strategy, 2)):
        ended = train(records, tmp_path, name, how, processes, 4, "--trainer.precision=bf16-mixed")
        assert not any(ended.codes), ended.log
    a, b = saved(tmp_path / "one"), saved(tmp_path / "two")
    assert (a["losses"] / b["losses"] - 1).abs().max() < 0.02
    assert all(b[k].dtype == torch.float32 for k in b if k.startswith(("weight", "ema", "optimizer")))


@pytest.mark.slow
def test_a_checkpoint_goes_on_anywhere(records: Path, tmp_path: Path) -> None:
    """Two processes of ZeRO-2, one process, two of ZeRO-3: weights, average, AdamW and data position go on."""
    assert train(records, tmp_path, "alone", "one", 1, 6).codes == [0]
    for steps, strategy, processes in ((2, "zero2", 2), (4, "one", 1), (6, "zero3", 2)):
        ended = train(records, tmp_path, "moved", strategy, processes, steps, "--ckpt_path=last")
        assert not any(ended.codes), ended.log
    close(saved(tmp_path / "alone"), saved(tmp_path / "moved"))


@pytest.mark.slow
def test_the_config_of_a_run_runs_it_again(records: Path, tmp_path: Path) -> None:
    assert train(records, tmp_path, "one", "zero2", 2, 2).codes == [0, 0]
    again = run(["--config", str(tmp_path / "one/config.yaml"), f"--trainer.default_root_dir={tmp_path / 'two'}"], 2)
    assert again.codes == [0, 0], again.log
    assert same(saved(tmp_path / "one"), saved(tmp_path / "two"))


def signalled(records: Path, root: Path, strategy: str, processes: int, signal: str, rng: random.Random) -> None:
    """A signal at a random step, to one process or to all; the resumed run equals the uninterrupted one, bit by bit."""
    steps, alone = 6, root / f"{strategy}-{processes}"
    options = ["--save_every=2"]
    if not alone.exists():
        whole = train(records, root, alone.name, strategy, processes, steps, *options)
        assert not any(whole.codes), whole.log
    name, at = f"{alone.name}-{signal}-{rng.random():.6f}", rng.randint(1, steps - 1)
    rank = rng.choice([*range(processes), "null"])
    killer = f"- {{class_path: tests.killer.Killer, init_args: {{at: {at}, name: {signal}, rank: {rank}}}}}"
    ended = train(records, root, name, strategy, processes, steps, killer, *options)
    assert all(ended.codes) if signal == "SIGKILL" else not any(ended.codes), (ended.codes, at, rank, ended.log)
    left = last_checkpoint(root / name / "checkpoints")
    step = 0 if left is None else int(left.stem.split("=")[1])
    # one process may die while another still writes the last checkpoint but one
    assert step == at if signal == "SIGTERM" else step in {at - at % 2, (at - 1) - (at - 1) % 2}, (at, rank, step)
    assert not (root / name / "model").exists()
    resumed = train(records, root, name, strategy, processes, steps, *options, "--ckpt_path=last")
    assert not any(resumed.codes), resumed.log
    assert same(saved(alone), saved(root / name)), (signal, at, rank)
    print(f"{strategy} x {processes}: {signal} at step {at} to {rank}: equal")


def test_two_processes_asked_to_stop_go_on_exactly(records: Path, tmp_path: Path) -> None:
    signalled(records, tmp_path, "ddp", 2, "SIGTERM", random.Random(1))


@pytest.mark.slow
@pytest.mark.parametrize("strategy,processes", [("one", 1), ("ddp", 2), ("zero2", 1), ("zero2", 2), ("zero3", 2)])
@pytest.mark.parametrize("signal", ["SIGKILL", "SIGTERM"])
def test_killed_runs_go_on_exactly(records: Path, tmp_path: Path, strategy: str, processes: int, signal: str) -> None:
    """As often as OMFA_KILLS says (1)."""
    rng = random.Random(f"{strategy} {processes} {signal}")
    for _ in range(int(os.environ.get("OMFA_KILLS", "1"))):
        signalled(records, tmp_path, strategy, processes, signal, rng)


def loss_again(root: Path, rank: int) -> tuple[float, float]:
    """The loss of a stopped run's batch as written down, and made again from its files."""
    (folder,) = (root / "stopped").iterdir()
    pl.seed_everything(0)  # for the random VAE
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(pl.LightningModule, "model")
    settings = parser.parse_object({"model": yaml.safe_load((root / "config.yaml").read_text())["model"]})
    module: Any = parser.instantiate(settings).model
    unused = module.load_state_dict(load_file(folder / "weights.safetensors"), strict=False)
    assert not unused.unexpected_keys
    about = json.loads((folder / f"batch-{rank}.json").read_text())
    with torch.no_grad():
        return about["loss"], float(module.losses(load_batch(folder / f"batch-{rank}", Batch)).mean())


def test_a_bad_loss_stops_the_run_with_its_batch_saved(records: Path, tmp_path: Path) -> None:
    """One process of two sees the bad batch; both stop before the weights are touched, and say where it lies."""
    poison = "- {class_path: tests.killer.Poison, init_args: {at: 4, factor: .nan}}"
    ended = train(records, tmp_path, "run", "ddp", 2, 9, poison, "--save_every=2")
    assert ended.codes == [1, 0], ended.log  # the second was started by the first, which speaks for both
    assert "error: loss nan" in ended.log and "step=4" in ended.log and "Traceback" not in ended.log
    assert last_checkpoint(tmp_path / "run/checkpoints") == tmp_path / "run/checkpoints/step=4.ckpt"
    before, again = loss_again(tmp_path / "run", 0)
    assert before == pytest.approx(again, rel=1e-5)
    before, again = loss_again(tmp_path / "run", 1)
    assert math.isnan(before) and math.isnan(again)
    kept = torch.load(tmp_path / "run/checkpoints/step=4.ckpt", weights_only=True)["state_dict"]
    made = load_file(tmp_path / "run/stopped/step=4/weights.safetensors")
    assert all(torch.equal(kept[k], made[k]) for k in made)


def test_a_bad_loss_stops_a_run_on_one_device(records: Path, tmp_path: Path) -> None:
    poison = "- {class_path: tests.killer.Poison, init_args: {at: 1, factor: .nan}}"
    ended = train(records, tmp_path, "run", "one", 1, 3, poison)
    assert ended.codes == [1] and "error: loss nan" in ended.log and "Traceback" not in ended.log, ended.log


@pytest.mark.parametrize(
    ("strategy", "processes"),
    [
        ("one", 1),
        pytest.param("ddp", 2, marks=pytest.mark.slow),
        pytest.param("zero2", 2, marks=[pytest.mark.slow, needs_deepspeed]),
        pytest.param("zero3", 2, marks=[pytest.mark.slow, needs_deepspeed]),
    ],
)
def test_a_resumed_run_takes_the_configs_rates(records: Path, tmp_path: Path, strategy: str, processes: int) -> None:
    """What a stopped run is told to do about its loss: go on with a lower learning rate."""
    before = train(records, tmp_path, "run", strategy, processes, 2, "--model.init_args.learning_rate=1e-2")
    assert not any(before.codes), before.log
    first = saved(tmp_path / "run")
    rates = ["--model.init_args.learning_rate=1e-6", "--model.init_args.weight_decay=0.5", "--ckpt_path=last"]
    after = train(records, tmp_path, "run", strategy, processes, 3, *rates)
    assert not any(after.codes), after.log
    told = "from step 2 on: learning_rate 0.01 -> 1e-06, weight_decay 0.01 -> 0.5"
    assert after.log.count(told) == 1 and "from step" not in before.log
    path = last_checkpoint(tmp_path / "run/checkpoints")
    checkpoint = torch.load(path, weights_only=True)  # type: ignore[arg-type]
    (group,), (schedule,) = checkpoint["optimizer_states"][0]["param_groups"], checkpoint["lr_schedulers"]
    assert (group["initial_lr"], group["weight_decay"], schedule["base_lrs"]) == (1e-6, 0.5, [1e-6])
    moved = max((v - first[k]).abs().max() for k, v in saved(tmp_path / "run").items() if k.startswith("weight"))
    assert 0 < moved < 1e-5
    assert "weights_only` was not set" not in after.log


def test_all_processes_go_on_from_one_checkpoint(records: Path, tmp_path: Path) -> None:
    """A run folder on each node's own disk: the second node has no checkpoint, and would begin anew."""
    own = [[f"--trainer.default_root_dir={tmp_path / node}"] for node in ("a", "b")]
    assert not any(train(records, tmp_path, "x", "ddp", 2, 1, own=own).codes)
    ended = train(records, tmp_path, "x", "ddp", 2, 2, "--ckpt_path=last", own=own)
    assert 2 in ended.codes and 0 not in ended.codes, ended.log
    assert "must be a folder that all nodes share" in ended.log and "Traceback" not in ended.log
    assert last_checkpoint(tmp_path / "a/checkpoints") == tmp_path / "a/checkpoints/step=1.ckpt"


def test_a_loss_is_judged_before_accumulation_divides_it(records: Path, tmp_path: Path) -> None:
    losses = []
    for times in (1, 2):
        ended = train(records, tmp_path, f"x{times}", "one", 1, 1, f"--trainer.accumulate_grad_batches={times}")
        assert not any(ended.codes), ended.log
        losses.append(saved(tmp_path / f"x{times}")["losses"])
    assert len(losses[1]) == 2 and losses[1][0] == losses[0][0] > 0


def test_a_loss_is_judged_before_float16_scales_it(tmp_path: Path) -> None:
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))
    trainer = pl.Trainer(logger=False, accelerator="cpu", plugins=[plugin], default_root_dir=tmp_path)
    guard = LossGuard()
    guard.on_before_backward(trainer, pl.LightningModule(), plugin.scaler.scale(torch.tensor(0.25)))  # type: ignore[union-attr]
    assert list(guard.recent) == [0.25]


def test_only_the_process_that_writes_holds_the_whole_average() -> None:
    module = pl.LightningModule()
    module.register_parameter("w", torch.nn.Parameter(torch.ones(2)))
    for first in (True, False):
        ema, place = EMA(), SimpleNamespace(strategy=None, is_global_zero=first)
        ema.on_train_start(place, module)  # type: ignore[arg-type]
        assert set(ema.state_dict()["weights"]) == ({"w"} if first else set())


def test_a_jump_stops_a_run(tmp_path: Path) -> None:
    """Ten times the largest of the last losses, and not before so many were seen; a batch of plain pictures."""
    guard = LossGuard(window=3)
    module = pl.LightningModule()
    module.register_parameter("w", torch.nn.Parameter(torch.ones(2)))
    trainer = pl.Trainer(logger=False, accelerator="cpu", enable_progress_bar=False, default_root_dir=tmp_path)
    guard.on_train_batch_start(trainer, module, torch.arange(6.0), 0)
    for loss in (0.1, 50.0, 0.2, 400.0, 0.1, 0.2, 0.3, 2.9):
        guard.on_before_backward(trainer, module, torch.tensor(loss))
    with pytest.raises(BadLoss, match="loss 30 at step 0"):
        guard.on_before_backward(trainer, module, torch.tensor(30.0))
    assert torch.equal(load_batch(tmp_path / "stopped/step=0/batch-0", torch.Tensor), torch.arange(6.0))


def test_sound_losses_never_stop_a_run() -> None:
    """Losses of single examples, as uneven as diffusion's: log-normal over three orders of magnitude."""
    guard = LossGuard()
    losses = torch.empty(20_000).log_normal_(-2, 1, generator=torch.Generator().manual_seed(0))
    trainer: Any = pl.Trainer(logger=False, accelerator="cpu", enable_progress_bar=False)
    for loss in losses:
        guard.on_before_backward(trainer, None, loss)
    assert losses.max() / losses.min() > 1000


ZERO = '--trainer.strategy={"class_path": "tests.cpu_zero.CPUZeRO", "init_args": {"stage": %d}}'


@needs_deepspeed
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--trainer.strategy=deepspeed_stage_2"], "omfa.training.zero.ZeRO"),
        ([ZERO % 1], "stage"),
        ([ZERO % 2, "--trainer.precision=16-mixed"], "bf16-mixed"),
        ([ZERO % 3], "SamplePictures"),
        (["--save_every=0"], "1 or more"),
    ],
)
def test_strategies_that_cannot_do_it_are_refused(
    records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    tiny = str(ROOT / "lightning_configs" / "tiny.yaml")
    where = [f"--data.init_args.folder={records}", f"--trainer.default_root_dir={tmp_path}"]
    try:
        code: object = main(["--config", tiny, *where, "--trainer.max_steps=2", *options])
    except SystemExit as e:
        code = e.code
    assert code == 2 and words in capsys.readouterr().err
