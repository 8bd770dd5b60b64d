"""The synthetic wardrobe: valid records, always dressed, exact ground truth, the same bytes however it is made."""

import json
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from data_prep.__main__ import main
from data_prep.check import validate
from data_prep.wardrobe.dressing import dress, layers_of, pose_body
from data_prep.wardrobe.fabrics import WEAVES, Fabric
from data_prep.wardrobe.heads import HAIR_STYLES, draw_person
from data_prep.wardrobe.outfits import Outfit, caption, draw_outfit
from data_prep.wardrobe.prints import draw_words, words
from data_prep.wardrobe.synthetic import Sample, make_outfit, write_outfit
from data_prep.wardrobe.tailor import tailor
from data_prep.wardrobe.views import draw_pose, draw_yaw, face_size, shop_picture
from omfa.bodies.body import load_body
from omfa.bodies.named_poses import JOINT_LIMITS, NAMED_POSES
from omfa.bodies.parameters import BodyParameters
from omfa.bodies.placing import project
from omfa.components import CLOTHES, Category
from omfa.evaluation.judges import KINDS
from omfa.records.labels import LABEL_OF, Label
from omfa.records.prepared import read_records, record_files

SIZE = (128, 96)


@lru_cache(maxsize=1)
def samples() -> list[Sample]:
    return [s for index in range(8) for s in make_outfit(11, index, SIZE, views=2)]


def run(out: Path, *options: str) -> int:
    return main(["synthetic", "--out", str(out), "--size", "64x48", "--seed", "5", *options])


def contents(folder: Path) -> dict[str, bytes]:
    files = (f for f in folder.rglob("*") if f.is_file() and not f.name.startswith("."))
    return {str(f.relative_to(folder)): f.read_bytes() for f in files}


# ---------------------------------------------------------------------------------------------------- files


def test_same_bytes_for_any_number_of_workers_and_valid_records(tmp_path: Path) -> None:
    assert run(tmp_path / "one", "--records", "10", "--workers", "1") == 0
    assert run(tmp_path / "two", "--records", "10", "--workers", "2") == 0
    one = contents(tmp_path / "one")
    assert one == contents(tmp_path / "two")
    assert validate(tmp_path / "one") == []
    records = read_records(tmp_path / "one")
    assert len(records) == 10
    for record in records:
        assert set(record_files(record).values()) <= set(one) and {"labels", "limbs"} <= set(record_files(record))
        picture = np.array(Image.open(tmp_path / "one" / record.file_name))
        assert picture.shape == (64, 48, 3)
        assert record.pose is not None and record.pose.params is not None
        params = BodyParameters.load(tmp_path / "one" / record.pose.params)
        assert params.image_size == (64, 48)


def test_stopped_and_run_again_makes_what_one_run_makes(tmp_path: Path) -> None:
    assert run(tmp_path / "whole", "--records", "8") == 0
    assert run(tmp_path / "halves", "--records", "8", "--limit", "1") == 0
    assert run(tmp_path / "halves", "--records", "8") == 0
    assert contents(tmp_path / "whole") == contents(tmp_path / "halves")


@pytest.mark.parametrize("wrong", [["--records", "0"], ["--records", "4", "--size", "64"], ["--records", "x"]])
def test_a_wrong_call_is_refused(tmp_path: Path, wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["synthetic", "--out", str(tmp_path / "out"), *wrong])
    assert stop.value.code == 2
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------------------- pictures


def test_the_same_seed_and_index_give_the_same_pictures_alone_or_not() -> None:
    again = make_outfit(11, 1, SIZE, views=1)[0]
    before = samples()[2]
    assert again.record == before.record
    for name in ("person", "face", "pose_map", "labels", "parts", "joints"):
        assert np.array_equal(getattr(again, name), getattr(before, name)), name
    other = make_outfit(12, 1, SIZE, views=1)[0]
    assert not np.array_equal(other.person, before.person)


def test_everyone_is_dressed() -> None:
    for s in samples():
        worn = {g.category for g in s.record.garments}
        assert worn in ({Category.DRESS}, {Category.UPPER, Category.LOWER})
        visible = {c: (s.labels == v).mean() for c, v in LABEL_OF.items()}
        for category in worn:
            assert visible[category] > 0.01, (s.record.id, visible)
        cloth, skin = sum(visible.values()), ((s.labels == Label.SKIN) | (s.labels == Label.FACE)).mean()
        assert cloth > skin


def test_no_skin_on_the_torso_below_the_chest() -> None:
    """Wherever the torso is seen between chest and hips, it is cloth."""
    body = load_body()
    at = {name: body.joint_names.index(name) for name in ("spine2", "pelvis")}
    for s in samples():
        points = project(s.joints[[at["spine2"], at["pelvis"]]], s.params.K).round().astype(int)
        assert not np.isnan(points).any()
        torso = s.parts == 2
        rows = slice(*sorted((points[0, 1], points[1, 1])))
        bare = torso[rows] & np.isin(s.labels[rows], [Label.SKIN, Label.FACE])
        assert bare.sum() <= 0.01 * torso[rows].sum(), s.record.id


def test_pose_map_lies_on_the_person() -> None:
    for s in samples():
        body = cv2.erode((s.pose_map.max(2) > 8).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        assert s.person_mask[body].mean() > 0.97, s.record.id
        limbs = np.isin(s.labels, [Label.SKIN, Label.SHOES])
        assert (s.pose_map.max(2) > 8)[limbs].mean() > 0.8, s.record.id


def test_joints_are_where_the_parameters_put_them() -> None:
    body = load_body()
    for s in samples()[:4]:
        assert np.abs(body.posed(s.params).joints[0].numpy() - s.joints).max() < 1e-3
        parts = s.parts[s.parts > 0]
        assert set(np.unique(parts)) >= {1, 2}


def test_bodies_are_posed_as_the_body_model_poses_them() -> None:
    """All but the face, which the wardrobe shapes further."""
    body, t = load_body(), tailor()
    below = t.template[:, 1] < 0.45
    for s in samples()[:4]:
        person = draw_person(np.random.default_rng([11, 1, s.record.provenance["outfit"] // 2]))
        dressed = dress(person, draw_outfit(np.random.default_rng(0)))
        mine = pose_body(dressed.shape, dressed.joints, s.params.pose, s.params.expression).moved(s.params.transl)
        theirs = body.posed(s.params).vertices[0].numpy()
        assert np.abs(mine.vertices - theirs)[below].max() < 1e-3


def test_shop_pictures_stand_on_pure_white_and_fill_the_frame() -> None:
    for s in samples()[::2]:
        for category, picture in s.garments.items():
            mask = s.garment_masks[category]
            rim = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
            assert (rim == 255).all()
            far = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8)) == 0
            assert (picture[far] == 255).all()
            rows, columns = np.nonzero(mask)
            assert max(np.ptp(rows) / SIZE[0], np.ptp(columns) / SIZE[1]) > 0.75


def test_shop_picture_and_worn_picture_show_the_same_colours() -> None:
    for s in samples()[::2]:
        for category, value in (("upper", Label.UPPER), ("dress", Label.DRESS)):
            if category not in s.garments or abs(s.record.view_yaw or 0) > 30:
                continue
            worn = s.person[s.labels == value].astype(float)
            shop = s.garments[category][s.garment_masks[category]].astype(float)
            hue_worn, hue_shop = (c.mean(0) / c.mean() for c in (worn, shop))
            assert np.abs(hue_worn - hue_shop).max() < 0.2, s.record.id


def test_faces_are_near_the_front_and_show_skin() -> None:
    side = face_size(SIZE[1])
    assert side % 32 == 0 and side >= SIZE[1] / 2
    for s in samples()[::2]:
        assert s.face.shape == (side, side, 3)
        skin = np.array(draw_person(np.random.default_rng([11, 1, s.record.provenance["outfit"] // 2])).skin)
        middle = s.face[side // 3 : 2 * side // 3, side // 3 : 2 * side // 3].reshape(-1, 3) / 255
        share = middle.mean(0) / middle.mean()
        assert np.abs(share - skin / skin.mean()).max() < 0.3


# ---------------------------------------------------------------------------------------------------- draws


def outfits(count: int) -> list[Outfit]:
    return [draw_outfit(np.random.default_rng([0, 2, i])) for i in range(count)]


def test_every_garment_pattern_and_hair_style_comes_up() -> None:
    worn = [w for o in outfits(400) for w in o.worn]
    kinds = {w.cut.kind for w in worn}
    assert kinds == {
        "t-shirt", "long-sleeve top", "tank top", "shirt", "hoodie", "trousers", "shorts", "skirt", "dress"
    }  # fmt: skip
    for category in CLOTHES:
        assert {w.pattern.kind for w in worn if w.category == category} == set(KINDS)
    people = [draw_person(np.random.default_rng([0, 1, i])) for i in range(200)]
    assert {p.hair for p in people} == set(HAIR_STYLES)


def test_an_outfit_without_a_garment_is_refused() -> None:
    o = outfits(3)[0]
    with pytest.raises(ValueError, match="upper and lower"):
        Outfit((), o.tucked, o.shoe_height, o.shoe_colour, o.sole_colour, o.sock_colour, o.shoe_name)


def test_captions_name_every_garment() -> None:
    for o in outfits(50):
        words = caption(o)
        assert all(w.cut.kind in words for w in o.worn) and all(w.pattern.names[0] in words for w in o.worn)


def test_poses_keep_the_limits_and_yaws_the_front() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        _, pose = draw_pose(rng)
        assert (pose[1:] >= JOINT_LIMITS[1:, 0] - 1e-6).all() and (pose[1:] <= JOINT_LIMITS[1:, 1] + 1e-6).all()
    yaw = np.array([draw_yaw(rng, i % 4) for i in range(4000)])
    assert yaw.min() > -180 and yaw.max() <= 180
    assert 0.55 < (np.abs(yaw) <= 45).mean() < 0.85
    assert np.histogram(yaw, 12, (-180, 180))[0].min() > 20  # every side is seen


def test_a_skirt_is_one_surface_around_both_legs() -> None:
    """At every height, the legs of standing people lie inside the ring of cloth."""
    dressed = dress(
        draw_person(np.random.default_rng(3)), next(o for o in outfits(99) if o.worn[-1].cut.kind == "skirt")
    )
    skirt = dressed.garments[1].skirt
    assert skirt is not None
    for name in ("standing", "contrapposto"):
        posed = pose_body(dressed.shape, dressed.joints, NAMED_POSES[name])
        rings = layers_of(dressed, posed)["lower"].vertices.reshape(skirt.rings, -1, 3)
        for ring in rings[3:-1]:
            level = np.abs(posed.vertices[:, 1] - ring[:, 1].mean()) < 0.004
            near = posed.vertices[level & np.isin(tailor().dominant, [1, 2, 4, 5])]
            outline = np.ascontiguousarray(ring[:, [0, 2]], np.float32)
            depth = [cv2.pointPolygonTest(outline, (float(x), float(z)), True) for x, _, z in near]
            assert min(depth, default=0.0) > -0.01, name


def test_shop_picture_is_the_garment_of_the_template_not_of_the_wearer() -> None:
    o = outfits(1)[0]
    a, b = (shop_picture(o.worn[0], (64, 48))[0] for _ in range(2))
    assert np.array_equal(a, b)


def test_provenance_is_plain_json() -> None:
    s = samples()[0]
    assert json.loads(json.dumps(s.record.provenance)) == s.record.provenance
    assert torch.from_numpy(s.person).dtype == torch.uint8
    assert Label.HAIR in np.unique(np.stack([s.labels for s in samples()]))


def test_shoes_are_a_garment_where_they_are_seen_and_change_nothing_else() -> None:
    plain, shod = (make_outfit(3, 0, (64, 48), 3, shoes=shoes) for shoes in (False, True))
    for a, b in zip(plain, shod, strict=True):
        assert np.array_equal(a.person, b.person) and np.array_equal(a.face, b.face)
        assert all(np.array_equal(a.garments[c], b.garments[c]) for c in a.garments)
        more = [g for g in b.record.garments if g not in a.record.garments]
        assert [g.category for g in more] == [Category.SHOES] * bool((b.labels == Label.SHOES).any())
    assert any(len(a.record.garments) < len(b.record.garments) for a, b in zip(plain, shod, strict=True))
    shop, mask, params = (of["shoes"] for of in (shod[0].garments, shod[0].garment_masks, shod[0].garment_params))
    assert (shop[~mask] > 250).mean() > 0.9 and 0.1 < mask.mean() < 0.6
    joints = project(load_body().posed(params).joints[0].numpy()[[7, 8, 10, 11]], params.K).round().astype(int)
    assert all(mask[y, x] for x, y in joints)  # ankles and balls of both feet


def test_the_photographic_world_is_richer_and_as_exact() -> None:
    samples = [s for i in range(6) for s in make_outfit(11, i, SIZE, 1, portraits=True, photographic=True)]
    again = make_outfit(11, 3, SIZE, 1, portraits=True, photographic=True)[0]
    assert np.array_equal(again.person, samples[3].person)
    assert np.array_equal(again.garments["upper"], samples[3].garments["upper"])
    said = [g for s in samples for g in s.record.provenance["garments"].values()]
    assert len({g["fabric"]["weave"] for g in said}) > 2, "several weaves"
    assert any(g["variant"] for g in said), "richer patterns"
    for s in samples:
        assert s.portrait is not None and s.portrait_labels is not None
        apart = (s.labels == Label.BACKGROUND) & (s.portrait_labels == Label.BACKGROUND)
        difference = np.abs(s.person.astype(int) - s.portrait)[apart]
        assert np.median(difference) <= 2, "the same place, the same camera"


def test_a_share_of_the_outfits_is_photographic_and_each_is_wholly_so_or_not(tmp_path: Path) -> None:
    kinds = []
    for index in range(6):
        (line,) = write_outfit(
            f"o{index}", index, tmp_path, seed=11, size=(64, 48), records=4 * index + 1, photographic=0.5
        )
        person = np.asarray(Image.open(tmp_path / line["file_name"]))
        both = [make_outfit(11, index, (64, 48), 1, photographic=p)[0].person for p in (False, True)]
        kinds.append([np.array_equal(person, p) for p in both])
        assert line["provenance"].get("photographic", False) == kinds[-1][1]
    assert {tuple(k) for k in kinds} == {(True, False), (False, True)}


@pytest.mark.parametrize("share", ["1.5", "-1", "many", "nan"])
def test_a_share_that_is_none_is_refused(share: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(tmp_path, "--records", "4", f"--photographic={share}")
    assert "must be a number from 0 to 1" in capsys.readouterr().err


@pytest.mark.parametrize("weave", WEAVES)
def test_a_weave_is_as_bright_as_smooth_cloth_and_creases_bend_it(weave: str) -> None:
    u, v = np.random.default_rng(0).uniform(-0.3, 0.3, (2, 20000)).astype(np.float32)
    ironed, rumpled = Fabric(weave), Fabric(weave, 0.8, 5)
    assert abs(float(ironed.gain(u, v).mean()) - 1) < 0.1
    assert not ironed.bend(u, v).any()
    assert 0.05 < float(rumpled.bend(u, v).std()) < 0.6


def test_words_are_told_apart_and_fill_their_print() -> None:
    one, other = words("FOX", 1), words("BAY\n77", 1)
    assert one.shape == other.shape and np.abs(one - other).mean() > 0.05
    for shape in (one, other):
        ink = np.nonzero(shape > 0.5)
        assert max(np.ptp(ink[0]), np.ptp(ink[1])) > 0.7 * len(shape), "it fills the print"
    for seed in range(40):  # every kind of letter draws every text
        assert words(draw_words(np.random.default_rng(seed)), seed).max() > 0.5
