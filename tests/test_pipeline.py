"""The Python API: what goes in, what comes out, and that nothing given is touched."""

from __future__ import annotations

from pathlib import Path

import accelerate
import diffusers
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image

from omfa.bodies.body import load_body
from omfa.bodies.named_poses import NAMED_POSES
from omfa.bodies.placing import place
from omfa.images import ImageError
from omfa.partial_diffusion import SCHEDULERS
from omfa.pipeline import OMFAPipeline
from tests import figures
from tests.conftest import make_compact, make_sdxl

FAST = {"num_inference_steps": 3}


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def person(name: str = "ann") -> Image.Image:
    return Image.fromarray(figures.draw_person(name, 0, 0))


def shirt(name: str = "ann") -> Image.Image:
    return Image.fromarray(figures.draw_garment(name, 0, figures.Category.UPPER))


def trousers(name: str = "ann") -> Image.Image:
    return Image.fromarray(figures.draw_garment(name, 0, figures.Category.LOWER))


def pose(i: int = 0) -> Image.Image:
    return Image.fromarray(figures.draw_pose(i))


def face(name: str = "ann") -> Image.Image:
    return Image.fromarray(figures.draw_face(name))


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(int)


def test_try_off_makes_garments_and_hands_back_the_person(pipe: OMFAPipeline) -> None:
    out = pipe.try_off(person(), ["upper", "lower"], generator=gen(), **FAST)
    assert set(out.garments) == {"upper", "lower"}
    assert out.images[0].size == (48, 64)
    assert (pixels(out.person[0]) == pixels(person())).all()
    assert (pixels(out.garments["upper"][0]) != pixels(out.garments["lower"][0])).any()


def test_try_on_general_call(pipe: OMFAPipeline) -> None:
    out = pipe(["person"], garments={"upper": shirt()}, face=face(), pose=pose(), generator=gen(), **FAST)
    assert out.images[0].size == (48, 64)
    assert (pixels(out.garments["upper"][0]) == pixels(shirt())).all()


def test_joint_task(compact: OMFAPipeline) -> None:
    out = compact(["person", "upper"], garments={"lower": trousers()}, pose=pose(), generator=gen(), **FAST)
    assert len(out.person) == 1 and set(out.garments) == {"upper", "lower"}


def test_same_seed_same_picture_and_another_seed_another(pipe: OMFAPipeline) -> None:
    a, b, c = (pipe.try_off(person(), generator=gen(s), output_type="np", **FAST).images for s in (1, 1, 2))
    assert (a == b).all() and (a != c).any()


def test_batch_equals_loop(pipe: OMFAPipeline) -> None:
    names = ["ann", "ben"]
    call = {"output_type": "latent", **FAST}
    both = pipe(
        ["person"],
        garments={"upper": [shirt(n) for n in names], "lower": [trousers(n) for n in names]},
        face=[face(n) for n in names],
        pose=[pose(0), pose(1)],
        generator=[gen(0), gen(1)],
        **call,
    ).images
    for i, n in enumerate(names):
        worn = {"upper": shirt(n), "lower": trousers(n)}
        one = pipe(["person"], garments=worn, face=face(n), pose=pose(i), generator=gen(i), **call).images
        assert torch.allclose(both[i], one[0], atol=1e-4)


def test_save_load_same_picture(pipe: OMFAPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "saved")
    again = OMFAPipeline.from_pretrained(tmp_path / "saved")
    again.set_progress_bar_config(disable=True)
    assert again.canvas == pipe.canvas
    a, b = (p.try_off(person(), generator=gen(), output_type="np", **FAST).images for p in (pipe, again))
    assert (a == b).all()
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "saved" / "unet")  # its plain diffusers class
    assert unet.config.in_channels == 13
    assert AutoencoderKL.from_pretrained(tmp_path / "saved" / "vae").config.latent_channels == 4


@pytest.fixture(params=["v_prediction", "epsilon"], scope="module")
def own(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> OMFAPipeline:
    """A pipeline whose scheduler may be changed: compact (v, zero terminal SNR) or SDXL-shaped (epsilon)."""
    return make_compact() if request.param == "v_prediction" else make_sdxl(tmp_path_factory.mktemp("own"))


ZERO_SNR = {"DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"}
ZERO_SNR |= {"EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "LCMScheduler"}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_given_latents_are_bit_identical_with_every_scheduler(own: OMFAPipeline, name: str) -> None:
    """What the network sees on given slots never changes by a bit, at any step; nor does what comes out."""
    before, seen = own.scheduler, list[torch.Tensor]()
    own.scheduler = getattr(diffusers, name).from_config(before.config, clip_sample=False)
    hook = own.unet.conv_in.register_forward_pre_hook(lambda m, a: seen.append(a[0].clone()))
    call = {"generator": gen(), "output_type": "latent", "num_inference_steps": 6}
    try:
        if before.config.prediction_type == "v_prediction" and name not in ZERO_SNR:
            with pytest.raises(ValueError, match=f"{name} can't hold this model's betas with zero terminal SNR"):
                own.try_off(person(), **call)
            return
        out = own.try_off(person(), **call).images
    finally:
        hook.remove()
        own.scheduler = before
    given = own.canvas.split(seen[0][1:, :4])["person"]
    assert given.abs().sum() > 0 and len(seen) >= 6 and torch.isfinite(out).all()
    for x in seen:
        assert torch.equal(own.canvas.split(x[1:, :4])["person"], given)
        assert own.canvas.split(x[:1, :4])["person"].abs().sum() == 0  # the unconditional half sees nothing given
    assert torch.equal(own.canvas.split(out)["person"], given)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_takes_both_prediction_types(compact: OMFAPipeline, name: str) -> None:
    pipe = OMFAPipeline(**compact.components, person_size=figures.SIZE)
    pipe.set_progress_bar_config(disable=True)
    for kind in ("epsilon", "v_prediction"):
        betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
        config = dict(betas, prediction_type=kind, clip_sample=False)
        pipe.scheduler = getattr(diffusers, name).from_config(config)
        assert torch.isfinite(pipe.try_off(person(), num_inference_steps=6, output_type="latent").images).all()


@pytest.mark.parametrize(
    ("scheduler", "words"),
    [
        (diffusers.TCDScheduler(), "TCDScheduler is not supported"),
        (diffusers.FlowMatchEulerDiscreteScheduler(), "FlowMatchEulerDiscreteScheduler is not supported"),
        (diffusers.EDMEulerScheduler(), "EDMEulerScheduler is not supported"),
        (diffusers.DDIMScheduler(prediction_type="sample", clip_sample=False), "prediction_type 'sample'"),
        (diffusers.DDIMScheduler(rescale_betas_zero_snr=True, clip_sample=False), "divides by zero"),
        (diffusers.DDIMScheduler(), "clip_sample=True"),
    ],
)
def test_schedulers_that_cannot_work_are_refused_by_name(scheduler: object, words: str) -> None:
    pipe = make_compact()
    pipe.scheduler = scheduler
    with pytest.raises(ValueError, match=words):
        pipe.try_off(person(), **FAST)


@pytest.mark.parametrize("kind", ["path", "pil", "uint8", "float", "tensor"])
def test_every_kind_of_picture_gives_the_same_result(compact: OMFAPipeline, tmp_path: Path, kind: str) -> None:
    array = np.asarray(person())
    person().save(tmp_path / "p.png")
    given = {
        "path": tmp_path / "p.png",
        "pil": person(),
        "uint8": array,
        "float": array.astype(np.float32) / 255,
        "tensor": torch.from_numpy(array.copy()).permute(2, 0, 1).float() / 255,
    }[kind]
    expected = compact.try_off(person(), generator=gen(), output_type="np", **FAST).images
    assert (compact.try_off(given, generator=gen(), output_type="np", **FAST).images == expected).all()


def test_output_types(compact: OMFAPipeline) -> None:
    call = {"generator": None, **FAST}
    assert compact.try_off(person(), output_type="np", **call).images.shape == (1, 64, 48, 3)
    assert compact.try_off(person(), output_type="pt", **call).images.shape == (1, 3, 64, 48)
    assert compact.try_off(person(), output_type="latent", **call).images.shape == (1, 4, *compact.canvas.size)
    assert isinstance(compact.try_off(person(), return_dict=False, **call), tuple)


def test_aspect_of_the_pose_comes_back(compact: OMFAPipeline) -> None:
    wide = pose().resize((60, 40))
    out = compact(["person"], garments={"upper": shirt()}, pose=wide, **FAST)
    assert out.images[0].size == (48, 32)


def test_callback_sees_steps_and_may_stop(compact: OMFAPipeline) -> None:
    steps: list[int] = []

    def watch(
        pipe: OMFAPipeline, step: int, t: torch.Tensor, tensors: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        steps.append(step)
        pipe._interrupt = step == 1
        return tensors

    compact.try_off(person(), num_inference_steps=5, callback_on_step_end=watch)
    assert steps == [0, 1]


def test_guidance_off_is_one_pass(compact: OMFAPipeline) -> None:
    sizes: list[int] = []
    hook = compact.unet.conv_in.register_forward_pre_hook(lambda m, a: sizes.append(len(a[0])))
    compact.try_off(person(), guidance_scale=1.0, **FAST)
    compact.try_off(person(), guidance_scale=2.0, **FAST)
    hook.remove()
    assert sizes == [1] * 3 + [2] * 3


def test_keep_others_takes_the_rest_from_the_portrait(compact: OMFAPipeline) -> None:
    out = compact.try_on(person("ben"), {"upper": shirt()}, pose=pose(), face=face("ben"), generator=gen(), **FAST)
    assert set(out.garments) == {"upper", "lower"}
    alone = compact.try_on(person("ben"), {"upper": shirt()}, pose=pose(), face=face("ben"), keep=None, **FAST)
    assert set(alone.garments) == {"upper"}


def test_transfer(compact: OMFAPipeline) -> None:
    out = compact.transfer(
        person("ann"), person("ben"), "upper", pose=pose(), face=face("ben"), generator=gen(), **FAST
    )
    assert out.images[0].size == (48, 64) and set(out.garments) == {"upper", "lower"}


def test_a_turntable_is_seeded_with_any_scheduler() -> None:
    pipe, body = make_compact(), load_body()
    pipe.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    standing = place(body, NAMED_POSES["standing"], image_size=figures.SIZE)
    call = {"garments": {"upper": shirt()}, "pose": standing, "views": 2, "output_type": "np", **FAST}
    a, b = (pipe.turntable(None, generator=gen(3), **call).images for _ in range(2))
    assert a.shape[0] == 2 and (a == b).all() and (a[0] != a[1]).any()


def test_a_turntable_shows_one_person(compact: OMFAPipeline, tmp_path: Path) -> None:
    standing = place(load_body(), NAMED_POSES["standing"], image_size=figures.SIZE)
    standing.save(tmp_path / "pose.npz")
    call = {"garments": {"upper": shirt()}, "pose": tmp_path / "pose.npz", "views": 2, **FAST}
    assert len(compact.turntable(None, generator=gen(3), **call).images) == 2
    with pytest.raises(ValueError, match="one person"):
        compact.turntable(None, **call | {"garments": {"upper": [shirt(), shirt()]}})
    with pytest.raises(ValueError, match="one generator"):
        compact.turntable(None, generator=[gen(0), gen(1)], **call)
    with pytest.raises(ValueError, match="must map"):
        compact.turntable(None, **call | {"garments": shirt()})


def test_numbers_of_numpy_are_numbers(compact: OMFAPipeline) -> None:
    call = {"targets": ["upper"], "person": person("ann"), "output_type": "latent"}
    a, b = (
        compact(**call, generator=gen(0), num_inference_steps=steps, guidance_scale=scale).images
        for steps, scale in ((2, 1.5), (np.int64(2), np.float32(1.5)))
    )
    assert torch.equal(a, b)


def test_latents_that_cannot_be_are_refused(compact: OMFAPipeline) -> None:
    call = {"targets": ["upper"], "person": person("ann"), "output_type": "latent", **FAST}
    like = compact(**call).images
    with pytest.raises(ValueError, match="finite"):
        compact(**call, latents=torch.full_like(like, torch.nan))
    with pytest.raises(ValueError, match="callback returned latents"):
        compact(**call, callback_on_step_end=lambda *_: {"latents": torch.zeros(1)})


def test_one_source_for_several_portraits(compact: OMFAPipeline) -> None:
    call = {"pose": pose(), "face": face("ben"), "generator": [gen(0), gen(1)], **FAST}
    assert len(compact.transfer(person("ann"), [person("ben"), person("ann")], "upper", **call).images) == 2
    assert len(compact.try_on(person("ben"), {"upper": shirt()}, **call).images) == 2


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"targets": ["upper"], "person": "P", "garments": {"tie": "G"}}, "'tie'"),
        ({"targets": ["upper"], "person": "P", "garments": ["G"]}, "must map"),
        ({"targets": ["upper"], "person": []}, "empty list"),
        ({"targets": None, "person": "P"}, "targets"),
        ({"targets": ["upper"], "person": "P", "num_inference_steps": 2.5}, "whole number"),
        ({"targets": ["upper"], "person": "P", "num_inference_steps": True}, "whole number"),
        ({"targets": ["upper"], "person": "P", "guidance_scale": float("inf")}, "finite number"),
        ({"targets": ["upper"], "person": "P", "guidance_scale": "2"}, "finite number"),
        ({"targets": ["upper"], "person": "P", "eta": float("nan")}, "finite number"),
        ({"targets": ["upper"], "person": "P", "generator": 0}, "torch.Generator"),
        ({"targets": 5, "person": "P"}, "targets"),
        ({"targets": ["person"]}, "always dressed"),
        ({"targets": ["person"], "face": "FACE"}, "always dressed"),
        ({"targets": ["upper"]}, "needs person="),
        ({"targets": []}, "targets"),
        ({"targets": ["tie"], "person": "P"}, "targets"),
        ({"targets": ["face"], "person": "P"}, "targets"),
        ({"targets": ["person"], "person": "P", "garments": {"upper": "G"}}, "at once"),
        ({"targets": ["upper"], "person": "P", "garments": {"upper": "G"}}, "at once"),
        ({"targets": ["dress", "upper"], "person": "P"}, "takes the place"),
        ({"targets": ["upper"], "person": ["P", "P", "P"], "face": ["F", "F"]}, "in a batch of 3"),
        ({"targets": ["upper"], "person": "P", "generator": [gen(0), gen(1)]}, "2 generators"),
        ({"targets": ["upper"], "person": "P", "num_inference_steps": 0}, "1 or more"),
        ({"targets": ["upper"], "person": "P", "output_type": "gif"}, "output_type"),
        ({"targets": ["upper"], "person": "missing.png"}, "missing.png"),
        ({"targets": ["upper"], "person": np.full((64, 48, 3), np.nan)}, "NaN"),
    ],
)
def test_wrong_calls_are_refused_with_a_cure(compact: OMFAPipeline, call: dict, words: str) -> None:
    pictures = {"P": person(), "G": shirt(), "F": face(), "FACE": face()}

    def filled(v: object) -> object:
        if isinstance(v, str):
            return pictures.get(v, v)
        if isinstance(v, dict):
            return {k: filled(x) for k, x in v.items()}
        return [filled(x) for x in v] if isinstance(v, list) else v

    with pytest.raises(ValueError, match=words):
        compact(**{k: v if k == "targets" else filled(v) for k, v in call.items()})


def test_a_photo_without_pose_names_the_cure(compact: OMFAPipeline) -> None:
    with pytest.raises(ValueError, match="pose_estimator"):
        compact.try_on(person(), {"upper": shirt()})


def test_image_errors_are_value_errors() -> None:
    assert issubclass(ImageError, ValueError)


@pytest.mark.parametrize("name", ["nowhere", "./nothing/here", "a/b/c"])
def test_from_pretrained_refuses_what_is_no_model(name: str) -> None:
    with pytest.raises(ValueError, match="no model folder"):
        OMFAPipeline.from_pretrained(name)


def test_weights_may_lie_elsewhere_between_calls() -> None:
    """accelerate's sequential offloading, on the CPU: every module brings its weights when it is called."""
    expected = make_compact().try_off(person(), generator=gen(), output_type="np", **FAST).images
    pipe = make_compact()
    for module in (pipe.vae, pipe.unet, pipe.slot_tokens):
        accelerate.cpu_offload(module, torch.device("cpu"))
    assert (pipe.try_off(person(), generator=gen(), output_type="np", **FAST).images == expected).all()


@pytest.mark.gpu
@pytest.mark.parametrize("offload", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offloading_gives_the_same_picture(offload: str) -> None:
    expected = make_compact().to("cuda").try_off(person(), generator=gen(), output_type="np", **FAST).images
    pipe = make_compact()
    getattr(pipe, offload)()
    got = pipe.try_off(person(), generator=gen(), output_type="np", **FAST).images
    assert np.abs(got - expected).max() < 2 / 255


def test_a_model_brings_its_own_steps_and_guidance(compact: OMFAPipeline, tmp_path: Path) -> None:
    plain = OMFAPipeline(**compact.components, person_size=figures.SIZE)
    assert (plain.config.default_steps, plain.config.default_guidance) == (50, 2.0)
    own = OMFAPipeline(**compact.components, person_size=figures.SIZE, default_steps=2, default_guidance=1.0)
    own.save_pretrained(tmp_path)
    assert OMFAPipeline.sampler_defaults(tmp_path) == (2, 1.0)
    read = OMFAPipeline.from_pretrained(tmp_path)
    read.set_progress_bar_config(disable=True)
    sizes: list[int] = []
    hook = read.unet.conv_in.register_forward_pre_hook(lambda m, a: sizes.append(len(a[0])))
    read.try_off(person())
    read.try_off(person(), num_inference_steps=1, guidance_scale=2.0)
    hook.remove()
    assert sizes == [1, 1, 2]
