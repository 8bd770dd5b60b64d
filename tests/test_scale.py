"""Training on several processes: ZeRO is AdamW; one checkpoint for all; killed runs go on as if nothing had been."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
import torch

from omfa.callbacks import last_checkpoint
from omfa.pipeline import OMFAPipeline
from tests.ranks import Ended, run, saved

ROOT = Path(__file__).parent.parent
STRATEGIES = {
    "ddp": "{class_path: ddp}",
    "zero2": "{class_path: tests.cpu_zero.CPUZeRO, init_args: {stage: 2}}",
    "zero3": "{class_path: tests.cpu_zero.CPUZeRO, init_args: {stage: 3, offload: true}}",
}


def config(folder: Path, strategy: str, *more: str) -> list[str]:
    """A second config on top of tiny.yaml: the smallest network, the given strategy, an average, no pictures."""
    chosen = "strategy: ddp" if strategy == "ddp" else f"strategy: {STRATEGIES[strategy]}" if strategy != "one" else ""
    path = folder / f"{strategy}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "trainer:\n  callbacks:\n    - {class_path: omfa.callbacks.EMA, init_args: {decay: 0.9}}\n"
        "    - class_path: omfa.callbacks.SaveModel\n  enable_model_summary: false\n  gradient_clip_val: 0.5\n"
        f"  {chosen}\n"
    )
    small = "--model.init_args.pipeline.init_args.unet.block_out_channels=[8,16]"
    return ["--config", str(ROOT / "lightning_configs" / "tiny.yaml"), "--config", str(path), small, *more]


def train(
    records: Path, root: Path, name: str, strategy: str, processes: int, steps: int, *more: str, batch: int = 4
) -> Ended:
    """One run of a global batch of ``batch``."""
    where = [f"--trainer.default_root_dir={root / name}", f"--data.init_args.folder={records}"]
    size = [f"--data.init_args.batch_size={batch // processes}", f"--trainer.max_steps={steps}"]
    norm = "--model.init_args.pipeline.init_args.unet.norm_num_groups=4"
    return run(config(root / "configs", strategy, norm, *where, *size, *more), processes)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_zero_trains_as_one_process_with_the_whole_batch(records: Path, tmp_path: Path, strategy: str) -> None:
    """Losses to 1e-5 over six steps; AdamW's state, the average, and a folder that from_pretrained reads."""
    assert (one := train(records, tmp_path, "one", "one", 1, 6)).codes == [0], one.log
    assert (two := train(records, tmp_path, "two", strategy, 2, 6)).codes == [0, 0], two.log
    a, b = saved(tmp_path / "one"), saved(tmp_path / "two")
    assert a.keys() == b.keys() and len(a["losses"]) == 6
    assert (a["losses"] - b["losses"]).abs().max() < 1e-5
    for name in a:
        assert torch.allclose(a[name].double(), b[name].double(), rtol=1e-3, atol=2e-4), name
    pipe, same_pipe = (OMFAPipeline.from_pretrained(tmp_path / x / "model") for x in ("one", "two"))
    for p, q in zip(pipe.unet.parameters(), same_pipe.unet.parameters(), strict=True):
        assert torch.allclose(p, q, atol=2e-4)
