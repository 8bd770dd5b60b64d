"""The everyday calls: what can't be made is refused in a line, before a body is looked for or a step is taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import omfa.__main__ as door
from omfa.bodies.body import load_body
from omfa.bodies.named_poses import NAMED_POSES
from omfa.bodies.placing import place
from omfa.bodies.standing import standing
from omfa.orders import Order, PoseOf, named_pose
from omfa.pipeline import OMFAPipeline
from omfa.tasks import Estimate, NoEstimator, OMFAPipelineOutput
from tests.conftest import SIZE, make_compact

H, W = SIZE
BODY = place(load_body(), NAMED_POSES["standing"], image_size=SIZE)
FAST: dict[str, Any] = {"num_inference_steps": 1}


def picture(seed: int, size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8))


A, B, SHIRT, SKIRT, HEAD = map(picture, range(5))


def seeds(*numbers: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(n) for n in numbers]


@pytest.fixture(scope="module")
def model() -> OMFAPipeline:
    drafts = {"draft": "surface", "pose_style": "surface"}
    return make_compact(join="rows", portraits=True, accessories=["shoes"], **drafts)


@pytest.fixture
def pipe(model: OMFAPipeline) -> Iterator[OMFAPipeline]:
    """Whose estimator notes the photos that it is asked about."""
    model.pose_estimator = Estimator()
    yield model
    model.pose_estimator = None


class Estimator:
    def __init__(self) -> None:
        self.seen: list[Image.Image] = []

    def __call__(self, photo: Image.Image) -> Estimate:
        self.seen.append(photo)
        return Estimate(BODY, HEAD)


def steps_of(pipe: OMFAPipeline, call: Callable[[], object]) -> int:
    """How often the network is called."""
    calls: list[int] = []
    hook = pipe.unet.conv_in.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        call()
    finally:
        hook.remove()
    return len(calls)


def same(one: OMFAPipelineOutput, other: OMFAPipelineOutput) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one.images, other.images, strict=True))


# ------------------------------------------------------------------------------------------------------ a kept photo


def test_a_given_head_makes_a_new_picture_or_is_refused(pipe: OMFAPipeline) -> None:
    def on(**more: Any) -> OMFAPipelineOutput:
        return pipe.try_on(A, {"upper": SHIRT, "lower": SKIRT}, generator=seeds(0)[0], **FAST | more)

    assert same(on(), on(keep="photo")) and not same(on(), on(keep="others"))
    assert same(on(face=B), on(face=B, keep="others")) and not same(on(face=B), on())
    with pytest.raises(ValueError, match="keeps its face: leave out face=, or keep='others' for a new head"):
        on(face=B, keep="photo")
    with pytest.raises(ValueError, match="face: int is no picture"):
        on(face=5)
    head = {"photo": A, "garments": {"upper": SHIRT}, "face": HEAD}
    with pytest.raises(ValueError, match="own face"):
        Order(task="try-on", name="a", keep="photo", **head)
    assert set(Order(task="try-on", name="a", **head).make(pipe, **FAST)) == {"a"}


def test_a_kept_photo_has_its_own_pose(pipe: OMFAPipeline) -> None:
    for wrong in (picture(0, (H, H)), replace(BODY, image_size=(H, H))):
        with pytest.raises(ValueError, match=rf"pose: .* of {H}x{H} for .*{W}x{H}: give .* uncropped"):
            pipe.try_on(A, {"upper": SHIRT}, wrong, keep="photo", **FAST)
    assert pipe.try_on(A, {"upper": SHIRT}, BODY, keep="photo", **FAST).images[0].size == A.size
    kept: dict[str, Any] = {"task": "try-on", "name": "a", "photo": A, "garments": {"upper": SHIRT}, "keep": "photo"}
    for pose in (named_pose("waving", SIZE), PoseOf(B)):
        with pytest.raises(ValueError, match="own pose: give no other, or keep 'others'"):
            Order(**kept, pose=pose)
    for pose, needed in ((None, True), (BODY, False), (PoseOf(A.copy()), True)):
        assert Order(**kept, pose=pose).needs_estimator is needed


def test_a_missing_pose_asks_for_what_would_help(model: OMFAPipeline) -> None:
    with pytest.raises(NoEstimator, match=r"^pose is missing .* pass pose= .the photo's own") as said:
        model.try_on(A, {"upper": SHIRT}, keep="photo")
    assert "face" not in str(said.value)
    with pytest.raises(NoEstimator, match=r"^pose and face are missing .* pose= .* and face= "):
        model.try_on(A, {"upper": SHIRT}, keep="others")
    with pytest.raises(NoEstimator, match=r"^face is missing .* pass face= \(a head crop\), or"):
        model.turntable(A, {"upper": SHIRT}, BODY)


# -------------------------------------------------------------------------------------------------------- bad calls


BAD: dict[str, tuple[str, tuple[Any, ...], dict[str, Any], str]] = {
    "a word for keep": ("transfer", (A, B), {"keep": "foto"}, "keep='foto' must be"),
    "nobody to wear it": ("transfer", (A, None), {}, "needs target=, the photo of who shall"),
    "nobody who wears it": ("transfer", (None, B), {}, "needs source=, the photo of who wears"),
    "a source of numbers": ("transfer", (5, B), {}, "source: int is no picture"),
    "a category of numbers": ("transfer", (A, B, 5), {}, r"categories \[5\] must be some of upper"),
    "a kind of file": ("transfer", (A, B), {"output_type": "gif"}, "output_type 'gif'"),
    "a face that is not there": ("transfer", (A, B), {"face": "gone.png"}, "gone.png: no such file"),
    "a head for a kept photo": ("transfer", (A, B), {"face": HEAD, "keep": "photo"}, "keeps its face"),
    "three for two": ("transfer", (A, [A, B]), {"face": [HEAD] * 3}, "in a batch of 3; give 1 or 3"),
    "two dresses": ("try_on", (A, {"dress": [[SHIRT, SKIRT]]}), {}, "two dresses can't be worn at once"),
    "a hat": ("try_on", (A, {"upper": SHIRT, "hat": SKIRT}), {}, "has not learned hat"),
    "no steps": ("try_on", (A, {"upper": SHIRT}), {"num_inference_steps": 0}, "1 or more"),
    "an unknown shirt": ("try_on", (A, {"lower": "gone.png"}), {"keep": "others"}, "gone.png: no such file"),
    "no portrait in a list": ("try_on", ([], {"upper": SHIRT}), {}, "an empty list for portrait"),
    "a hat to take off": ("try_off", (A, "hat"), {}, "has not learned hat"),
    "nothing to take off": ("try_off", (A, []), {}, r"categories \[\] must be some of upper"),
    "half a word": ("try_off", (A, [["upper"]]), {}, r"categories \[\['upper'\]\] must be"),
    "a hat all around": ("turntable", (A, {"upper": SHIRT, "hat": SKIRT}), {}, "has not learned hat"),
    "views of words": ("turntable", (A, {"upper": SHIRT}), {"views": "3"}, "views is '3'; give a whole number"),
    "half a view": ("turntable", (A, {"upper": SHIRT}), {"views": 2.5}, "views is 2.5; give a whole number"),
    "no word for keep": ("turntable", (A, {"upper": SHIRT}), {"keep": "zzz"}, "keep='zzz' must be 'others'"),
    "a photo all around": ("turntable", (A, {"upper": SHIRT}), {"keep": "photo"}, "makes new pictures"),
    "a flat pose": ("turntable", (A, {"upper": SHIRT}, B), {}, "needs body parameters to turn"),
    "targets in lists": ("__call__", ([["person"]],), {"garments": {"upper": SHIRT}}, r"targets \[\['person'\]\] must"),
    "targets in dicts": ("__call__", ([{}],), {"garments": {"upper": SHIRT}}, r"targets \[{}\] must be some of"),
    "a list of poses": ("__call__", (["person"],), {"garments": {"upper": SHIRT}, "garment_poses": [BODY]},
                        "garment_poses must map categories to BodyParameters, .* got list"),
    "a wrong pose": ("__call__", (["person"],), {"garments": {"upper": SHIRT}, "garment_poses": {"upper": 5}},
                     "must be BodyParameters, 1 of them, for"),
    "a photo without its pose": ("__call__", (["person"],), {"garments": {"upper": SHIRT}, "portrait": A},
                                 "portrait= needs pose=.* or call try_on, which estimates it"),
    "masks": ("__call__", (["person"],), {"garments": {"upper": SHIRT}, "portrait": A, "pose": BODY,
                                          "portrait_mask": [A, A]}, "portrait_mask holds 2: give 1$"),
    "a number": ("__call__", (["person"],), {"garments": {"upper": 5}}, "^upper: int is no picture"),
    "a set": ("__call__", (["person"],), {"garments": {"lower": {1}}}, "^lower: set is no picture"),
    "a second layer": ("__call__", (["person"],), {"garments": {"upper": [[SHIRT, 5]], "lower": SKIRT}},
                       "^upper, layer 2: int is no picture"),
    "two of three": ("__call__", (["person"],), {"garments": {"upper": [[SHIRT]] * 3, "lower": [[SKIRT]] * 2}},
                     "^2 pictures for lower in a batch of 3"),
    "generators": ("__call__", (["upper"], A), {"generator": seeds(0, 1)}, "2 generators in a batch of 1; give one"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_calls_are_refused_at_once(name: str, pipe: OMFAPipeline) -> None:
    method, args, more, words = BAD[name]

    def call() -> None:
        with pytest.raises(ValueError, match=words) as said:
            getattr(pipe, method)(*args, **FAST | more)
        assert "\n" not in str(said.value) and "garment_1" not in str(said.value)

    assert steps_of(pipe, call) == 0
    assert isinstance(pipe.pose_estimator, Estimator) and not pipe.pose_estimator.seen


def test_nobody_in_the_target_is_said_before_anything_is_taken_off(pipe: OMFAPipeline) -> None:
    def nobody(photo: Image.Image) -> Estimate:
        raise ValueError("nobody is in it")

    pipe.pose_estimator = nobody

    def call() -> None:
        with pytest.raises(ValueError, match="nobody is in it"):
            pipe.transfer(A, B, **FAST)

    assert steps_of(pipe, call) == 0


def test_an_order_of_what_is_not_learned_looks_for_no_body(pipe: OMFAPipeline) -> None:
    worn = {"upper": SHIRT, "hat": SKIRT}
    for order in (
        Order(task="try-on", name="a", garments=worn, pose=PoseOf(A)),
        Order(task="turntable", name="a", photo=A, garments=worn),
        Order(task="transfer", name="a", photo=A, source=B, categories=("hat",), pose=PoseOf(A)),
    ):
        with pytest.raises(ValueError, match="has not learned hat"):
            order.make(pipe, **FAST)
    assert isinstance(pipe.pose_estimator, Estimator) and not pipe.pose_estimator.seen
    with pytest.raises(ValueError, match="a turntable makes new pictures"):
        Order(task="turntable", name="a", photo=A, keep="photo")


# ------------------------------------------------------------------------------------------------- what works instead


@pytest.mark.parametrize("more", [{}, {"pose": BODY, "face": HEAD}, {"keep": "photo"}, {"keep": None}])
def test_generators_say_how_many_pictures_come_of_one_photo(pipe: OMFAPipeline, more: dict[str, Any]) -> None:
    worn = {"upper": SHIRT, "lower": SKIRT}
    assert len(pipe.try_on(A, worn, generator=seeds(0, 1), **FAST | more).images) == 2
    assert isinstance(pipe.pose_estimator, Estimator) and len(pipe.pose_estimator.seen) == (0 if "face" in more else 1)
    out = pipe.transfer(A, B, generator=seeds(0, 1), **FAST | more)
    assert len(out.images) == 2 and not np.array_equal(*out.images)


def test_a_turntable_keeps_others_or_nothing(pipe: OMFAPipeline) -> None:
    def turned(keep: Any) -> set[str]:
        return set(pipe.turntable(A, {"upper": SHIRT}, BODY, HEAD, views=1, keep=keep, **FAST).garments)

    assert turned("auto") == turned("others") == {"upper", "lower"} and turned(None) == {"upper"}


def test_a_body_beside_a_garment_s_picture_is_read(model: OMFAPipeline, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "model")
    for name, shown in (("shirt", SHIRT), ("boots", SKIRT), ("photo", A), ("head", HEAD)):
        shown.save(tmp_path / f"{name}.png")
    BODY.save(tmp_path / "photo.npz")

    def words(command: str) -> list[str]:
        worn = [
            w for c, n in (("upper", "shirt"), ("shoes", "boots")) for w in ("--garment", f"{c}={tmp_path / n}.png")
        ]
        looks = ["--face", f"{tmp_path}/head.png", "--pose", f"{tmp_path}/photo.npz", "--keep", "nothing"]
        photo = [] if command == "try-on" else [f"{tmp_path}/photo.png", "--views", "1"]
        return [command, *photo, *worn, *looks, "--steps", "1", "--model", f"{tmp_path}/model", "-o", f"{tmp_path}/out"]

    def made(command: str) -> np.ndarray:
        assert door.main(words(command)) == 0
        return np.asarray(Image.open(tmp_path / "out" / {"try-on": "try_on.png"}.get(command, "photo_000.png")))

    commands = ("try-on", "turntable")
    without = [made(c) for c in commands]
    feet = standing(load_body(), "lower", SIZE)
    feet.save(tmp_path / "boots.npz")
    for command, before in zip(commands, without, strict=True):
        (order,) = (call := door.parser().parse_args(words(command))).prepare(call, [])
        assert order.garment_poses["upper"] == [None]
        assert np.array_equal(order.garment_poses["shoes"][0].transl, feet.transl)
        assert not np.array_equal(made(command), before)
    (tmp_path / "boots.npz").write_text("no body")
    assert door.main(words("try-on")) == 2
