from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from omfa import images
from omfa.baselines.ladi_vton import checkpoints, pipeline
from omfa.baselines.ladi_vton.inputs import Inputs, fit_person, make_inputs, stack
from omfa.baselines.ladi_vton.inversion import encode_prompts
from omfa.baselines.ladi_vton.pipeline import Draws, LaDIVTONPipeline
from omfa.baselines.ladi_vton.start import fresh, saved
from omfa.baselines.ladi_vton.warping import sample
from omfa.components import Category
from tests.baselines.ladi_vton import tiny
from tests.baselines.ladi_vton.golden import CLOSE, LOOSE, fill, read, tiny_emasc, tiny_text_encoder


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> LaDIVTONPipeline:
    return tiny.tiny_pipeline(tmp_path_factory.mktemp("ladi"))


def inputs_of(category: Category = Category.UPPER) -> Inputs:
    photo, labels, points = tiny.person()
    person = fit_person(photo, labels, points, tiny.SIZE)
    return make_inputs(person, images.load(tiny.garment(), tiny.SIZE, "white")[0], category, "dresscode")


@torch.no_grad()
def test_three_steps_as_the_original_with_every_input_of_the_unet(tmp_path: Path) -> None:
    golden = read("pipeline_3steps")
    pipe = tiny.tiny_pipeline(tmp_path)
    pipe.register_modules(emasc=tiny_emasc(), unet=fill(tiny.tiny_unet(), "ladi.unet"))
    seen: list[torch.Tensor] = []
    made: list[torch.Tensor] = []

    def watch(_module: Any, given: Any, out: Any) -> None:
        seen.append(given[0])
        made.append(out[0])

    pipe.unet.register_forward_hook(watch)
    inputs = Inputs(*(golden[f"in.{n}"] for n in ("image", "mask", "pose_map", "warped_cloth")), (Category.UPPER,) * 2)
    nothing = encode_prompts(tiny_text_encoder(), torch.tensor([[298] + [299] * 76]))
    assert_close(nothing, golden["out.uncond_embeds"], **CLOSE)
    draws = Draws(*(golden[f"draw{n}"] for n in ("0_cloth_posterior", "1_start_latents", "2_masked_image_posterior")))
    picture = pipe.repaint(inputs, inputs.cloth, golden["in.prompt_embeds"], nothing, draws, steps=3, guidance=7.5)
    assert pipe.scheduler.timesteps.tolist() == golden["timesteps"].tolist()
    for i in range(3):
        assert_close(seen[i], golden[f"out.unet_input_{i}"], **LOOSE)
        assert_close(made[i], golden[f"out.unet_output_{i}"], **LOOSE)
    assert_close((picture / 2 + 0.5).clamp(0, 1).movedim(1, 3), golden["out.image_0_1_nhwc"], **LOOSE)
    pipe.scheduler.set_timesteps(50)
    assert pipe.scheduler.timesteps.tolist() == golden["timesteps_50"].tolist()


def test_a_photo_of_another_aspect_comes_back_at_its_own(pipe: LaDIVTONPipeline) -> None:
    photo, labels, points = tiny.person(260, 150)
    made = pipe.try_on(photo, labels, points, tiny.garment(), "upper", num_inference_steps=1)
    (picture,) = made.images
    assert abs(picture.width / picture.height - 150 / 260) < 0.02 and picture.height == tiny.SIZE[0]


def test_a_folder_comes_back_as_it_was(pipe: LaDIVTONPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    assert not [p for p in tmp_path.rglob("*") if p.suffix in (".bin", ".pth", ".ckpt", ".pt")]
    again = LaDIVTONPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    first, second = (
        p(inputs_of(), 2, generator=torch.Generator().manual_seed(1), output_type="pt").images for p in (pipe, again)
    )
    assert torch.equal(first, second) and again.config.rules == "dresscode"


def test_one_generator_each_and_a_picture_is_its_own(pipe: LaDIVTONPipeline) -> None:
    one, two = inputs_of(), inputs_of(Category.DRESS)

    def seeds(*numbers: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(n) for n in numbers]

    both = pipe(stack([one, two]), 2, generator=seeds(3, 4), output_type="pt").images
    alone = pipe(two, 2, generator=seeds(4), output_type="pt").images
    assert_close(both[1:], alone, **LOOSE)


@torch.no_grad()
def test_guidance_of_one_takes_one_pass_without_the_unconditional(pipe: LaDIVTONPipeline) -> None:
    batches = []
    handle = pipe.unet.register_forward_pre_hook(lambda _m, given: batches.append(len(given[0])))
    pipe(inputs_of(), 1, guidance_scale=1.0)
    pipe(inputs_of(), 1, guidance_scale=2.0)
    handle.remove()
    assert batches == [1, 2]


def test_without_the_garments_latent_and_without_emasc(tmp_path: Path) -> None:
    pipe = tiny.tiny_pipeline(tmp_path, unet_channels=27, with_emasc=False)
    assert pipe(inputs_of(), 1, output_type="pt").images.shape == (1, 3, *tiny.SIZE)
    pipe.save_pretrained(tmp_path / "model")
    assert LaDIVTONPipeline.from_pretrained(tmp_path / "model").emasc is None


def test_without_the_refinement_the_garment_stays_as_the_spline_laid_it(tmp_path: Path) -> None:
    tiny.tiny_pipeline(tmp_path).save_pretrained(tmp_path / "whole")
    saved(str(tmp_path / "whole"), refined=False).save_pretrained(tmp_path / "model")
    pipe, inputs = saved(str(tmp_path / "model")), inputs_of()
    assert pipe.refinement is None
    assert torch.equal(pipe.warp(inputs), sample(inputs.cloth, pipe.align(inputs).grid))


def test_soft_masks_are_made_hard_and_grey_where_repainted() -> None:
    inputs = inputs_of()
    soft = Inputs(inputs.photo, inputs.mask * 0.5 + 0.25, inputs.pose, inputs.cloth, inputs.categories)
    assert torch.equal(soft.hard_mask, inputs.mask)
    assert not soft.kept[soft.hard_mask.expand_as(soft.kept) > 0].any()
    assert torch.equal(soft.kept * (1 - inputs.mask), inputs.photo * (1 - inputs.mask))


def test_published_files_become_a_pipeline(
    pipe: LaDIVTONPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe.save_pretrained(tmp_path / "base")
    for name in ("unet", "emasc", "inversion_adapter"):
        monkeypatch.setattr(checkpoints, f"load_{name}", lambda path, name=name: (path.name, getattr(pipe, name))[1])
    monkeypatch.setattr(checkpoints, "load_warping", lambda path: (pipe.tps, pipe.refinement))
    made = pipeline.published(tmp_path / "base", tmp_path / "base/vision_encoder", str(tmp_path), "vitonhd")
    assert made.config.rules == "vitonhd" and list(made.config.size) == [512, 384]
    with pytest.raises(ValueError, match="can't be loaded"):
        pipeline.base_parts(tmp_path / "none", tmp_path / "base/vision_encoder")


def test_training_starts_from_an_inpainting_network(pipe: LaDIVTONPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    tiny.tiny_unet(9).save_pretrained(tmp_path / "unet")
    new = fresh(str(tmp_path), str(tmp_path / "vision_encoder"), "vitonhd", (128, 96))
    assert new.unet.config.in_channels == 31 and not new.unet.conv_in.weight[:, 9:].any()
    assert new.inversion_adapter.config.output_dim == 16 * 32 and new.config.rules == "vitonhd"
    new.tps, new.refinement = pipe.tps, pipe.refinement  # full-size ones take their time
    new.set_progress_bar_config(disable=True)
    assert new(inputs_of(), 1, output_type="pt").images.shape == (1, 3, *tiny.SIZE)


def test_wrong_calls_are_told(pipe: LaDIVTONPipeline, tmp_path: Path) -> None:
    photo, labels, points = tiny.person()
    for change, said in (
        ({"category": "shoes"}, "shoes"),
        ({"labels": labels[:, :100]}, "does not fit a photo"),
        ({"keypoints": points[:5]}, "18 points"),
    ):
        call = {"photo": photo, "labels": labels, "keypoints": points, "garment": tiny.garment(), "category": "upper"}
        with pytest.raises(ValueError, match=said):
            pipe.try_on(**call | change)
    with pytest.raises(ValueError, match="1 or more"):
        pipe(inputs_of(), 0)
    odd = Inputs(*(torch.zeros(1, c, 120, 96) for c in (3, 1, 18, 3)), (Category.UPPER,))
    with pytest.raises(ValueError, match=r"\[120, 96\]: both sides must be multiples of 16"):
        pipe(odd)
    with pytest.raises(ValueError, match="31, or 27"):
        LaDIVTONPipeline(**{k: v for k, v in pipe.components.items() if k != "unet"}, unet=tiny.tiny_unet(9))
    with pytest.raises(ValueError, match="multiples of 16"):
        LaDIVTONPipeline(**pipe.components, size=(120, 96))
    with pytest.raises(ValueError, match="saved folder"):
        LaDIVTONPipeline.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="finite"):
        Inputs(torch.full((1, 3, 64, 64), np.nan), *(torch.zeros(1, c, 64, 64) for c in (1, 18, 3)), (Category.UPPER,))
