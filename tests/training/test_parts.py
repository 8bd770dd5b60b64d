"""The parts of training serve a model that they have never heard of: tests.training.stranger."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from omfa import encode, export
from omfa.conditioning import Drops
from omfa.pipeline import OMFAPipeline
from omfa.training.checkpoints import SafeCheckpointIO, SaveModel, last_checkpoint
from omfa.training.ema import EMA
from omfa.training.examples import Batch, ExampleOptions, Geometry, RecordsDataset, collate
from omfa.training.guards import load_batch, save_batch
from omfa.training.sample_pictures import SamplePictures
from omfa.training.streaming import moved_to
from omfa.tuning import Mismatch
from tests.conftest import SIZE, make_compact
from tests.ranks import Ended, run, saved
from tests.training.stranger import PairData, PairExamples, Pairs, Stranger


def train(root: Path, records: Path, *callbacks: object, latents: Path | None = None, workers: int = 0) -> Ended:
    """Four steps of the stranger, with an average, a saved model and sample pictures."""
    own: list[object] = [
        {"class_path": "EMA", "init_args": {"decay": 0.5}},
        {"class_path": "SamplePictures", "init_args": {"every": 2, "records": 2, "steps": 1}},
        {"class_path": "SaveModel"},
    ]
    root.mkdir(exist_ok=True)
    trainer = {"default_root_dir": str(root), "max_steps": 4, "accelerator": "cpu", "callbacks": [*own, *callbacks]}
    data = {"folder": str(records), "latents": latents and str(latents), "workers": workers}
    config = {
        "trainer": trainer | {"enable_model_summary": False},
        "model": {"class_path": "tests.training.stranger.Stranger"},
        "data": {"class_path": "tests.training.stranger.PairData", "init_args": data},
        "save_every": 2,
    }
    (root / "call.yaml").write_text(yaml.safe_dump(config))
    return run(["--config", str(root / "call.yaml"), "--ckpt_path=last"])


def test_a_stranger_trains_is_killed_goes_on_and_leaves_its_model(records: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert (ended := train(whole, records)).codes == [0], ended.log
    kill = {"class_path": "tests.killer.Killer", "init_args": {"at": 3}}
    assert train(killed, records, kill).codes == [-9]
    assert last_checkpoint(killed / "checkpoints") == killed / "checkpoints" / "step=2.ckpt"
    assert not (killed / "model").exists()
    assert (ended := train(killed, records, workers=1)).codes == [0], ended.log
    one, other = saved(whole), saved(killed)
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one) and len(one["losses"]) == 4
    assert {k for k in one if k.startswith("weight")} == {"weight.hand.weight", "weight.hand.bias"}

    left = load_file(killed / "model" / "w.safetensors")
    assert torch.equal(left["hand.weight"], one["ema.hand.weight"])
    assert not torch.equal(left["hand.weight"], one["weight.hand.weight"])
    assert torch.equal(left["eyes.weight"], load_file(whole / "model" / "w.safetensors")["eyes.weight"])
    sheet = np.asarray(Image.open(killed / "samples" / "step=0000004.png"))
    assert sheet.shape == (2 * 16, 2 * 12, 3) and sheet.std() > 20
    assert (sheet == np.asarray(Image.open(whole / "samples" / "step=0000004.png"))).all()

    assert export.main(["--run", str(killed), "--out", str(tmp_path / "half"), "--dtype", "float16"]) == 0
    half = load_file(tmp_path / "half" / "w.safetensors")
    assert torch.equal(half["hand.weight"], left["hand.weight"].half())


def test_a_stranger_trains_from_latents_encoded_ahead(records: Path, tmp_path: Path) -> None:
    make_compact().vae.save_pretrained(tmp_path / "vae")
    size, out = f"{SIZE[0]}x{SIZE[1]}", tmp_path / "latents"
    call = ["--records", str(records), "--vae", str(tmp_path / "vae"), "--out", str(out), "--size", size]
    assert encode.main(call) == 0
    data = PairExamples(str(records), "train", 0, str(out))
    assert data[0, 0]["pictures"]["cloth"].shape == (3, 16, 12)
    shutil.rmtree(tmp_path / "vae")
    ended = train(tmp_path / "run", records, latents=out)
    assert ended.codes == [0], ended.log


def test_callbacks_say_at_once_what_a_module_lacks(records: Path, tmp_path: Path) -> None:
    class Bare(pl.LightningModule):
        """Trains nothing."""

    trainer = pl.Trainer(logger=False, accelerator="cpu", default_root_dir=tmp_path)
    with pytest.raises(Mismatch, match=r"save\(folder, whole, dtype\); Bare has none"):
        SaveModel().setup(trainer, Bare(), "fit")
    with pytest.raises(Mismatch, match=r"sample\(\); Bare has none"):
        SamplePictures().setup(trainer, Bare(), "fit")
    with pytest.raises(Mismatch, match="folder and split; NoneType has not both"):
        SamplePictures().setup(trainer, Stranger(), "fit")
    trainer.datamodule = PairData(str(records))  # type: ignore[attr-defined]
    SamplePictures().setup(trainer, Stranger(), "fit")


def test_another_model_s_checkpoint_is_refused(tmp_path: Path) -> None:
    module = Stranger()
    with pytest.raises(Mismatch, match=r"1 weights differ, like hand.bias: there \[5\], here \[3\]"):
        module.check({"state_dict": {"hand.weight": torch.zeros(3, 3, 3, 3), "hand.bias": torch.zeros(5)}})
    assert set(module.frozen()) == {"eyes.weight", "eyes.bias"}
    SafeCheckpointIO().save_checkpoint({"n": 1}, tmp_path / "a.ckpt")
    assert EMA().state_dict() == {"updates": 0, "weights": {}}


class Kind(StrEnum):
    """Some."""

    A = "a"
    B = "b"


@dataclass(frozen=True)
class Inner:
    """In a batch."""

    kind: Kind
    words: str | None
    shares: tuple[float, ...]
    by_kind: dict[Kind, Tensor]


@dataclass(frozen=True)
class Odd:
    """A batch of everything that a batch may hold."""

    inner: list[Inner]
    x: Tensor | None
    states: list[bytes]
    flags: dict[str, list[bool]]


def same(a: object, b: object) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) and type(k) is type(j) for k, j in zip(a, b, strict=True))
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if hasattr(a, "__dataclass_fields__"):
        return type(a) is type(b) and same(vars(a), vars(b))
    return type(a) is type(b) and a == b


def batches(records: Path) -> list[object]:
    """The stranger's, OMFA's, a tensor, and one of everything."""
    pairs = PairExamples(str(records), None, 0, None)
    pipe: OMFAPipeline = make_compact()
    ours = RecordsDataset(records, Geometry.of(pipe), ExampleOptions(drops=Drops(0.3, 0.3, 0.3)))
    inner = [Inner(Kind.B, None, (0.5, 1.0), {Kind.A: torch.ones(2).half()}), Inner(Kind.A, "b", (), {})]
    return [
        pairs.collate([pairs[0, i] for i in range(3)]),
        collate([ours[0, i] for i in range(8)]),
        torch.rand(2, 3),
        Odd(inner, None, [b"\x00\xff"], {"a": [True, False]}),
    ]


@pytest.mark.parametrize("which,kind", enumerate([Pairs, Batch, Tensor, Odd]))
def test_batches_of_any_kind_are_kept(which: int, kind: type[object], records: Path, tmp_path: Path) -> None:
    batch = batches(records)[which]
    save_batch(tmp_path / "batch", batch, {"loss": 1.0})
    assert same(load_batch(tmp_path / "batch", kind), batch)
    moved = moved_to(batch, torch.device("cpu"))
    assert same(moved, batch)


def test_what_a_batch_is_not_made_of_is_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="batch/0 is of type object"):
        save_batch(tmp_path / "batch", [object()], {})
