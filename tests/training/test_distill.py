"""Distillation of whole pipelines: the loss by hand, runs that resume exactly, models that say what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import DDIMScheduler, LCMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

from omfa import export
from omfa.fit import main as fit
from omfa.pipeline import OMFAPipeline
from omfa.sdxl import load_small, sdxl_pipeline, text_encoders
from omfa.training.checkpoints import last_checkpoint
from omfa.training.distill import Distillation
from omfa.training.ema import EMA, lent
from omfa.training.examples import ExampleOptions, Geometry, RecordsDataset, collate
from omfa.training.zero import trained
from omfa.tuning import merge_lora
from tests.conftest import SIZE, UNET, VAE, make_compact
from tests.test_recipes import recipe, tiny
from tests.test_sdxl import silent

JOINS = ["canvas", "rows"]


def moved(module: Distillation, seed: int) -> dict[str, torch.Tensor]:
    """Other weights near a module's own."""
    g = torch.Generator().manual_seed(seed)
    return {name: p.detach() + 0.02 * torch.randn(p.shape, generator=g) for name, p in trained(module)}


@pytest.mark.parametrize("join", JOINS)
@pytest.mark.parametrize("phased", [False, True])
def test_the_loss_is_the_definition_s(join: str, phased: bool, records: Path) -> None:
    """Example by example: the pipeline's own guided prediction, diffusers' DDIM, three sets of weights."""
    module = Distillation(make_compact(join=join), 2, phased, 8, (2.0, 2.0), 0.01)
    pipe, ladder = module.pipe, module.ladder
    teacher = DDIMScheduler.from_config(make_compact().scheduler.config)
    teacher.set_timesteps(8)
    data = RecordsDataset(records, Geometry.of(pipe), ExampleOptions(draws=2 if join == "rows" else 1))
    batch = collate([data[0, i] for i in range(3)])
    batch.unconditional[:] = [False, True, False]
    student, average = moved(module, 1), moved(module, 2)
    module.average = EMA()
    module.average.weights = average
    with torch.no_grad(), lent(module, student, cast=True):
        losses = module.losses(batch)

    scene, expected = module.scene(batch), torch.zeros(3)
    with torch.no_grad():
        for weights in (module.teacher, average, student):
            with lent(module, weights, cast=True):
                look = scene.look()
                if weights is module.teacher:
                    t = ladder.at(scene.t)
                    abar = teacher.alphas_cumprod[t].view(-1, 1, 1, 1)
                    z = torch.where(look.target, abar.sqrt() * scene.z0 + (1 - abar).sqrt() * scene.noise, look.known)
                    u, c = look.without(torch.where(look.target, z, 0), t), look.predict(z, t)
                    each = zip(u + 2 * (c - u), t, z, strict=True)
                    z_next = torch.cat([teacher.step(p[None], int(n), x[None]).prev_sample for p, n, x in each])
                    z_next = torch.where(look.target, z_next, z)
                    at, x = t - 125, z_next
                else:
                    at, x = (t - 125, z_next) if weights is average else (t, z)
                    v, landed = look.predict(x, at.clamp(min=0)), []
                    for i in range(len(t)):
                        a = 1.0 if at[i] < 0 else float(teacher.alphas_cumprod[at[i]])
                        last = int(t[i]) // 500 * 500 - 1 if phased else -1
                        b = 1.0 if last < 0 else float(teacher.alphas_cumprod[last])
                        x0, eps = a**0.5 * x[i] - (1 - a) ** 0.5 * v[i], (1 - a) ** 0.5 * x[i] + a**0.5 * v[i]
                        landed.append(b**0.5 * x0 + (1 - b) ** 0.5 * eps)
                    if weights is average:
                        goal = landed
        for b in range(3):
            errors = []
            for i in (scene.owner == b).nonzero().flatten().tolist():
                off = (landed[i] - goal[i])[look.target[i].expand_as(goal[i])]
                errors.append((off.square().mean() + 0.01**2).sqrt() - 0.01)
            expected[b] = torch.stack(errors).mean()
    assert (losses > 1e-3).all()
    torch.testing.assert_close(losses, expected, atol=1e-5, rtol=1e-3)


def test_autocast_takes_no_set_of_weights_for_another(records: Path) -> None:
    """Autocast keeps the casts of a parameter: of the teacher's, while the average is lent, if nobody clears them."""
    module = Distillation(make_compact(), 2, True, 8, (2.0, 2.0), 0.01)
    data = RecordsDataset(records, Geometry.of(module.pipe), ExampleOptions())
    batch = collate([data[0, i] for i in range(3)])
    student, module.average = moved(module, 1), EMA()
    module.average.weights = moved(module, 2)
    losses = []
    for mixed in (False, True):
        with torch.no_grad(), lent(module, student, cast=True), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            losses.append(module.losses(batch))
    torch.testing.assert_close(losses[1], losses[0], rtol=0.03, atol=0)


@pytest.mark.parametrize("join", JOINS)
def test_teacher_and_average_get_no_gradient_and_given_parts_no_loss(join: str, records: Path) -> None:
    module = Distillation(make_compact(join=join), 1, teacher_steps=4)
    data = RecordsDataset(records, Geometry.of(module.pipe), ExampleOptions())
    before = {name: p.clone() for name, p in trained(module)}
    module.losses(collate([data[0, i] for i in range(2)])).mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for _, p in trained(module))
    assert all(torch.equal(p, before[name]) for name, p in trained(module))  # what was lent is given back
    assert not any(w.requires_grad for w in module.teacher.values())


def test_scales_are_drawn_from_the_example(records: Path) -> None:
    module = Distillation(make_compact(), guidance=(1.5, 3.0))
    data = RecordsDataset(records, Geometry.of(module.pipe), ExampleOptions())
    batch = collate([data[e, i] for e in range(8) for i in range(8)])
    scales = module.scales(batch)
    assert torch.equal(scales, module.scales(batch)) and 1.5 <= scales.min() < 1.7 and 2.8 < scales.max() <= 3.0
    assert abs(float(scales.mean()) - 2.25) < 0.2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"teacher_steps": 30}, "must divide"),
        ({"steps": 3, "phased": True}, "must divide"),
        ({"steps": 51}, "51 steps"),
        ({"guidance": (3.0, 2.0)}, "lowest first"),
        ({"guidance": (0.5, 2.0)}, "lowest first"),
        ({"huber": 0.0}, "huber 0.0"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Distillation(make_compact(), **options)


def test_a_student_is_no_teacher_and_takes_no_guidance() -> None:
    pipe = Distillation(make_compact(join="rows"), 2, teacher_steps=8).pipe
    with pytest.raises(ValueError, match="distilled already"):
        Distillation(pipe)
    person, seeds = np.full((*SIZE, 3), 90, np.uint8), [torch.Generator().manual_seed(s) for s in (0, 1)]
    with pytest.raises(ValueError, match=r"guidance_scale is 2.0: this model was distilled.*leave guidance_scale out"):
        pipe.try_off(person, guidance_scale=2.0)
    sizes: list[int] = []
    hook = pipe.unet.conv_in.register_forward_pre_hook(lambda m, a: sizes.append(len(a[0])))
    pipe.try_off(person)
    hook.remove()
    assert sizes == [1, 1, 1]  # the photo once, and two steps of one pass
    both = pipe.try_off([person, person], ["upper", "lower"], generator=seeds, output_type="latent").images
    one = pipe.try_off(person, ["upper", "lower"], generator=[torch.Generator().manual_seed(1)], output_type="latent")
    torch.testing.assert_close(both[2:], one.images, atol=1e-4, rtol=1e-3)  # new noise is the example's, too


@pytest.mark.parametrize(
    ("phased", "steps", "words"),
    [(True, 4, "distilled by phases, one a step, and takes 2"), (False, 9, "from 8 steps; give 1 to 8")],
)
def test_steps_that_were_not_learned_are_refused(phased: bool, steps: int, words: str) -> None:
    pipe = Distillation(make_compact(join="rows"), 2, phased, 8).pipe
    person = np.full((*SIZE, 3), 90, np.uint8)
    with pytest.raises(ValueError, match=f"num_inference_steps is {steps}: this model was .*{words}"):
        pipe.try_off(person, num_inference_steps=steps)


def compact_run(records: Path, run: Path, stop: int, join: str, phased: bool, path: Path) -> list[str]:
    pipeline = {"vae": VAE, "unet": UNET, "person_size": list(SIZE), "token_dim": 32, "join": join}
    made = {"class_path": "omfa.compact.compact_pipeline", "init_args": pipeline}
    model = {"pipeline": made, "steps": 2, "phased": phased, "teacher_steps": 4, "learning_rate": 1e-3}
    callbacks = [{"class_path": "omfa.training.ema.EMA"}, {"class_path": "omfa.training.checkpoints.SaveModel"}]
    config = {
        "seed_everything": 0,
        "trainer": {"default_root_dir": str(run), "accelerator": "cpu", "max_steps": stop, "callbacks": callbacks},
        "model": {"class_path": "omfa.training.distill.Distillation", "init_args": model},
        "data": {
            "class_path": "omfa.training.examples.RecordsDataModule",
            "init_args": {"folder": str(records), "batch_size": 2},
        },
    }
    path.write_text(yaml.safe_dump(config))
    return ["--config", str(path), "--ckpt_path=last"]


@pytest.mark.parametrize(("join", "phased"), [("canvas", True), ("rows", False)])
def test_a_run_resumes_exactly_and_its_model_says_what_it_is(
    join: str, phased: bool, records: Path, tmp_path: Path
) -> None:
    for run, stops in (("whole", [4]), ("halves", [2, 4])):
        for stop in stops:
            assert fit(compact_run(records, tmp_path / run, stop, join, phased, tmp_path / "a.yaml")) == 0
    ends = [last_checkpoint(tmp_path / run / "checkpoints") for run in ("whole", "halves")]
    one, two = (torch.load(end, weights_only=True) for end in ends if end is not None)
    assert all(torch.equal(one["state_dict"][k], two["state_dict"][k]) for k in one["state_dict"])
    assert one["state_dict"].keys() == two["state_dict"].keys()
    averages = [next(v for k, v in c["callbacks"].items() if k.startswith("EMA"))["weights"] for c in (one, two)]
    assert all(torch.equal(averages[0][k], averages[1][k]) for k in averages[0])
    assert export.main(["--run", str(tmp_path / "whole"), "--out", str(tmp_path / "out")]) == 0
    for folder in (tmp_path / "whole" / "model", tmp_path / "out"):
        pipe = silent(OMFAPipeline.from_pretrained(folder))
        assert pipe.config.distilled and OMFAPipeline.sampler_defaults(folder) == (2, 1.0)
        assert type(pipe.scheduler) is (DDIMScheduler if phased else LCMScheduler)
        made = pipe.try_off(np.full((*SIZE, 3), 90, np.uint8), output_type="np").images
        assert np.isfinite(made).all()
    assert "2 steps, one pass each" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("drawn", [{"steps": 2, "guidance": 2.0}, {"steps": 20, "guidance": 1.0}])
def test_sample_pictures_that_no_student_makes_are_refused_at_once(
    drawn: dict[str, Any], records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = compact_run(records, tmp_path / "run", 2, "canvas", True, tmp_path / "a.yaml")
    config = yaml.safe_load((tmp_path / "a.yaml").read_text())
    pictures = {"class_path": "omfa.training.sample_pictures.SamplePictures", "init_args": drawn}
    config["trainer"]["callbacks"] = [pictures]
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(config))
    assert fit(call) == 2
    assert "give SamplePictures steps: 2, guidance: 1.0; " in capsys.readouterr().err


@pytest.fixture(scope="module")
def teacher(inpainting: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole tiny SDXL model, as a run leaves it; its new channels do something."""
    folder = tmp_path_factory.mktemp("teacher") / "model"
    torch.manual_seed(0)
    pipe = sdxl_pipeline(str(inpainting), None, None, SIZE)
    torch.nn.init.normal_(pipe.unet.conv_in.weight, std=0.1)
    pipe.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("train", ["all", "lora"])
def test_recipes_of_few_steps_train_and_their_models_load(
    train: str, teacher: Path, latents: Path, records: Path, tmp_path: Path
) -> None:
    layers = ["few_steps", *(["few_steps_lora"] if train == "lora" else [])]
    run = tmp_path / "run"
    swap = tiny(teacher, latents, records, run, max_steps=2, accumulate_grad_batches=1)
    swap["trainer"]["callbacks"] = [  # type: ignore[index]
        {"class_path": "omfa.training.ema.EMA"}, {"class_path": "omfa.training.checkpoints.SaveModel"}
    ]  # fmt: skip
    assert fit(recipe(layers, swap, tmp_path / "tiny.yaml")) == 0
    shown = yaml.safe_load((run / "config.yaml").read_text())["model"]
    assert shown["class_path"] == "omfa.training.distill.Distillation"
    assert shown["init_args"]["gradient_checkpointing"] and shown["init_args"]["phased"]
    whole = OMFAPipeline.from_pretrained(run / "model") if train == "all" else load_small(run / "model", str(teacher))
    assert whole.config.distilled and (whole.config.default_steps, whole.config.default_guidance) == (4, 1.0)
    assert isinstance(whole.scheduler, DDIMScheduler) and whole.scheduler.config.set_alpha_to_one
    assert np.isfinite(silent(whole).try_off(np.full((*SIZE, 3), 90, np.uint8), output_type="np").images).all()
    if train == "all":
        return
    assert export.main(["--run", str(run), "--out", str(tmp_path / "merged"), "--whole"]) == 0
    merged = OMFAPipeline.from_pretrained(tmp_path / "merged")
    assert merged.config.distilled
    person, seed = np.full((*SIZE, 3), 90, np.uint8), torch.Generator().manual_seed
    made = [silent(p).try_off(person, output_type="np", generator=seed(0)).images for p in (whole, merged)]
    assert np.abs(made[0] - made[1]).max() < 2 / 255
    # what diffusers' own loader makes of the LoRA file
    plain = UNet2DConditionModel.from_pretrained(teacher, subfolder="unet")
    start = {k: v.clone() for k, v in plain.state_dict().items()}
    theirs = StableDiffusionXLPipeline(
        **text_encoders(str(teacher)), vae=merged.vae, scheduler=merged.scheduler, unet=plain
    )
    theirs.load_lora_weights(run / "model")
    theirs.fuse_lora(components=["unet"])
    theirs.unload_lora_weights()
    merge_lora(whole.unet)  # not that of a whole export, whose frozen weights were rounded for the run
    ours = whole.unet.state_dict()
    changed = [k for k, v in theirs.unet.state_dict().items() if not torch.equal(v, start[k])]
    assert changed and all("attn" in k for k in changed)
    assert all(torch.allclose(theirs.unet.state_dict()[k], ours[k], atol=1e-6) for k in ours if "conv_in" not in k)
