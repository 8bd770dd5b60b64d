"""The pipeline samples as the original programs do, step by step; and it is a good diffusers pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from einops import rearrange
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import SiglipConfig, SiglipModel, SiglipVisionModel

from omfa.baselines.tryoffdiff.networks import ImageAdapter, Version, labels_of, make_encoder, make_scheduler, make_unet
from omfa.baselines.tryoffdiff.parts import load_encoder
from omfa.baselines.tryoffdiff.pictures import to_square
from omfa.baselines.tryoffdiff.pipeline import PUBLISHED, TEXTBOOK, Quirks, TryOffDiffPipeline
from omfa.baselines.tryoffdiff.weights import official_weights
from omfa.components import CLOTHES, Category
from omfa.images import ImageError, tensor_to_pixels
from tests import figures
from tests.baselines import rule
from tests.baselines.tryoffdiff.common import PREFIXES, golden, largest, networks, siglip_tokens, unet_config
from tests.conftest import VAE

ENCODER = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 64, "patch_size": 16,
}  # fmt: skip
UNET = {
    "sample_size": 16, "block_out_channels": [16, 32], "layers_per_block": 1, "cross_attention_dim": 32,
    "attention_head_dim": 2, "norm_num_groups": 4, "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}  # fmt: skip


class Patches(nn.Module):
    """Stands in for SigLIP: the 16x16 patches themselves, values channel by channel; or given tokens."""

    dtype = torch.float32
    config = SimpleNamespace(image_size=512, patch_size=16, hidden_size=768)

    def __init__(self, tokens: Tensor | None = None) -> None:
        super().__init__()
        self.tokens = tokens

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        patches = rearrange(pixel_values, "b c (h y) (w x) -> b (h w) (c y x)", y=16, x=16)
        return SimpleNamespace(last_hidden_state=patches if self.tokens is None else self.tokens)


class FirstThree(nn.Module):
    """Stands in for the VAE: the first three latent channels."""

    dtype = torch.float32
    config = SimpleNamespace(scaling_factor=0.18215, block_out_channels=[1] * 4)

    def decode(self, latents: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=latents[:, :3])


@contextmanager
def watched(unet: UNet2DConditionModel) -> Iterator[list[dict[str, Any]]]:
    """What goes into a UNet and comes out, call by call."""
    seen: list[dict[str, Any]] = []

    def note(module: nn.Module, args: Any, kwargs: Any, made: Any) -> None:
        seen.append({"x": args[0], "t": args[1], "context": args[2], "made": made.sample})

    handle = unet.register_forward_hook(note, with_kwargs=True)
    yield seen
    handle.remove()


RUNS: dict[str, tuple[Version, int]] = {
    "loop_v1": ("v1", 3), "loop_v2single_1": ("v2", 1), "loop_v2single_3": ("v2", 3), "loop_v2multi_3": ("mgt", 3)
}  # fmt: skip


@pytest.mark.parametrize("run", RUNS)
@torch.no_grad()
def test_every_step_agrees_with_the_original_program(run: str) -> None:
    version, steps = RUNS[run]
    unet, adapter = networks(version)
    encoder = Patches(siglip_tokens().flip(0)) if version == "v1" else Patches()
    pipe = TryOffDiffPipeline(FirstThree(), unet, adapter, encoder, make_scheduler(version), **PUBLISHED[version])
    pipe.set_progress_bar_config(disable=True)
    numbers = {k.removeprefix(f"{run}."): v for k, v in golden("loops").items() if k.startswith(f"{run}.")}
    given = [golden("preprocess")[f"{name}.in"] for name in ("tall", "wide")]
    squares = [to_square(Image.fromarray(p.permute(1, 2, 0).numpy()), 512)[0] for p in given]
    labels = labels_of(unet, [Category.DRESS, Category.UPPER], torch.device("cpu"))
    start = rule.uniform(f"tod.{run}:start_noise", (2, 4, 64, 64))
    context, nothing = pipe.context(torch.stack(squares)), pipe.no_context("cpu")
    with watched(unet) as seen:
        made = pipe.sample(context, nothing, labels, start, steps, pipe.config.default_guidance, Quirks())
    assert len(seen) == len(numbers["timesteps"]) == steps + (version == "v1")
    assert largest(seen[0]["context"][:, :8, ::8], numbers["cond_embedding"]) < 1e-4
    for i, step in enumerate(seen):
        assert float(step["t"]) == pytest.approx(float(numbers["timesteps"][i]), rel=1e-6)
        assert torch.equal(step["x"][:2], step["x"][2:])
        assert largest(step["x"][:2, :, ::4, ::4], numbers[f"x_before_step{i}"]) < 1e-4, i
        assert largest(step["made"][..., ::4, ::4], numbers[f"unet_out_step{i}"]) < 1e-4, i
    assert largest(made, numbers["x_final"]) < 1e-4
    saved = tensor_to_pixels(pipe.decode(made, Quirks()))
    saved = saved[::-1] if version == "v1" else saved  # its two features came in reverse, its files by name
    assert np.abs(saved.astype(int) - numbers["saved_png_u8"].numpy()).max() <= 1


def tiny(version: Version = "mgt", **settings: Any) -> TryOffDiffPipeline:
    """Real classes at tiny size, random weights, silent."""
    torch.manual_seed(0)
    parts = make_unet(version, UNET), ImageAdapter(version == "v1", 16, 5, 32), make_encoder(ENCODER)
    pipe = TryOffDiffPipeline(AutoencoderKL(**VAE), *parts, make_scheduler(version), **PUBLISHED[version] | settings)
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.unet, pipe.adapter, pipe.image_encoder, pipe.vae):
        part.eval()
    return pipe


def seeds(*numbers: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(n) for n in numbers]


PHOTOS = [Image.fromarray(figures.draw_person(name, 0, 0)) for name in ("ann", "ben")]


@pytest.mark.parametrize("version", list(PREFIXES))
def test_saved_and_loaded_it_makes_the_same_pictures(version: Version, tmp_path: Path) -> None:
    pipe = tiny(version, categories=["lower"] if version == "v2" else list(CLOTHES))
    pipe.save_pretrained(tmp_path)
    assert {p.suffix for p in tmp_path.rglob("*") if p.is_file()} == {".json", ".safetensors"}
    again = TryOffDiffPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    one, two = (
        p.try_off(PHOTOS[0], num_inference_steps=2, generator=seeds(3), output_type="pt") for p in (pipe, again)
    )
    assert torch.equal(one.images, two.images) and one.images.isfinite().all()
    assert list(one.garments) == [pipe.config.categories[0]] and again.config.categories == pipe.config.categories
    UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    ImageAdapter.from_pretrained(tmp_path / "adapter")
    SiglipVisionModel.from_pretrained(tmp_path / "image_encoder")


def test_all_categories_in_one_call_and_any_batch() -> None:
    pipe = tiny()
    options = {"num_inference_steps": 2, "output_type": "np"}
    made = pipe.try_off(PHOTOS, ["dress", "lower", "upper"], generator=seeds(1, 2), **options)
    assert list(made.garments) == ["dress", "lower", "upper"] and made.images is made.garments["dress"]
    assert made.images.shape == (2, 64, 64, 3)
    alone = pipe.try_off(PHOTOS[1], "dress", generator=seeds(2), **options)
    assert np.abs(made.garments["dress"][1] - alone.images[0]).max() < 1e-4
    dress, lower = (pipe.try_off(PHOTOS[0], c, generator=seeds(1), **options).images for c in ("dress", "lower"))
    assert np.abs(dress - lower).max() > 1e-3


def test_quirks_are_named_one_by_one() -> None:
    pipe = tiny()
    assert isinstance(pipe.scheduler, EulerDiscreteScheduler)

    def call(quirks: bool | Quirks | None) -> tuple[list[dict[str, Any]], Tensor]:
        with watched(pipe.unet) as seen:
            options = {"num_inference_steps": 3, "generator": seeds(1), "output_type": "pt", "quirks": quirks}
            return seen, pipe.try_off(PHOTOS[0], **options).images

    seen, picture = call(None)
    assert torch.equal(picture, call(True)[1]) and 0.9 < seen[0]["x"].std() < 1.1
    assert picture.min() == 0 and picture.max() == 1 and float(seen[1]["t"]) % 1 != 0
    assert call(Quirks(unscaled_start=False))[0][0]["x"].std() > 14
    assert all(float(s["t"]) % 1 == 0 for s in call(Quirks(fractional_timesteps=False))[0])
    seen, picture = call(False)
    assert seen[0]["x"].std() > 14 and torch.equal(picture, call(TEXTBOOK)[1])
    assert not torch.equal(call(Quirks(stretched=False))[1], call(True)[1])
    preserving = tiny(noise="preserving")
    with watched(preserving.unet) as seen:
        preserving.try_off(PHOTOS[0], generator=seeds(1), num_inference_steps=3, quirks=False)
    assert 0.9 < seen[0]["x"].std() < 1.1


def test_pictures_are_cut_to_the_photo_and_a_callback_is_heard() -> None:
    pipe = tiny(cut_to_person=True)
    heard = []
    made = pipe(PHOTOS, num_inference_steps=2, callback_on_step_end=lambda p, i, t, kept: heard.append(i) or {})
    assert heard == [0, 1] and [p.size for p in made.images] == [(48, 64), (48, 64)]
    assert [tuple(p.shape) for p in pipe(PHOTOS, num_inference_steps=1, output_type="pt").images] == [(3, 64, 48)] * 2
    with watched(pipe.unet) as seen:
        pipe(PHOTOS[0], num_inference_steps=1, guidance_scale=0)
    assert len(seen[0]["x"]) == 1


def test_wrong_calls_are_told() -> None:
    pipe = tiny("v2", categories=["lower"])
    with pytest.raises(ValueError, match="takes off lower"):
        pipe(PHOTOS[0], "upper")
    with pytest.raises(ValueError, match="takes off upper, lower, dress; each once"):
        tiny()(PHOTOS[0], ["upper", "upper"])
    for wrong in (
        {"num_inference_steps": 0}, {"num_inference_steps": 2.5}, {"guidance_scale": -1.0},
        {"guidance_scale": float("nan")}, {"output_type": "jpg"},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="must be a whole number from 1 on"):
            pipe(PHOTOS[0], **wrong)
    with pytest.raises(ValueError, match="no photo"):
        pipe([])
    with pytest.raises(ValueError, match="1 generators for 2 photos"):
        pipe(PHOTOS, generator=seeds(1))
    with pytest.raises(ValueError, match="latents of shape"):
        pipe(PHOTOS, latents=torch.zeros(1, 4, 16, 16))
    with pytest.raises(ImageError, match="no such file"):
        pipe("nowhere.png")
    with pytest.raises(ValueError, match="needs EulerDiscreteScheduler, not PNDMScheduler"):
        tiny("v1", noise="exploding")
    with pytest.raises(ValueError, match="categories"):
        tiny(categories=["hat"])
    for other in ({"image_size": 128}, {"hidden_size": 64}, {"patch_size": 8}, {"image_size": 128, "patch_size": 32}):
        encoder = make_encoder(ENCODER | other)
        with pytest.raises(ValueError, match="adapter takes 16, 32 wide, UNet and VAE make 64 pixels"):
            TryOffDiffPipeline(pipe.vae, pipe.unet, pipe.adapter, encoder, pipe.scheduler)


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
@pytest.mark.parametrize("quirks", [True, False])
def test_no_picture_is_made_of_what_is_no_number(output_type: str, quirks: bool) -> None:
    pipe = tiny()
    pipe.vae.decoder.conv_in.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN or infinity instead of a picture"):
        pipe(PHOTOS[0], num_inference_steps=1, quirks=quirks, output_type=output_type)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A folder with tiny parts, and files of all versions in the published layout."""
    for version in PREFIXES:
        unet, adapter = networks(version)
        name = {"v1": "model_epoch_9", "v2": "tryoffdiffv2_lower", "mgt": "tryoffdiffv2_multi"}[version]
        prefix = "" if version == "v1" else "_orig_mod."
        torch.save({prefix + k: v for k, v in official_weights(unet, adapter).items()}, tmp_path / f"{name}.pth")
    AutoencoderKL(**VAE).save_pretrained(tmp_path / "vae")
    config = {**ENCODER, "hidden_size": 768, "image_size": 256, "patch_size": 8}
    make_encoder(config).save_pretrained(tmp_path / "siglip")
    return tmp_path


def official(folder: Path, name: str, **options: Any) -> TryOffDiffPipeline:
    parts = {"image_encoder": str(folder / "siglip"), "vae": str(folder / "vae"), "unet": unet_config()}
    return TryOffDiffPipeline.from_pretrained(folder / f"{name}.pth", **parts | options)


def test_published_files_load_and_are_saved_as_diffusers_has_it(published: Path) -> None:
    for name, version, known in (
        ("model_epoch_9", "v1", ["upper"]),
        ("tryoffdiffv2_lower", "v2", ["lower"]),
        ("tryoffdiffv2_multi", "mgt", ["upper", "lower", "dress"]),
    ):
        pipe = official(published, name, version=version)
        assert pipe.config.categories == known and not pipe.unet.training and not pipe.adapter.training
        assert {k: pipe.config[k] for k in PUBLISHED[version]} == PUBLISHED[version]
        pipe.save_pretrained(published / "saved" / name)
        saved = load_file(published / "saved" / name / "unet" / "diffusion_pytorch_model.safetensors")
        first = rule.weight(PREFIXES[version], "unet.conv_in.weight", saved["conv_in.weight"].shape)
        assert torch.equal(saved["conv_in.weight"], first)
        again = TryOffDiffPipeline.from_pretrained(published / "saved" / name)
        one, two = (official_weights(p.unet, p.adapter) for p in (pipe, again))
        assert all(torch.equal(one[k], two[k]) for k in one) and one.keys() == two.keys()
    pipe = official(published, "model_epoch_9", default_steps=5, torch_dtype=torch.bfloat16)
    assert pipe.config.default_steps == 5
    assert {p.dtype for p in (pipe.unet, pipe.vae, pipe.adapter, pipe.image_encoder)} == {torch.bfloat16}


def test_siglip_is_read_as_it_is_published_with_its_text_tower(tmp_path: Path) -> None:
    words = {k: v for k, v in ENCODER.items() if k not in ("image_size", "patch_size")}
    words |= {
        "vocab_size": 50,
        "max_position_embeddings": 16,
        "projection_size": 32,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    whole = SiglipModel(SiglipConfig(text_config=words, vision_config=ENCODER)).eval()
    whole.save_pretrained(tmp_path / "siglip")
    pipe = tiny()
    made = TryOffDiffPipeline(
        pipe.vae, pipe.unet, pipe.adapter, load_encoder(str(tmp_path / "siglip")), pipe.scheduler, **PUBLISHED["mgt"]
    )
    made.save_pretrained(tmp_path / "saved")
    again = TryOffDiffPipeline.from_pretrained(tmp_path / "saved")
    photos = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        wanted = whole.vision_model(photos).last_hidden_state
        for encoder in (made.image_encoder, again.image_encoder):
            assert torch.equal(encoder(photos).last_hidden_state, wanted)
    path = tmp_path / "siglip" / "model.safetensors"
    save_file(load_file(path) | {"more.weight": torch.zeros(1)}, path, {"format": "pt"})
    with pytest.raises(ValueError, match="has what nothing takes"):
        load_encoder(str(tmp_path / "siglip"))


def test_what_is_missing_is_named_with_its_cure(published: Path) -> None:
    cases = {
        "the file of mgt, not v1": {"name": "tryoffdiffv2_multi", "version": "v1"},
        "give category=": {"name": "model_x"},
        "hf download google/siglip-base-patch16-512 --local-dir": {"image_encoder": str(published / "none")},
        "--include 'vae/\\*' --local-dir DIR' where there is a network, and give vae='DIR/vae'": {"vae": "no/vae/vae"},
        "no folder with a config.json": {"vae": str(published)},
        "category='dress' is for files of v2, and this is mgt's": {"category": "dress"},
        "category='upper' is for files of v2, and this is v1's": {"name": "model_epoch_9", "category": "upper"},
    }
    (published / "model_x.pth").write_bytes((published / "tryoffdiffv2_lower.pth").read_bytes())
    for said, options in cases.items():
        with pytest.raises(ValueError, match=said) as error:
            official(published, **{"name": "tryoffdiffv2_multi", **options})  # type: ignore[arg-type]
        assert "\n" not in str(error.value)
    late = published / "model_x.pth"
    content = late.read_bytes()
    at = content.index(networks("v2")[1].proj.weight.detach().numpy().tobytes()) + 5
    late.write_bytes(content[:at] + bytes([content[at] ^ 0x5A]) + content[at + 1 :])
    with pytest.raises(ValueError, match="checksum"):
        official(published, "model_x", category="lower")
    with pytest.raises(ValueError, match="image_encoder could not be read"):  # said before a long file is read through
        official(published, "model_x", category="lower", image_encoder=str(published / "none"))
    with pytest.raises(ValueError, match=r"hf download rizavelioglu/tryoffdiff x\.pth"):
        TryOffDiffPipeline.from_pretrained("rizavelioglu/tryoffdiff/x.pth")
    with pytest.raises(ValueError, match="no model folder"):
        TryOffDiffPipeline.from_pretrained(published)
