from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch.utils.data import DataLoader

from omfa.baselines.ladi_vton import training
from omfa.baselines.ladi_vton.from_records import Example
from omfa.baselines.ladi_vton.inputs import fit_person, make_inputs, stack
from omfa.baselines.ladi_vton.masks import garment_on_white
from omfa.baselines.ladi_vton.pipeline import LaDIVTONPipeline
from omfa.baselines.ladi_vton.start import compact
from omfa.components import Category
from omfa.images import load
from omfa.records.labels import ATR, table
from omfa.records.prepared import GarmentRef, KeypointsRef, Maps, Record
from tests.baselines.ladi_vton import tiny
from tests.baselines.ladi_vton.test_perceptual import vgg19
from tests.records.writing import write_records

SMALL = {k: v for k, v in tiny.UNET.items() if k != "cross_attention_dim"}
VAE = {
    "block_out_channels": [8, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "norm_num_groups": 4,
    "layers_per_block": 1,
}


def new() -> LaDIVTONPipeline:
    torch.manual_seed(0)
    pipe = compact(VAE, SMALL, (64, 64), width=16, words=4, warp_width=4, refine_width=4)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def batch() -> Example:
    photo, labels, points = tiny.person()
    person = fit_person(photo, labels, points, (64, 64))
    cloth, _ = load(tiny.garment(), (64, 64), "white")
    both = [make_inputs(person, cloth, c, "dresscode") for c in (Category.UPPER, Category.LOWER)]
    worn = [garment_on_white(person.photo, person.labels, c, "dresscode") for c in (Category.UPPER, Category.LOWER)]
    return Example(stack(both), torch.stack(worn), ("a", "b"), 5)


STAGES: dict[str, Callable[[LaDIVTONPipeline], Any]] = {
    "tps": lambda p: training.TPSModule(p, learning_rate=1e-3),
    "refine": lambda p: training.RefineModule(p, None, learning_rate=1e-3),
    "emasc": lambda p: training.EMASCModule(p, None, learning_rate=1e-3, warmup_steps=2),
    "inversion": lambda p: training.InversionModule(p, learning_rate=1e-3, warmup_steps=2, train_encoders=True),
    "repaint": lambda p: training.RepaintModule(p, learning_rate=1e-3, warmup_steps=2, train_encoders=True),
}


def fit(module: Any, steps: int, path: Path, resume: Path | None = None) -> None:
    trainer = pl.Trainer(
        max_steps=steps,
        default_root_dir=path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    examples = [Example(b.inputs, b.worn, b.ids, 10 + i) for i, b in enumerate([batch()] * 8)]
    steps_behind = 0 if resume is None else 2
    loader: Any = DataLoader(examples[steps_behind:], batch_size=None)  # type: ignore[arg-type]
    trainer.fit(module, loader, ckpt_path=resume, weights_only=True)
    trainer.save_checkpoint(path / f"{steps}.ckpt")


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_learns_its_own_part_and_nothing_else(name: str, tmp_path: Path) -> None:
    pipe = new()
    module = STAGES[name](pipe)
    before = {n: {k: v.clone() for k, v in p.state_dict().items()} for n, p in _networks(pipe).items()}
    example = batch()
    torch.manual_seed(1)
    first = module.losses(example)
    assert first.shape == (2,)
    fit(module, 8, tmp_path)
    changed = {
        n
        for n, p in _networks(pipe).items()
        if any(not torch.equal(v, before[n][k]) for k, v in p.state_dict().items())
    }
    assert changed == set(module.trained)
    torch.manual_seed(1)
    assert module.losses(example).mean() < first.mean()


def _networks(pipe: LaDIVTONPipeline) -> dict[str, torch.nn.Module]:
    return {n: p for n, p in pipe.components.items() if isinstance(p, torch.nn.Module)}


@pytest.mark.parametrize("name", ["tps", "repaint"])
def test_a_stage_goes_on_exactly(name: str, tmp_path: Path) -> None:
    whole, first, second = (STAGES[name](new()) for _ in range(3))
    fit(whole, 4, tmp_path / "whole")
    fit(first, 2, tmp_path / "half")
    fit(second, 4, tmp_path / "half", tmp_path / "half/2.ckpt")
    for k, v in whole.state_dict().items():
        assert torch.equal(v, second.state_dict()[k]), k


def test_stages_hand_on_a_folder(tmp_path: Path) -> None:
    pipe = new()
    for name, make in STAGES.items():
        module = make(pipe)
        module.save(tmp_path / name)
        pipe = LaDIVTONPipeline.from_pretrained(tmp_path / name)
    pipe.set_progress_bar_config(disable=True)
    assert pipe(batch().inputs, 2, output_type="pt").images.shape == (2, 3, 64, 64)


def test_the_perceptual_loss_counts(tmp_path: Path) -> None:
    torch.save(vgg19(), tmp_path / "vgg19.pth")
    example = batch()
    with_it = training.RefineModule(new(), str(tmp_path / "vgg19.pth"))
    without = training.RefineModule(new(), None)
    more = with_it.losses(example) - without.losses(example)
    assert (more > 0).all() and not any("look" in k for k in with_it.state_dict())


def test_records_train_a_stage_under_the_rules_of_its_pipeline(tmp_path: Path) -> None:
    photo, labels, points = tiny.person()
    photo.save(tmp_path / "a.png")
    Image.fromarray(table(ATR)[labels]).save(tmp_path / "parts.png")
    np.savez(tmp_path / "a.npz", points=points)
    tiny.garment().save(tmp_path / "shirt.png")
    worn = tuple(GarmentRef(c, "shirt.png") for c in (Category.UPPER, Category.LOWER))
    seen = KeypointsRef("a.npz", "openpose-18")
    write_records(
        tmp_path, [Record("a", "train", "p", "o", "a.png", garments=worn, maps=Maps(parts="parts.png"), keypoints=seen)]
    )
    module = STAGES["tps"](new())
    before = {k: v.clone() for k, v in module.state_dict().items()}
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_steps=2, default_root_dir=tmp_path, accelerator="cpu", enable_model_summary=False, **quiet)
    data = training.LaDIVTONData(str(tmp_path), [64, 64], batch_size=2)
    trainer.fit(module, data)
    assert len(data.dataset()) == 2 and data.consumed() == 4
    assert any(not torch.equal(v, before[k]) for k, v in module.state_dict().items())
    module.system.register_to_config(rules="vitonhd")
    assert len(data.dataset()) == 1  # they know upper garments alone
    data.size = [66, 64]
    with pytest.raises(ValueError, match=r"\[66, 64\]: both sides must be multiples of 4"):
        data.dataset()


def test_wrong_settings_are_told() -> None:
    with pytest.raises(ValueError, match="over 0"):
        training.TPSModule(new(), learning_rate=0)
    with pytest.raises(ValueError, match=r"in \[0, 1\)"):
        training.RepaintModule(new(), drop=1)
    pipe = new()
    pipe.register_modules(emasc=None)
    with pytest.raises(ValueError, match="no emasc"):
        training.EMASCModule(pipe, None)


def test_more_draws_of_a_picture_are_as_many_pictures() -> None:
    """The rows of two draws, taken one by one: the loss is their mean, and each draw has noise of its own."""
    module = training.RepaintModule(new(), learning_rate=1e-3, drop=0.0, draws=2)
    rows: list[torch.Tensor] = []
    plain = training.noise_losses
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "noise_losses", lambda *a: rows.append(plain(*a)) or rows[-1])
        each = module.losses(batch())
    assert rows[0].shape == (4,) and each.shape == (2,)
    assert torch.allclose(each, (rows[0][:2] + rows[0][2:]) / 2)
    assert (rows[0][:2] - rows[0][2:]).abs().min() > 1e-4


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_network_learns_what_its_scheduler_says(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a network that says 0, the loss is the mean square of the noise, or of v = a noise - s latents."""
    pipe, drawn = new(), []
    pipe.scheduler.register_to_config(prediction_type=kind)
    plain = pipe.scheduler.add_noise
    monkeypatch.setattr(pipe.scheduler, "add_noise", lambda *a: drawn.append(a) or plain(*a))
    for weights in pipe.unet.conv_out.parameters():
        torch.nn.init.zeros_(weights)
    b, none = batch(), torch.zeros(2, dtype=torch.bool)
    found = training.noise_losses(pipe, b.inputs, b.worn, pipe.encode_text(b.inputs)[0], none, none)
    ((clean, noise, t),) = drawn
    a, s = (
        x.sqrt()[:, None, None, None] for x in (pipe.scheduler.alphas_cumprod[t], 1 - pipe.scheduler.alphas_cumprod[t])
    )
    goal = noise if kind == "epsilon" else a * noise - s * clean
    torch.testing.assert_close(found, goal.square().mean((1, 2, 3)))


def test_no_draws_are_refused() -> None:
    with pytest.raises(ValueError, match="draws 0"):
        training.RepaintModule(new(), draws=0)
