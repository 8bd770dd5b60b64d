"""Parsing: the SCHP network by its documented keys, numbers worked by hand, and the stage from end to end."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

from data_prep import schp
from data_prep.__main__ import main
from data_prep.check import validate
from omfa.records.labels import ATR, Part, read_parts, table
from omfa.records.prepared import read_records
from tests.data_prep.test_data_sets import label_map, picture


def documented_keys() -> dict[str, tuple[int, ...]]:
    """Key to shape, written down from the documentation of the checkpoints (18 labels)."""
    keys: dict[str, tuple[int, ...]] = {}

    def conv(name: str, out: int, inputs: int, kernel: int = 1) -> None:
        keys[f"{name}.weight"] = (out, inputs, kernel, kernel)

    def abn(name: str, channels: int) -> None:
        keys.update({f"{name}.{k}": (channels,) for k in ("weight", "bias", "running_mean", "running_var")})

    for n, (out, inputs) in enumerate([(64, 3), (64, 64), (128, 64)], 1):
        conv(f"conv{n}", out, inputs, 3)
        abn(f"bn{n}", out)
    inputs = 128
    for layer, blocks, planes in ((1, 3, 64), (2, 4, 128), (3, 23, 256), (4, 3, 512)):
        for i in range(blocks):
            block = f"layer{layer}.{i}"
            conv(f"{block}.conv1", planes, inputs)
            conv(f"{block}.conv2", planes, planes, 3)
            conv(f"{block}.conv3", 4 * planes, planes)
            for n, channels in enumerate((planes, planes, 4 * planes), 1):
                abn(f"{block}.bn{n}", channels)
            if i == 0:
                conv(f"{block}.downsample.0", 4 * planes, inputs)
                abn(f"{block}.downsample.1", 4 * planes)
            inputs = 4 * planes
    for i in range(4):
        conv(f"context_encoding.stages.{i}.1", 512, 2048)
        abn(f"context_encoding.stages.{i}.2", 512)
    conv("context_encoding.bottleneck.0", 512, 4096, 3)
    abn("context_encoding.bottleneck.1", 512)
    for name, out, inputs in [
        ("edge.conv1", 256, 256),
        ("edge.conv2", 256, 512),
        ("edge.conv3", 256, 1024),
        ("decoder.conv1", 256, 512),
        ("decoder.conv2", 48, 256),
        ("decoder.conv3", 256, 304),
        ("fushion", 256, 1024),
    ]:
        conv(f"{name}.0", out, inputs)
        abn(f"{name}.1", out)
    conv("decoder.conv3.2", 256, 256)
    abn("decoder.conv3.3", 256)
    for name, out, inputs, kernel in [
        ("edge.conv4", 2, 256, 3),
        ("edge.conv5", 2, 6, 1),
        ("decoder.conv4", 18, 256, 1),
        ("fushion.3", 18, 256, 1),
    ]:
        conv(name, out, inputs, kernel)
        keys[f"{name}.bias"] = (out,)
    return keys


def test_schp_at_full_size_has_the_documented_keys() -> None:
    with torch.device("meta"):
        model = schp.SCHP(18)
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == documented_keys()
    assert len(documented_keys()) == 603
    with torch.no_grad():
        assert model(torch.empty(2, 3, 512, 512, device="meta")).shape == (2, 18, 128, 128)
        assert schp.SCHP(20).to("meta")(torch.empty(1, 3, 473, 473, device="meta")).shape == (1, 20, 119, 119)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the official layout, scaled so that signals neither die nor explode."""
    generator, weights = torch.Generator().manual_seed(0), {}
    for key, shape in documented_keys().items():
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
        weights[key] = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
        if key.endswith("running_var"):
            weights[key] = weights[key].abs() + 1
    path = tmp_path_factory.mktemp("schp") / "exp-schp-atr.pth"
    torch.save({"state_dict": {f"module.{key}": value for key, value in weights.items()}}, path)
    return path


def test_official_layout_loads_strictly(checkpoint: Path, tmp_path: Path) -> None:
    model = schp.load(checkpoint)
    official = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(value, official[f"module.{key}"]) for key, value in model.state_dict().items())
    del official["module.edge.conv5.bias"]
    torch.save({"state_dict": official}, tmp_path / "short.pth")
    with pytest.raises(ValueError, match=r"edge\.conv5\.bias"):
        schp.load(tmp_path / "short.pth")


def test_hostile_checkpoints_are_refused(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (open, (str(tmp_path / "ran"), "w"))  # type: ignore[return-value]

    torch.save({"state_dict": Bomb()}, tmp_path / "bomb.pth")
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps(Bomb(), protocol=2))
    (tmp_path / "text.pth").write_text("weights")
    torch.save({"state_dict": {"fushion.3.bias": torch.zeros(7)}}, tmp_path / "pascal.pth")
    (tmp_path / "ran").unlink(missing_ok=True)
    for name in ("bomb", "pickle", "text", "pascal", "absent"):
        with pytest.raises(ValueError, match=f"{name}.pth"):
            schp.load(tmp_path / f"{name}.pth")
    assert not (tmp_path / "ran").exists()


def test_abn_by_hand() -> None:
    abn = schp.ABN(1)
    abn.weight.data, abn.bias.data = torch.tensor([-3.0]), torch.tensor([1.0])
    abn.running_mean, abn.running_var = torch.tensor([2.0]), torch.tensor([4.0 - 1e-5])
    # (x - 2) / 2 * 3.00001 + 1 is 4.00001 at x = 4, and -2.00001 at x = 0, leaky: -0.0200001
    assert abn(torch.tensor([4.0, 0.0]).view(1, 1, 1, 2)).flatten().tolist() == pytest.approx([4.00001, -0.0200001])


def test_letterbox_by_hand() -> None:
    # 5 rows, 3 columns into 9: k = 8/4 = 2; rows 0..4 to 0..8, columns 0..2 to 2..6
    box = schp.letterbox(5, 3, 9)
    assert (box @ [[0, 2, 1], [0, 4, 2], [1, 1, 1]]).tolist() == [[2, 6, 4], [0, 8, 4]]
    rgb = np.zeros((5, 3, 3), np.uint8)
    rgb[2, 1] = (255, 102, 51)
    square = schp.preprocess(rgb, 9)
    assert square.shape == (1, 3, 9, 9)
    # blue 51/255 = .2: (.2 - .406)/.225; green .4: (.4 - .456)/.224; red 1: (1 - .485)/.229
    assert square[0, :, 4, 4].tolist() == pytest.approx([-0.915556, -0.25, 2.248908], abs=1e-5)
    assert square[0, :, 4, 5].tolist() == pytest.approx([-1.36, -1.142857, 0.065502], abs=0.01)  # half of each, rounded
    assert square[0, :, 0, 0].tolist() == pytest.approx([-1.804444, -2.035714, -2.117904], abs=1e-5)  # black around


def test_postprocess_by_hand() -> None:
    # 3x3 logits up to 9x9 grow linearly from corner to corner: -4..4 over columns 0..8, label 1 right of the middle.
    # The picture's columns 0, 1, 2 stand at 2, 4, 6.
    plane = torch.tensor([-4.0, 0.0, 4.0]).expand(3, 3)
    labels = schp.postprocess(torch.stack([torch.full((3, 3), 0.5), plane])[None], (5, 3), 9)
    assert labels.tolist() == [[0, 0, 1]] * 5


def test_preprocess_and_postprocess_meet() -> None:
    """Labels put where the picture is come back where they were."""
    rgb = np.zeros((64, 40, 3), np.uint8)
    rgb[:, 10:20, 0], rgb[30:, 20:, 1] = 255, 255
    square = schp.preprocess(rgb, 127)
    red, green = square[:, 2:3], square[:, 1:2]
    labels = schp.postprocess(torch.cat([torch.zeros_like(red), red, green], 1), (64, 40), 127)
    truth = np.select([rgb[..., 0] > 0, rgb[..., 1] > 0], [1, 2], 0)
    assert (labels == truth).mean() > 0.99


def records(tmp_path: Path) -> Path:
    for n in range(3):
        picture(tmp_path / "in" / f"p{n}.jpg", n)
    assert main(["folder", "--images", str(tmp_path / "in"), "--out", str(tmp_path / "records")]) == 0
    return tmp_path / "records"


def test_stage_with_schp(tmp_path: Path, checkpoint: Path) -> None:
    argv = ["parse", "--records", str(records(tmp_path)), "--out", str(tmp_path / "out"), "--limit", "1"]
    assert main([*argv, "--schp", str(checkpoint)]) == 0
    assert validate(tmp_path / "out") == []
    (record,) = read_records(tmp_path / "out")
    assert record.maps is not None and record.maps.parts is not None
    parts = read_parts(tmp_path / "out" / record.maps.parts, (48, 36))
    assert len(np.unique(parts)) > 1 and set(np.unique(parts)) <= set(table(ATR))


def test_stage_with_transformers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["Background", "Hair", "Upper-clothes", "Left-leg"]
    config = SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 16],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=16,
        id2label=dict(enumerate(names)),
        label2id={n: i for i, n in enumerate(names)},
    )
    torch.manual_seed(0)
    SegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "model")
    SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "model")
    argv = ["parse", "--records", str(records(tmp_path)), "--out", str(tmp_path / "out")]
    assert main([*argv, "--model", str(tmp_path / "model")]) == 0
    values = {v for p in (tmp_path / "out/parts").iterdir() for v in np.unique(read_parts(p, (48, 36)))}
    assert values <= {Part.BACKGROUND, Part.HAIR, Part.UPPER, Part.LEFT_LEG}
    capsys.readouterr()
    (tmp_path / "nothing").mkdir()
    assert main([*argv[:-1], str(tmp_path / "other"), "--model", str(tmp_path / "nothing")]) == 2
    assert "can't be had" in (said := capsys.readouterr().err) and said.count("\n") == 1


def test_stage_with_maps(tmp_path: Path) -> None:
    folder = records(tmp_path)
    label_map(tmp_path / "maps/p0.png", 18)
    label_map(tmp_path / "maps/p1.png", 24)
    argv = ["parse", "--records", str(folder), "--out", str(tmp_path / "out"), "--maps", str(tmp_path / "maps")]
    assert main(argv) == 2
    assert main([*argv, "--scheme", "atr"]) == 1
    assert [r.id for r in read_records(tmp_path / "out")] == ["p0"]
    failures = [json.loads(line)["reason"] for line in (tmp_path / "out/failures.jsonl").read_text().splitlines()]
    assert "label 23 is not in the scheme" in failures[0] and "p2.png" in failures[1]
