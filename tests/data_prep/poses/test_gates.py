"""Fits that can't be right are told from good ones; no landmark model is needed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from data_prep.poses.fitting import Fit, fit
from data_prep.poses.gates import doubt, measured
from data_prep.poses.landmarks import ID, Landmarks
from omfa.bodies.body import Body, load_body
from omfa.bodies.named_poses import NAMED_POSES
from omfa.bodies.placing import place
from omfa.bodies.pose_render import person_mask
from tests.data_prep.poses.test_fitting import seen


@pytest.fixture(scope="module")
def body() -> Body:
    return load_body()


def judged(body: Body, person: Landmarks) -> str:
    found = fit([person], body)[0]
    return doubt(measured(found, person_mask(body, found.params)))


def standing(body: Body, name: str = "standing", yaw: float = 0.0) -> Landmarks:
    params = place(body, NAMED_POSES[name], yaw=yaw, image_size=(256, 192))
    return replace(seen(body, params), mask=person_mask(body, params))


@pytest.mark.parametrize("name", ["standing", "walking", "arms_crossed", "sitting", "lunge", "waving"])
@pytest.mark.parametrize("yaw", [0, 70, 180])
def test_good_fits_are_believed(body: Body, name: str, yaw: float) -> None:
    assert judged(body, standing(body, name, yaw)) == ""


def test_landmarks_that_no_body_can_have_are_not(body: Body) -> None:
    """Feet where the hands are and hands where the feet are, in the picture and in space."""
    person = standing(body)
    points, world = person.points.copy(), person.world.copy()
    for side in ("left", "right"):
        a, b = ID[f"{side}_ankle"], ID[f"{side}_wrist"]
        points[[a, b]], world[[a, b]] = points[[b, a]], world[[b, a]]
    assert "off by" in judged(body, replace(person, points=points, world=world))


def test_a_leg_seen_the_other_way_is_not(body: Body) -> None:
    """Space says that the shins point up, the picture that they point down."""
    person = standing(body)
    world = person.world.copy()
    for side in ("left", "right"):
        knee = world[ID[f"{side}_knee"]]
        for name in ("ankle", "heel", "toe"):
            world[ID[f"{side}_{name}"]] = 2 * knee - world[ID[f"{side}_{name}"]]
    assert "limb" in judged(body, replace(person, world=world))


def test_a_body_beside_the_person_is_not(body: Body) -> None:
    person = standing(body)
    assert "lie on the person" in judged(body, replace(person, mask=np.roll(person.mask, 60, axis=1)))


def test_what_nobody_measured_is_believed(body: Body) -> None:
    params = place(body, NAMED_POSES["standing"])
    found = Fit(params, np.random.default_rng(0).uniform(0, 900, (55, 2)), np.ones(55), {}, "import")
    assert measured(found, np.ones(params.image_size, bool)).residuals == {} and doubt(found) == ""


@pytest.mark.parametrize("name", ["reprojection", "bone_degrees", "limb_degrees", "inside"])
def test_no_number_is_within_no_limit(body: Body, name: str) -> None:
    found = fit([standing(body)], body)[0]
    assert doubt(found) == "" and doubt(replace(found, residuals=found.residuals | {name: np.nan}))


def test_a_body_nowhere_in_the_picture_is_not_believed(body: Body) -> None:
    found = fit([standing(body)], body)[0]
    for outline in (found.outline, None):
        assert "0%" in doubt(measured(replace(found, outline=outline), np.zeros((256, 192), bool)))
