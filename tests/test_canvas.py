"""The canvas: geometry, join and split, masks, slot codes."""

from __future__ import annotations

import pytest
import torch

from omfa.canvas import Canvas
from omfa.components import JOINT, TRY_OFF, TRY_ON, Category, Component, State, Task, TaskKind


def test_geometry_of_the_papers_canvas() -> None:
    canvas = Canvas((128, 96), garments=1, multiple=4)
    assert [(s.name, s.left, s.height, s.width) for s in canvas.slots] == [
        ("person", 0, 128, 96),
        ("garment_1", 96, 128, 96),
        ("face", 192, 48, 48),
    ]
    assert canvas.size == (128, 240)


def test_face_is_half_the_person_rounded_up_to_four_latents() -> None:
    assert [Canvas((32, w), multiple=4)["face"].width for w in (16, 20, 24, 28)] == [8, 12, 12, 16]


@pytest.mark.parametrize("garments", [1, 2])
def test_split_undoes_join_and_the_filler_is_zero(garments: int) -> None:
    canvas = Canvas((16, 12), garments)
    parts = {s.name: torch.randn(2, 4, s.height, s.width) for s in canvas.slots}
    joint = canvas.join(parts)
    assert all(torch.equal(canvas.split(joint)[name], part) for name, part in parts.items())
    covered = canvas.mask([set(parts)] * 2).expand_as(joint)
    assert (joint[~covered] == 0).all() and not covered.all()


def test_mask_marks_each_examples_own_slots() -> None:
    canvas = Canvas((16, 12))
    mask = canvas.mask([{"person"}, {"garment_1", "face"}])
    assert mask.dtype == torch.bool and mask.shape == (2, 1, *canvas.size)
    assert mask[0].sum() == 16 * 12 and mask[1].sum() == 16 * 12 + 8 * 8
    assert not (mask[0] & mask[1]).any()


@pytest.mark.parametrize("channels", [4, 8])
def test_slot_codes_tell_slots_and_places_apart_and_leave_the_person_alone(channels: int) -> None:
    canvas = Canvas((16, 12))
    codes = canvas.split(canvas.slot_codes(channels))
    assert (codes["person"] == 0).all()
    places = torch.cat([codes[s].flatten(1) for s in ("garment_1", "garment_2", "face")], 1).T
    apart = torch.cdist(places, places) + torch.eye(len(places))
    assert apart.min() > 0.01  # neighbours on the crest of a wave are the nearest
    two = torch.cdist(codes["garment_1"].flatten(1).T, codes["garment_2"].flatten(1).T)
    assert two.min() > 1
    flipped = codes["garment_1"].flip(-1)
    assert not torch.allclose(flipped, codes["garment_1"]), "left and right must not look alike"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"person": (16, 10)}, "multiple of 4"),
        ({"person": (0, 12)}, "multiple of 4"),
        ({"person": (16, 12), "garments": 3}, "1 or 2"),
        ({"person": (16, 12), "multiple": 16}, "multiple of 16"),
    ],
)
def test_canvases_the_unet_cannot_halve_are_refused(call: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Canvas(**call)


def test_garments_take_their_slots() -> None:
    two, one = Canvas((16, 12)), Canvas((16, 12), 1)
    assert two.place([Category.LOWER, Category.UPPER]) == {"lower": "garment_2", "upper": "garment_1"}
    assert two.place([Category.DRESS]) == {"dress": "garment_1"}
    assert one.place([Category.LOWER]) == {"lower": "garment_1"}
    with pytest.raises(ValueError, match="takes the place"):
        two.place([Category.DRESS, Category.LOWER])
    with pytest.raises(ValueError, match="2 garments for 1"):
        one.place([Category.UPPER, Category.LOWER])


def test_join_refuses_wrong_sizes() -> None:
    canvas = Canvas((16, 12))
    with pytest.raises(ValueError, match="at least one"):
        canvas.join({})
    with pytest.raises(ValueError, match="person is"):
        canvas.join({"person": torch.zeros(1, 4, 12, 16)})


def test_tasks() -> None:
    present = {"person": Component.PERSON, "garment_1": Component.GARMENT, "face": Component.FACE}
    assert TRY_ON.states(present) == {"person": State.TARGET, "garment_1": State.GIVEN, "face": State.GIVEN}
    assert TRY_OFF.states(present) == {"person": State.GIVEN, "garment_1": State.TARGET, "face": State.GIVEN}
    assert [t.kind for t in (TRY_ON, TRY_OFF, JOINT)] == [TaskKind.TRY_ON, TaskKind.TRY_OFF, TaskKind.JOINT]
    for bad in (frozenset(), frozenset({Component.FACE})):
        with pytest.raises(ValueError):
            Task(bad)
