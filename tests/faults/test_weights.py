"""Weights that are foreign, partial, wrapped or no numbers: read whole, or refused in a line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPVisionModel, SiglipConfig, SiglipModel, SiglipVisionModel

from omfa.backbone import fingerprint
from omfa.images import ImageError, tensor_to_pixels
from omfa.pipeline import OMFAPipeline
from omfa.sdxl import sdxl_pipeline
from omfa.tuning import ATTENTION, CONV_IN, LORA, choose_trained, load_tuned, save_tuned
from omfa.weights import TEXT_TOWER, plain, read_part, read_state
from tests.conftest import SIZE, VAE, make_compact

State = dict[str, Tensor]
WEIGHTS = "diffusion_pytorch_model.safetensors"


def half(state: State) -> State:
    return dict(sorted(state.items())[: len(state) // 2])


def renamed(state: State) -> State:
    return {"lora_unet_" + k.replace(".", "_"): v for k, v in state.items()}


def one_nan(state: State) -> State:
    name = min(state)
    spoiled = state[name].clone()
    spoiled.view(-1)[0] = float("nan")
    return state | {name: spoiled}


WRONG: dict[str, Callable[[State], State]] = {
    "foreign": renamed,
    "half": half,
    "nothing": lambda s: {},
    "one too many": lambda s: s | {"more.weight": torch.zeros(1)},
    "another prefix": lambda s: {f"model.{k}": v for k, v in s.items()},
    "only some prefixed": lambda s: {(f"module.{k}" if i % 2 else k): v for i, (k, v) in enumerate(s.items())},
    "NaN": one_nan,
    "infinite": lambda s: s | {min(s): torch.full_like(s[min(s)], float("inf"))},
}
WRAPPED = {p: p for p in ("_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module.")}


@pytest.fixture(scope="module")
def small(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small weights of both kinds, all of them changed."""
    out = tmp_path_factory.mktemp("small")
    for kind in ("lora", "attention"):
        unet = sdxl_pipeline(str(base), person_size=SIZE).unet
        mark = fingerprint(unet, dtype=torch.float16)
        choose_trained(unet, kind, rank=2)
        for p in unet.parameters():
            if p.requires_grad:
                p.data += 0.3
        about = {"base": None, "vae": None, "person_size": list(SIZE), "garment_slots": 1, "fingerprint": mark}
        save_tuned(unet, kind, out / kind, about)
    return out


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("file", [LORA, ATTENTION, CONV_IN])
def test_small_weights_are_read_whole_or_refused(
    base: Path, small: Path, tmp_path: Path, file: str, wrong: str
) -> None:
    folder = shutil.copytree(small / ("lora" if file == LORA else "attention"), tmp_path / "s")
    unet = sdxl_pipeline(str(base), person_size=SIZE).unet
    before = fingerprint(unet)
    save_file(WRONG[wrong](load_file(folder / file)), folder / file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"safetensors.*(needed|NaN)") as said:
        load_tuned(unet, folder)
    assert fingerprint(unet) == before and "\n" not in str(said.value)


@pytest.mark.parametrize("prefix", WRAPPED)
@pytest.mark.parametrize("kind", ["lora", "attention"])
def test_prefixes_of_wrappers_are_taken_away(base: Path, small: Path, tmp_path: Path, kind: str, prefix: str) -> None:
    folder, outcomes = shutil.copytree(small / kind, tmp_path / "s"), []
    for _ in range(2):
        unet = sdxl_pipeline(str(base), person_size=SIZE).unet
        load_tuned(unet, folder)
        outcomes.append(fingerprint(unet))
        for path in folder.glob("*.safetensors"):
            save_file({prefix + k: v for k, v in load_file(path).items()}, path, {"format": "pt"})
    assert outcomes[0] == outcomes[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_compact().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("part", ["unet", "vae", "slot_tokens"])
@pytest.mark.parametrize("prefix", ["_orig_mod.", "module."])
def test_a_wrapped_model_is_the_same_model(model: Path, tmp_path: Path, part: str, prefix: str) -> None:
    folder = shutil.copytree(model, tmp_path / "m")
    path = folder / part / WEIGHTS
    save_file({prefix + k: v for k, v in load_file(path).items()}, path, {"format": "pt"})
    want, got = (getattr(OMFAPipeline.from_pretrained(f), part) for f in (model, folder))
    assert fingerprint(want) == fingerprint(got) and not got.training


@pytest.mark.parametrize("part", ["unet", "vae", "slot_tokens"])
@pytest.mark.parametrize("wrong", ["foreign", "half", "nothing", "one too many", "another prefix"])
def test_a_model_is_whole_or_refused(model: Path, tmp_path: Path, part: str, wrong: str) -> None:
    folder = shutil.copytree(model, tmp_path / "m")
    path = folder / part / WEIGHTS
    save_file(WRONG[wrong](load_file(path)), path, {"format": "pt"})
    if wrong == "half" and part == "slot_tokens":
        return  # of one table nothing is half
    with pytest.raises(ValueError, match="can't be loaded"):
        OMFAPipeline.from_pretrained(folder)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", ["unet", "vae"])
def test_no_picture_is_made_of_what_is_no_number(part: str, bad: float) -> None:
    pipe = make_compact(seed=3)
    weight = {"unet": pipe.unet.conv_out, "vae": pipe.vae.decoder.conv_out}[part].weight
    weight.data.view(-1)[0] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        pipe.try_off(torch.rand(3, 64, 48), num_inference_steps=1)


def test_the_guilty_weights_are_named() -> None:
    pipe = make_compact(seed=4)
    pipe.unet.conv_in.weight.data.view(-1)[5] = float("nan")
    with pytest.raises(ValueError, match=r"conv_in\.weight of the model's unet"):
        pipe.try_off(torch.rand(3, 64, 48), num_inference_steps=1)


def test_pixels_of_no_numbers_are_refused() -> None:
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ImageError, match="NaN or infinity"):
            tensor_to_pixels(torch.full((3, 4, 4), bad))


def test_names_and_files(tmp_path: Path) -> None:
    assert plain(["module.a", "module.b"]) == {"a": "module.a", "b": "module.b"}
    assert plain(["module.a", "b"]) == {"module.a": "module.a", "b": "b"} and plain([]) == {}
    (tmp_path / "x.safetensors").write_bytes(b"\xff" * 40)
    for name in ("x.safetensors", "none.safetensors"):
        with pytest.raises(ValueError, match="no readable safetensors"):
            read_state(tmp_path / name, ["a"])
    AutoencoderKL(**VAE).save_pretrained(tmp_path / "vae")
    path = tmp_path / "vae" / WEIGHTS
    save_file(half(load_file(path)), path, {"format": "pt"})
    with pytest.raises(ValueError, match="lacks"):
        read_part(AutoencoderKL, tmp_path / "vae")


TOWER = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
WORDS = {**TOWER, "vocab_size": 50, "max_position_embeddings": 16, "projection_size": 32}
WORDS |= {"bos_token_id": 48, "eos_token_id": 49}
EYES = {**TOWER, "image_size": 64, "patch_size": 16}


@pytest.mark.parametrize(
    "whole,kind",
    [
        (SiglipModel(SiglipConfig(text_config=WORDS, vision_config=EYES)), SiglipVisionModel),
        (CLIPModel(CLIPConfig(text_config=WORDS, vision_config=EYES, projection_dim=32)), CLIPVisionModel),
    ],
)
def test_eyes_are_read_out_of_a_model_with_a_text_tower(whole: nn.Module, kind: type, tmp_path: Path) -> None:
    """SigLIP and CLIP are published whole; ``read_part`` leaves over what the caller names, and nothing else."""
    whole.eval().save_pretrained(tmp_path)
    pictures = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        seen = read_part(kind, tmp_path, TEXT_TOWER)(pictures).last_hidden_state
        assert torch.equal(seen, whole.vision_model(pictures).last_hidden_state)
    with pytest.raises(ValueError, match="has what nothing takes: logit_"):
        read_part(kind, tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    save_file(state | {"more.weight": torch.zeros(1)}, path, {"format": "pt"})
    with pytest.raises(ValueError, match=r"has what nothing takes: more\.weight"):
        read_part(kind, tmp_path, TEXT_TOWER)
    save_file({k: v for k, v in state.items() if "patch_embedding" not in k}, path, {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks .*patch_embedding"):
        read_part(kind, tmp_path, TEXT_TOWER)
