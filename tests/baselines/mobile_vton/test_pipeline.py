"""Sampling against the originals' numbers, the folder, and the call."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import Tensor

from omfa.baselines.mobile_vton.folder import Parts, settings
from omfa.baselines.mobile_vton.light_unet import LightUNet
from omfa.baselines.mobile_vton.pipeline import MobileVTON, scaled, unscaled
from omfa.baselines.mobile_vton.prompts import NEGATIVE, PromptBook, TextEmbeds, try_on_phrase
from omfa.baselines.mobile_vton.sampling import Given, sample, scheduler
from omfa.components import Category
from tests.baselines.mobile_vton import golden, tiny

VAE = SimpleNamespace(config=SimpleNamespace(shift_factor=0.0609, scaling_factor=1.5305))


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> MobileVTON:
    made = MobileVTON(tiny.parts(tmp_path_factory.mktemp("tokenizer")))
    made.quiet = True
    return made


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("steps", [1, 2, 28])
def test_scheduler(steps: int) -> None:
    made, n = scheduler(), golden.numbers("mobile_scheduler")
    made.set_timesteps(steps)
    print(golden.compare(made.sigmas, n[f"n{steps}.sigmas"], 1e-6))
    print(golden.compare(made.timesteps, n[f"n{steps}.timesteps"], 1e-5))


def test_prompts() -> None:
    n = golden.numbers("mobile_pipeline")
    for side, name in (("pos", "first77x64"), ("neg", "negative_first77x64")):
        tokens = torch.cat([n[f"prompt.in.te{i}.{side}.penultimate"] for i in (1, 2)], -1)
        context = TextEmbeds(tokens, n["prompt.pooled"]).context(4096)
        assert context.shape == (2, 333, 4096) and not context[:, 77:].any() and not context[..., 64:].any()
        assert torch.equal(context[:, :77, :64], n[f"prompt.{name}"])
    assert try_on_phrase(Category.UPPER, "a red shirt") == "Replace the upper body with red shirt"
    assert NEGATIVE.startswith("deformed, distorted") and NEGATIVE.endswith("amputation, NSFW")
    with pytest.raises(ValueError, match=r"77 tokens of 60 don't fit into 333 of 40"):
        TextEmbeds(tokens, tokens).context(40)


def test_the_published_pipeline_in_two_steps() -> None:
    n, (garment, tryon) = golden.numbers("mobile_pipeline"), golden.pair()
    given = Given(
        person=scaled(n["pipe.in.person_latent_raw"], VAE),
        garment=scaled(n["pipe.in.cloth_latent_raw"], VAE),
        text=n["pipe.in.prompt"],
        negative=n["pipe.in.negative_prompt"],
        garment_text=n["pipe.in.cloth_text"],
        features=n["pipe.in.dino_penultimate_image"],
        no_features=n["pipe.in.dino_penultimate_zero"],
    )
    seen: list[tuple[Tensor, Tensor]] = []
    handle = tryon.register_forward_hook(lambda m, args, out: seen.append((args[0], out.sample)))
    worn: list[Tensor] = []
    asked = tryon.register_forward_pre_hook(lambda m, args: worn.append(args[3][0]))
    after: list[Tensor] = []
    with torch.no_grad():
        tokens = tryon.image_tokens(torch.cat([given.no_features, given.features]))
        latents = sample(tryon, garment, given, n["pipe.in.noise"], 2, 2.5, lambda i, x: after.append(x))
        image = golden.decoder("decoder_a")(unscaled(latents, VAE)) / 2 + 0.5
    handle.remove()
    asked.remove()
    print("image tokens", golden.compare(tokens, n["pipe.out.image_tokens_uncond_then_cond"]))
    for i in range(2):
        print(i, "input", golden.compare(seen[i][0], n[f"pipe.out.tryonnet_input_{i}"], golden.LOOSE))
        print(i, "garment", golden.compare(worn[i], n[f"pipe.out.garment_feature00_to_tryonnet_{i}"], golden.LOOSE))
        print(i, "output", golden.compare(seen[i][1], n[f"pipe.out.tryonnet_output_{i}"], golden.LOOSE))
        print(i, "latents", golden.compare(after[i], n[f"pipe.out.latents_after_{i}"], golden.LOOSE))
    print("picture", golden.compare(image.clamp(0, 1), n["pipe.out.image_01"], golden.LOOSE))


def test_a_folder_comes_back_as_it_was(pipe: MobileVTON, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    again = Parts.read(tmp_path)
    for name in ("tryon", "garment", "vae", "decoder", "image_encoder"):
        ours, theirs = getattr(pipe.parts, name).state_dict(), getattr(again, name).state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(v, theirs[k]) for k, v in ours.items()), name
    assert torch.equal(again.texts(["a red shirt"]).tokens, pipe.texts(["a red shirt"]).tokens)
    assert isinstance(LightUNet.from_pretrained(tmp_path / "denoiser"), LightUNet)
    # the decoder's weights as they are published
    (tmp_path / "vae_decoder" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(pipe.parts.decoder.state_dict(), tmp_path / "vae_decoder" / "decoder.pt")
    assert torch.equal(Parts.read(tmp_path).decoder.conv_norm_out.weight, pipe.parts.decoder.conv_norm_out.weight)


def test_a_folder_that_does_not_fit_is_refused(pipe: MobileVTON, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    path = tmp_path / "denoiser" / "config.json"
    config = json.loads(path.read_text())

    def refused(words: str, **changes: object) -> None:
        path.write_text(json.dumps({**config, **changes}))
        with pytest.raises(ValueError, match=words):
            Parts.read(tmp_path)

    path.write_text(json.dumps({**config, "dual_cross_attention": False, "class_embed_type": None, "freq_shift": 0}))
    assert settings(path, LightUNet)["in_channels"] == 8
    refused("new_attention = 'x': LightUNet does not know that", new_attention="x")
    refused("does not fit its config", down_block_qk_norm=None)
    refused("does not fit its config", block_out_channels=[16, 32, 96])
    (tmp_path / "denoiser" / "diffusion_pytorch_model.safetensors").write_bytes(b"no")
    refused("no weights")
    with pytest.raises(ValueError, match="lacks denoiser, denoiser_garment, vae, image_encoder"):
        Parts.read(tmp_path / "vae")


def test_the_call(pipe: MobileVTON) -> None:
    photo, shop = Image.new("RGB", (50, 90), (200, 180, 160)), Image.new("RGB", (40, 40), (30, 60, 200))

    def made(seed: int = 0, garment: Image.Image = shop, size: tuple[int, int] = tiny.SIZE, **more: object) -> Tensor:
        out = pipe(
            photo, garment, "upper", "a blue shirt", size, 2, generator=[generator(seed)], output_type="pt", **more
        )
        return out.persons

    first = made()
    assert first.shape == (1, 3, *tiny.SIZE) and torch.equal(first, made())
    assert not torch.equal(first, made(1)) and not torch.equal(first, made(garment=photo))
    assert not torch.equal(first, made(guidance_scale=1.0))
    assert made(size=(96, 64)).shape == (1, 3, 96, 64)
    two = pipe([photo, photo], shop, "upper", None, tiny.SIZE, 1, generator=[generator(0), generator(1)]).persons
    assert len(two) == 2 and two[0].size == (32, 58)  # the photo's shape, without its padding
    alone = pipe(photo, shop, "upper", None, tiny.SIZE, 1, generator=[generator(1)], output_type="pt").persons
    both = pipe(
        photo, [shop, shop], "upper", None, tiny.SIZE, 1, generator=[generator(0), generator(1)], output_type="pt"
    )
    torch.testing.assert_close(both.persons[1:], alone, atol=1e-5, rtol=1e-4)


def test_calls_that_ask_for_the_impossible(pipe: MobileVTON) -> None:
    photo = Image.new("RGB", (48, 64))
    for words, options in [
        ("must be one of upper, lower, dress", {"category": "hat"}),
        ("multiples of 32", {"size": (64, 50)}),
        ("2 generators for 1", {"generator": [generator(), generator()]}),
        ("2 values of person for 3 pictures", {"person": [photo] * 2, "garment": [photo] * 3}),
        ("must be 'pil'", {"output_type": "jpg"}),
        ("at least 1", {"num_inference_steps": 0}),
    ]:
        call = {"person": photo, "garment": photo, "category": "upper", "size": tiny.SIZE, "num_inference_steps": 1}
        with pytest.raises(ValueError, match=words):
            pipe(**{**call, **options})


def test_phrases_encoded_ahead(pipe: MobileVTON, tmp_path: Path) -> None:
    photo = Image.new("RGB", (32, 64), (90, 90, 90))
    phrases = ["a red top", try_on_phrase(Category.UPPER, "a red top")]
    small = pipe.without_text_encoders(phrases)
    small.quiet = True
    small.save_pretrained(tmp_path)
    small = MobileVTON.from_pretrained(tmp_path)
    small.quiet = True
    assert isinstance(small.parts.texts, PromptBook) and not (tmp_path / "text_encoder").exists()
    call = {"size": tiny.SIZE, "num_inference_steps": 1, "output_type": "pt"}
    made = [p(photo, photo, "upper", "a red top", generator=generator(), **call).persons for p in (pipe, small)]
    torch.testing.assert_close(made[0], made[1], atol=2e-2, rtol=0)  # float16 on disk
    with pytest.raises(ValueError, match="'Replace the upper body with hat' is not among the 3 phrases"):
        small(photo, photo, "upper", "a hat", generator=generator(), **call)
    with pytest.raises(ValueError, match="no phrases encoded ahead"):
        PromptBook.read(tmp_path / "nothing")


def test_two_garments_are_put_on_one_after_the_other(pipe: MobileVTON) -> None:
    photo, top, skirt = (Image.new("RGB", (32, 64), c) for c in ("tan", "navy", "olive"))
    batch = SimpleNamespace(
        photos=(photo,),
        garments={"upper": (top,), "lower": (skirt,)},
        steps=1,
        guidance=None,
        generators=(generator(),),
    )
    (both,) = pipe.try_on(batch)
    draws = generator()
    (first,) = pipe(photo, top, "upper", num_inference_steps=1, generator=[draws]).persons
    (second,) = pipe(first, skirt, "lower", num_inference_steps=1, generator=[draws]).persons
    assert both.size == (32, 64) and both.tobytes() == second.tobytes()
    assert pipe.try_on_needs == {"photos", "garments"} and pipe.sampler_defaults("x") == (28, 2.5)
