"""ZeRO-2 for the distillation's three optimisers: two processes are one; checkpoints and models are plain and whole."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from safetensors.torch import load_file
from torch import Tensor, nn

from omfa.baselines.mobile_vton.folder import GARMENT, TRYON, read_light_unet
from omfa.fit import check_strategy
from omfa.fit import main as fit
from omfa.training.checkpoints import SafeCheckpointIO
from omfa.training.torch_zero import TorchZeRO, blocks, blocks_of_all
from tests.baselines.mobile_vton import tiny
from tests.baselines.mobile_vton.test_recipes import CONFIGS, call, made  # noqa: F401  a fixture
from tests.baselines.mobile_vton.two_records import make_teacher
from tests.ranks import Ended, run

NAME = "omfa.training.torch_zero.TorchZeRO"
CALLBACKS = [
    {"class_path": "omfa.training.ema.EMA", "init_args": {"decay": 0.9}},
    {"class_path": "omfa.training.checkpoints.SaveModel"},
]


class Runs:
    """Runs of the first stage's recipe, with tiny networks of one stage, on one process or two under ZeRO-2."""

    def __init__(self, encoded: Path, records: Path, root: Path) -> None:
        self.encoded, self.records, self.root = encoded, records, root
        for name, network in zip((TRYON, GARMENT), tiny.one_stage(), strict=True):
            network.save_pretrained(root / "networks" / name)

    def go(self, name: str, processes: int, steps: int, *more: str, **trainer: Any) -> Ended:
        """A new run, or one that goes on from its last checkpoint."""
        how = {"strategy": {"class_path": NAME}} if processes > 1 else {}
        how |= {"callbacks": CALLBACKS, "batch": 2 // processes, **trainer}
        words = call(self.encoded, self.records, [], self.root / "networks", self.root / name, steps, **how)
        return run([*words, "--save_every=2", "--ckpt_path=last", *more], processes)

    def stopped(self, name: str, copy: str) -> None:
        """A run as it was when it had taken two steps, by another name."""
        (self.root / copy / "checkpoints").mkdir(parents=True)
        for path in (self.root / name / "checkpoints").glob("step=2.ckpt*"):
            shutil.copy(path, self.root / copy / "checkpoints")

    def numbers(self, name: str, step: int) -> dict[str, Tensor]:
        """All of a checkpoint: weights, average, the state of the three optimisers, losses."""
        loaded = SafeCheckpointIO().load_checkpoint(self.root / name / "checkpoints" / f"step={step}.ckpt")
        kept = {key.split("{")[0]: value for key, value in loaded["callbacks"].items()}
        found = {f"weight.{k}": v for k, v in loaded["state_dict"].items()}
        found |= {f"average.{k}": v for k, v in kept["EMA"]["weights"].items()}
        for n, optimizer in enumerate(loaded["optimizer_states"]):
            found |= {f"{n}.{i}.{k}": v for i, state in optimizer["state"].items() for k, v in state.items()}
        return found | {"losses": torch.tensor(kept["LossGuard"]["recent"])}


@pytest.fixture(scope="module")
def runs(made: Path, records: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:  # noqa: F811
    """With a run on one process, of four steps."""
    runs = Runs(made, records, tmp_path_factory.mktemp("runs"))
    ended = runs.go("alone", 1, 4)
    assert ended.codes == [0], ended.log
    return runs


def check_same(a: dict[str, Tensor], b: dict[str, Tensor], within: float = 1e-5) -> None:
    assert a.keys() == b.keys() and {k.split(".")[0] for k in a} == {"weight", "average", "0", "1", "2", "losses"}
    assert {k.split(".")[1] for k in a if k.startswith("average")} == {"tryon", "garment", "fake", "adversary"}
    apart = {k: float((v - b[k]).abs().max()) for k, v in a.items()}
    print("weights", max(v for k, v in apart.items() if k[0] == "w"), "losses", apart["losses"])
    assert max(apart.values()) < within


def test_two_processes_with_zero2_are_one_and_go_on_as_one(runs: Runs) -> None:
    ended = runs.go("two", 2, 2)
    assert ended.codes == [0, 0], ended.log
    two = runs.numbers("two", 2)
    assert len(two["losses"]) == 2 * 3
    check_same(runs.numbers("alone", 2), two)
    for part, folder in (("tryon", TRYON), ("garment", GARMENT)):
        weights = dict(read_light_unet(runs.root / "two" / "model" / folder).named_parameters())
        assert all(torch.equal(p, two[f"average.{part}.{k}"]) for k, p in weights.items())
    ended = runs.go("two", 1, 4)
    assert ended.codes == [0], ended.log
    check_same(runs.numbers("alone", 4), runs.numbers("two", 4))


@pytest.mark.slow
def test_a_run_on_one_process_goes_on_under_zero2(runs: Runs) -> None:
    runs.stopped("alone", "moved")
    ended = runs.go("moved", 2, 4)
    assert ended.codes == [0, 0], ended.log
    check_same(runs.numbers("alone", 4), runs.numbers("moved", 4))


@pytest.mark.slow
def test_a_run_under_zero2_goes_on_exactly(runs: Runs) -> None:
    ended = runs.go("whole", 2, 4)
    assert ended.codes == [0, 0], ended.log
    runs.stopped("whole", "again")
    ended = runs.go("again", 2, 4)
    assert ended.codes == [0, 0], ended.log
    whole, again = runs.numbers("whole", 4), runs.numbers("again", 4)
    assert whole.keys() == again.keys() and all(torch.equal(v, again[k]) for k, v in whole.items())


@pytest.mark.slow
def test_zero2_in_bfloat16(runs: Runs) -> None:
    for name, processes in (("bf16", 1), ("bf16-two", 2)):
        ended = runs.go(name, processes, 2, precision="bf16-mixed")
        assert not any(ended.codes), ended.log
    one, two = runs.numbers("bf16", 2), runs.numbers("bf16-two", 2)
    torch.testing.assert_close(one["losses"], two["losses"], rtol=0.02, atol=0)
    assert {v.dtype for v in two.values()} == {torch.float32}


@pytest.mark.slow
def test_a_bad_loss_leaves_whole_weights(runs: Runs) -> None:
    """The guard's word comes in the midst of a step, when weights are put together for backward."""
    strict = {"class_path": "omfa.training.guards.LossGuard", "init_args": {"factor": 1.001, "window": 1}}
    ended = runs.go("bad", 2, 4, callbacks=[strict])
    assert ended.codes == [1, 0] and "error: loss" in ended.log and "Traceback" not in ended.log, ended.log
    (written,) = (runs.root / "bad" / "stopped").glob("*/weights.safetensors")
    wanted = {k.removeprefix("average."): v for k, v in runs.numbers("alone", 2).items() if k.startswith("average.")}
    assert {k: v.shape for k, v in load_file(written).items()} == {k: v.shape for k, v in wanted.items()}


@pytest.mark.parametrize(
    ("recipe", "strategy", "words"),
    [
        ("mobile_vton", "deepspeed_stage_2", NAME),
        ("mobile_vton", "omfa.training.zero.ZeRO", NAME),
        ("mobile_vton", "{class_path: omfa.training.zero.ZeRO, init_args: {stage: 2}}", NAME),
        ("mobile_vton", NAME, "{class_path: " + NAME),
        ("tiny", "{class_path: " + NAME + "}", "omfa.training.zero.ZeRO"),
    ],
)
def test_a_strategy_that_does_not_fit_is_refused_before_networks_are_read(
    recipe: str, strategy: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The recipe's teacher is not there, which would be said otherwise."""
    layer = tmp_path / "layer.yaml"
    layer.write_text(f"trainer: {{strategy: {strategy}, default_root_dir: {tmp_path / 'run'}}}\n")
    assert fit(["--config", str(CONFIGS / f"{recipe}.yaml"), "--config", str(layer)]) == 2
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert words in said


def test_float16_is_refused(tmp_path: Path) -> None:
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    quiet: dict[str, Any] = {"logger": False, "accelerator": "cpu", "devices": 1, "default_root_dir": tmp_path}
    with pytest.raises(ValueError, match="take bf16-mixed"):
        check_strategy(pl.Trainer(strategy=TorchZeRO(), plugins=[plugin], **quiet))


def test_blocks_are_what_is_called_and_hold_all_weights() -> None:
    class Networks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tryon, self.garment = tiny.networks()
            self.fake = make_teacher()

    networks = Networks()
    assert sum(p.numel() for b in blocks_of_all(networks) for p in b.parameters()) == sum(
        p.numel() for p in networks.parameters()
    )
    assert all(type(block).forward is not nn.Module.forward for block in blocks(networks.tryon))
    networks.garment.register_parameter("scale", nn.Parameter(torch.ones(1)))
    with pytest.raises(ValueError, match=r"garment\.scale does not"):
        blocks_of_all(networks)
