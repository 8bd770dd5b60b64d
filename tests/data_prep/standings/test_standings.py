"""The stage that gives garment pictures their bodies, and the training of what it asks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.__main__ import main
from data_prep.run import write_image
from data_prep.standings import cloth_reach, garment_standing
from data_prep.standings.garment_standing import JOINTS, KEPT, Joints, joints_in, vary
from data_prep.wardrobe.cuts import Cut
from data_prep.wardrobe.synthetic import write_outfit
from omfa.bodies.body import load_body
from omfa.bodies.parameters import BodyParameters
from omfa.bodies.predicted_standing import SIDE, Stand
from omfa.records.prepared import METADATA, Record, read_records

SIZE = (128, 96)


@pytest.fixture(scope="module")
def wardrobe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two outfits of a person, two pictures each; the shop pictures of the first have lost their bodies."""
    folder = tmp_path_factory.mktemp("wardrobe")
    lines = [
        line for k in (0, 1) for line in write_outfit(f"s31-o{k}", k, folder, seed=31, size=SIZE, records=4 * k + 2)
    ]
    records = [Record.from_json(json.dumps(line)) for line in lines]
    lost = [replace(g, pose=None) for g in records[0].garments]
    records = [replace(r, garments=lost) if r.outfit_id == "s31-o0" else r for r in records]
    (folder / METADATA).write_text("".join(r.to_json() + "\n" for r in records))
    return folder


def test_every_garment_gets_a_body(wardrobe: Path, tmp_path: Path) -> None:
    assert main(["garment-poses", "--records", str(wardrobe), "--out", str(tmp_path / "out")]) == 0
    for before, after in zip(read_records(wardrobe), read_records(tmp_path / "out"), strict=True):
        for old, new in zip(before.garments, after.garments, strict=True):
            assert new.pose is not None
            found = BodyParameters.load(tmp_path / "out" / new.pose)
            exact = BodyParameters.load(wardrobe / new.path.replace(".png", ".npz"))  # still there, told by no record
            told = after.provenance["garment_poses"][new.category.value]
            assert told == ("predicted" if old.pose is None else "given")
            apart = np.abs(joints_in(load_body(), found) - joints_in(load_body(), exact))[[0, 1, 2, 7, 8]]
            assert apart.max() < (0.12 * SIZE[0] if old.pose is None else 1e-6)
        assert (tmp_path / "out" / "contact" / f"{after.id}.jpg").is_file()
    assert (tmp_path / "out" / "contact_001.jpg").is_file()


def test_what_is_told_where_nothing_can_be(wardrobe: Path, tmp_path: Path) -> None:
    """A garment on a carpet has its category's body; a cut-out of a person whom nobody posed has none."""
    folder = tmp_path / "in"
    first, other = read_records(wardrobe)[:2]
    for r in (first, other):
        write_image(folder / r.file_name, np.full((*SIZE, 3), 128, np.uint8))
    carpet = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)
    write_image(folder / "garment/a.png", carpet)
    shop, cut = replace(first.garments[0], path="garment/a.png", mask=None), first.garments[0]
    cut = replace(cut, path="garment/a.png", mask=None, kind="cutout", source_id="elsewhere")
    bare = [
        replace(r, face=None, pose=None, maps=None, portrait=None, garments=(g,))
        for r, g in ((first, shop), (other, cut))
    ]
    (folder / METADATA).write_text("".join(r.to_json() + "\n" for r in bare))
    assert main(["garment-poses", "--records", str(folder), "--out", str(tmp_path / "out")]) == 0
    on_carpet, cut_out = read_records(tmp_path / "out")
    kind = shop.category.value
    assert on_carpet.garments[0].pose == "garment/a.npz"
    assert on_carpet.provenance["garment_poses"][kind].startswith("category: ")
    assert Stand.of(load_body(), BodyParameters.load(tmp_path / "out/garment/a.npz")).arms == pytest.approx(52)
    assert cut_out.garments[0].pose is None and cut_out.provenance["garment_poses"][kind].startswith("none: ")


def test_a_missing_picture_is_a_failure(wardrobe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / METADATA).write_text(read_records(wardrobe)[0].to_json() + "\n")
    assert main(["garment-poses", "--records", str(folder), "--out", str(tmp_path / "out")]) == 1
    assert "missing" in (tmp_path / "out" / "failures.jsonl").read_text()


# ---------------------------------------------------------------------------------------------------- training


def test_joints_of_a_stand_are_the_bodys() -> None:
    """Differentiable joints against the body's own, posed and projected."""
    stands = [Stand(30, 4, -9, 0.8, 0.04, -0.1), Stand(80, 0, 5, 1.5, -0.02, 0.3)]
    numbers = torch.tensor([[s.arms, s.legs, s.yaw, np.log(s.scale), s.x, s.y] for s in stands], dtype=torch.float32)
    found = Joints(load_body())(numbers, torch.ones(2)) * 200 + torch.tensor([74.5, 99.5])
    for stand, at in zip(stands, found, strict=True):
        assert np.abs(joints_in(load_body(), stand.params(load_body(), (200, 150))) - at.numpy()).max() < 0.05


def test_variations_move_joints_with_the_picture() -> None:
    """A dot at a joint is found where the varied joint is said to be."""
    pictures, joints = torch.zeros(32, 4, KEPT, KEPT, dtype=torch.uint8), torch.zeros(32, len(JOINTS), 2)
    pictures[:, :, 52:57, 40:45] = 255  # its middle is at (42, 54)
    joints[:, :] = (torch.tensor([42.0, 54.0]) - (KEPT - 1) / 2) / SIDE
    x, at, _ = vary(pictures, joints, torch.Generator().manual_seed(0))
    for picture, there in zip(x, at, strict=True):
        dark = (-picture.mean(0) - 0.5).clamp_min(0)
        if dark.sum() > 2:  # nearly white cloth shows too little
            grid = torch.stack(torch.meshgrid(torch.arange(1.0 * SIDE), torch.arange(1.0 * SIDE), indexing="xy"), -1)
            middle = (grid * dark[..., None]).sum((0, 1)) / dark.sum()
            assert (middle - (there[0] * SIDE + (SIDE - 1) / 2)).norm() < 1.5


def test_standings_are_learned(capsys: pytest.CaptureFixture[str]) -> None:
    """Squares of many places: after a few epochs the body stands where the square is."""
    g = torch.Generator().manual_seed(0)
    count = 128
    stands = torch.tensor([[50.0, 0, 0, 0.0, 0, 0]]).repeat(count, 1)
    stands[:, 5] = 0.2 * torch.rand(count, generator=g) - 0.1
    pictures = torch.zeros(count, 4, KEPT, KEPT, dtype=torch.uint8)
    for picture, y in zip(pictures, stands[:, 5].tolist(), strict=True):
        middle = round(KEPT / 2 + SIDE * y)
        picture[:, middle - 16 : middle + 16, 30:66] = 255
    joints_of, height = Joints(load_body()), torch.ones(count)
    on = torch.ones(count, len(JOINTS), dtype=torch.bool)
    data = garment_standing.Examples(
        pictures, joints_of(stands, height), on, height, stands, torch.zeros(count, dtype=torch.long)
    )
    net = garment_standing.train(data, epochs=12)
    rim = (KEPT - SIDE) // 2
    shown = -pictures[:, :3, rim:-rim, rim:-rim].float() / 127.5
    with torch.no_grad():
        found = net(shown, data.kinds)
    assert (found[:, 5] - stands[:, 5]).abs().mean() < 0.5 * (stands[:, 5] - stands[:, 5].mean()).abs().mean()


def test_reaches_are_those_of_the_cut() -> None:
    short, long = (cloth_reach.reach_of(Cut("t-shirt", 0.5, hem)) for hem in (-0.04, -0.10))
    assert long[1] - short[1] == pytest.approx(0.06, abs=0.015) and long[0] == pytest.approx(short[0], abs=0.01)
    assert cloth_reach.reach_of(Cut("long-sleeve top", 0.5, -0.08, 0.7))[2] > short[2] + 0.1
    assert cloth_reach.reach_of(Cut("trousers", 0.5, -0.95, 0.0))[1] > 0.85
