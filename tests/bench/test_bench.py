"""The tables come out whole, at tiny size; random latents load like encoded ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from omfa.bench import __main__ as bench
from omfa.canvas import Canvas
from omfa.pipeline import OMFAPipeline
from omfa.training.examples import collate
from tests.bench.test_costs import TINY
from tests.conftest import VAE


def test_the_table_of_this_machine(
    records: Path, compact: OMFAPipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compact.save_pretrained(tmp_path)
    call = ["--records", str(records), "--model", str(tmp_path), "--batch", "2", "--steps", "1", "--repeats", "1"]
    assert bench.main(call) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line[:72].strip(): float(line[72:82]) for line in lines}
    for name in ("matrix product, bfloat16", "loader, pictures", "loader, latents", "loader, latents of 768x1024"):
        assert rows[name] > 0
    for attention in ("fused attention", "plain products"):
        assert rows[f"training, float32, {attention}"] > 0
    assert "training, bfloat16, plain products" in rows
    for garments in ("1 garment", "2 garments", "4 garments"):
        for design in ("rows", "canvas", "two UNets"):
            few, many = (rows[f"{garments}, {design}: {steps} steps, unguided"] for steps in (8, 50))
            assert 0 < few < many <= 6.3 * few
    assert {"canvas 16x44: training step, batch 2", "two UNets 16x12 + 16x24: training step, batch 2"} <= rows.keys()


def test_the_table_of_few_steps() -> None:
    lines = [line.split() for line in bench.counted_few_steps(TINY, (16, 12))][1:]
    of = {" ".join(words[:-3]) + words[-3]: (int(words[-2]), float(words[-1])) for words in lines}
    assert len(of) == 18
    assert [of[f"{n}, two garments, distilled4"][0] for n in ("canvas", "rows", "two UNets")] == [4, 5, 8]
    assert [of[f"{n}, two garments, guided50"][0] for n in ("canvas", "rows", "two UNets")] == [100, 101, 150]


@pytest.mark.slow
def test_full_size_counts_and_measures_where_told_to(capsys: pytest.CaptureFixture[str]) -> None:
    """The code that a GPU runs on SDXL, on the CPU at tiny size."""
    text = "\n".join(bench.full_size(TINY, VAE, (16, 12), ["cpu"], repeats=1))
    for heading in ("counted, batch 1, TFLOP", "counted, batch 1, GB", "measured on cpu, batch 1"):
        assert heading in text
    for train in ("all", "attention", "lora"):
        assert re.search(rf"^canvas 16x32, {train}, checkpointing .* s .* TFLOP/s .*GB$", text, re.M)
    assert re.search(r"^two UNets 16x12 \+ 16x12, 50 guided steps, decoded ", text, re.M)
    assert re.search(
        r"^person \| garment \| face \(one_garment\): a training step costs more than two UNets", text, re.M
    )


def test_random_latents_have_the_true_layout(tmp_path: Path) -> None:
    data = bench.random_latents(tmp_path, Canvas((16, 12), 1), 4, 8, records=4)
    batch = collate([data[0, i] for i in range(4)])
    assert batch.encoded and {s: tuple(p.shape) for s, p in batch.pixels.items()} == {
        "person": (4, 8, 16, 12),
        "garment_1": (4, 8, 16, 12),
        "face": (4, 8, 8, 8),
    }
    assert batch.pixels["person"].dtype == torch.float16


def test_a_wrong_call_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--records", str(tmp_path)]) == 2 and "metadata.jsonl" in capsys.readouterr().err


@pytest.mark.gpu
def test_full_size_training_on_a_gpu() -> None:
    """Every kind of training runs at full size, and LoRA at batch 1 within 16 GB."""
    lines = list(bench.measured(bench.costs.SDXL_UNET, bench.costs.SDXL_VAE, bench.SDXL_PERSON, "cuda", repeats=3))
    print("\n".join(lines))
    lora = next(line for line in lines if "lora, checkpointing" in line)
    assert float(lora.split()[-2]) < 16
