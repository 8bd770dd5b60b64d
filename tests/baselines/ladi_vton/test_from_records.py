from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from omfa.baselines.ladi_vton.from_records import (
    Examples,
    body_keypoints,
    cloth_of,
    ids_of_parts,
    keypoints_of,
    labels_of,
    person_of,
)
from omfa.baselines.ladi_vton.masks import inpaint_mask
from omfa.bodies.body import PARTS, load_body
from omfa.bodies.named_poses import NAMED_POSES
from omfa.bodies.placing import place
from omfa.components import CLOTHES, Category
from omfa.records.labels import ATR, CIHP, Label, Part, table
from omfa.records.prepared import GarmentRef, KeypointsRef, Maps, PoseRef, Record, RecordError
from tests.baselines.ladi_vton import tiny
from tests.baselines.ladi_vton.golden import read
from tests.records.writing import write_records

SIZE = (256, 192)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A record with a part map, keypoints and two garments, one of them with its mask."""
    photo, labels, points = tiny.person()
    photo.save(tmp_path / "a.png")
    Image.fromarray(table(ATR)[labels]).save(tmp_path / "parts.png")
    said = {"people": [{"pose_keypoints_2d": points.flatten().tolist()}]}
    (tmp_path / "a.json").write_text(json.dumps(said))
    tiny.garment().save(tmp_path / "shirt.png")
    Image.fromarray(np.pad(np.full((140, 90), 255, np.uint8), ((30, 30), (30, 30)))).save(tmp_path / "shirt_mask.png")
    write_records(tmp_path, [record()])
    return tmp_path


def record() -> Record:
    garments = (GarmentRef(Category.UPPER, "shirt.png", mask="shirt_mask.png"), GarmentRef(Category.LOWER, "shirt.png"))
    maps, points = Maps(parts="parts.png"), KeypointsRef("a.json", "openpose-18")
    return Record("a", "train", "p", "o", "a.png", garments=garments, maps=maps, keypoints=points)


def test_parts_go_back_into_the_ids_they_came_from() -> None:
    """Both data sets' masks, from part maps as the records keep them, are the published ones but for skirts."""
    golden = read("dataset_masks")
    points = golden["dresscode.keypoints.full"].numpy()
    body25 = golden["vitonhd.full.body25"].numpy()[[*range(8), *range(9, 19)], :2] / 2
    for rules, names, keypoints in (("vitonhd", CIHP, body25), ("dresscode", ATR, points)):
        labels = golden[f"parse_{rules}"].numpy()
        folder = Path("unused")
        for category in CLOTHES if rules == "dresscode" else [Category.UPPER]:
            ids = _through_parts(folder, labels, names, category, rules)
            if category is not Category.LOWER:
                made, stored = (inpaint_mask(x, keypoints, category, rules) for x in (ids, labels))  # type: ignore[arg-type]
                assert (made == stored).all(), (rules, category)
            else:
                assert (ids[labels == 5] == 6).all()  # skirts are lower garments


def _through_parts(
    folder: Path, labels: np.ndarray, names: tuple[str, ...], category: Category, rules: str
) -> np.ndarray:
    from omfa.baselines.ladi_vton import from_records

    parts = table(names)[labels]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(from_records, "part_map", lambda *_: parts)
        return labels_of(folder, record(), category, rules)  # type: ignore[arg-type]


def test_a_record_becomes_inputs(folder: Path) -> None:
    examples = Examples(str(folder), SIZE)
    assert len(examples) == 2
    both = Examples.collate([examples[(0, 0)], examples[(0, 1)]])
    assert both.inputs.photo.shape == both.worn.shape == (2, 3, *SIZE)
    upper, lower = both.inputs.mask[:, 0] > 0
    labels = tiny.person()[1]
    assert upper[labels == 4].all() and lower[labels == 6].all()
    for mask in (upper, lower):
        assert not mask[np.isin(labels, (9, 2))].any()  # shoes
    assert not upper[25:45, 85:107].any()  # face
    hands = np.isin(labels, (14, 15)) & (np.arange(256)[:, None] > 147)
    assert not lower[hands].any()
    assert examples[(0, 0)].seed == examples[(0, 0)].seed != examples[(1, 0)].seed


def test_a_garment_is_white_outside_its_mask(folder: Path) -> None:
    cloth = cloth_of(folder, record().garments[0], SIZE)
    assert cloth[:, :, 0].min() > 0.99 and cloth[0, 128, 96] < 0.99
    Image.fromarray(np.full((200, 150), 100, np.uint8)).save(folder / "shirt_mask.png")  # the evaluator's threshold
    assert cloth_of(folder, record().garments[0], SIZE).min() == 1


def test_an_example_is_the_same_in_every_epoch_but_for_its_seed(folder: Path) -> None:
    """Keypoints are found once a record."""
    examples = Examples(str(folder), SIZE)
    first, again = examples[(0, 0)], examples[(1, 0)]
    assert torch.equal(first.inputs.pose, again.inputs.pose) and torch.equal(first.inputs.mask, again.inputs.mask)
    (folder / "a.json").unlink()
    assert torch.equal(examples[(2, 1)].inputs.pose, first.inputs.pose)


def test_the_wardrobes_labels_and_limbs_are_read_too(folder: Path) -> None:
    labels = np.full((256, 192), Label.BACKGROUND, np.uint8)
    labels[100:150] = Label.SKIN
    limbs = np.zeros_like(labels)
    limbs[100:110], limbs[110:120] = 1 + PARTS.index("left_hand"), 1 + PARTS.index("right_shin")
    for name, picture in {"l.png": labels, "m.png": limbs}.items():
        Image.fromarray(picture).save(folder / name)
    ids = labels_of(folder, replace(record(), maps=Maps(labels="l.png", limbs="m.png")), Category.UPPER, "dresscode")
    assert (ids[105] == 14).all() and (ids[115] == 13).all() and (ids[140] == 11).all()


def test_a_bodys_joints_are_where_openpose_looks_for_them() -> None:
    body = load_body()
    params = place(body, NAMED_POSES["standing"], image_size=SIZE)
    points = body_keypoints(params, SIZE)
    half = body_keypoints(params, (128, 96))
    assert np.allclose(half + 0.5, (points + 0.5) / 2, atol=1e-3)  # pixel centres at whole numbers
    assert (points > 0).all()
    with pytest.raises(ValueError, match="192x256 for one of 256x256"):
        body_keypoints(params, (256, 256))
    x, y = points.T
    assert x[2] < x[1] < x[5] and x[4] < x[7]  # the person's right is on the picture's left
    assert y[0] < y[1] < y[8] < y[9] < y[10] < SIZE[0]
    assert y[14] < y[0] and x[16] < x[14] < x[0] < x[15] < x[17]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"maps": None}, "data_prep parse"),
        ({"keypoints": None}, "data_prep pose-maps"),
        ({"maps": Maps(parts="a.png")}, "mode RGB"),
        ({"maps": Maps(parts="shirt_mask.png")}, "values up to 22"),
        ({"maps": Maps(labels="shirt_mask.png")}, "values up to 8"),
        ({"maps": Maps(parts="wide.png")}, "does not fit a photo"),
        ({"keypoints": None, "pose": PoseRef(params="none.npz")}, "none.npz"),
    ],
)
def test_what_is_wrong_with_a_record_is_said_with_its_name(folder: Path, change: dict, said: str) -> None:
    Image.fromarray(np.zeros((100, 192), np.uint8)).save(folder / "wide.png")
    with pytest.raises(RecordError, match=rf"^a: .*{said}"):
        person_of(folder, replace(record(), **change), Category.UPPER, "dresscode", SIZE)


def test_nothing_to_wear_is_told(folder: Path) -> None:
    with pytest.raises(RecordError, match="no record"):
        Examples(str(folder), SIZE, categories=[Category.DRESS])
    assert (
        len(Examples(str(folder), SIZE, rules="vitonhd")) == len(Examples(str(folder), SIZE, categories=["upper"])) == 1
    )
    with pytest.raises(ValueError, match="no rule of vitonhd for dress"):
        Examples(str(folder), SIZE, rules="vitonhd", categories=["dress"])
    with pytest.raises(ValueError, match="'shoes' must be one of"):
        Examples(str(folder), SIZE, categories=["shoes"])


def test_points_not_seen_stay_so(folder: Path) -> None:
    points = keypoints_of(folder, record(), SIZE)
    assert points.shape == (18, 2) and not points[9].any()
    person = person_of(folder, record(), Category.UPPER, "dresscode", (256, 256))  # padded on both sides
    assert not person.keypoints[9].any() and person.keypoints[0, 0] == points[0, 0] + 32
    assert torch.isfinite(person.photo).all()


def test_a_dress_takes_the_place_of_a_top_and_trousers() -> None:
    """All that such a person wears is repainted; beside a dress, a jacket stays what it was."""
    parts = np.array([[Part.UPPER, Part.PANTS, Part.SKIRT, Part.SHOES, Part.LEFT_ARM, Part.FACE]], np.uint8)
    assert ids_of_parts(parts, Category.DRESS, "dresscode").tolist() == [[7, 7, 7, 9, 14, 11]]
    assert ids_of_parts(parts, Category.UPPER, "dresscode").tolist() == [[4, 6, 5, 9, 14, 11]]
    with_dress = np.array([[Part.DRESS, Part.OUTER]], np.uint8)
    assert ids_of_parts(with_dress, Category.DRESS, "dresscode").tolist() == [[7, 4]]
