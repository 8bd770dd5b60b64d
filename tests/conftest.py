"""What all tests share: the drawn records, and tiny models of the real classes. Legend: see ``omfa.canvas``."""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from omfa import encode
from omfa.backbone import widen_unet
from omfa.compact import compact_pipeline
from omfa.pipeline import OMFAPipeline
from tests import figures

VAE = {
    "block_out_channels": [16, 16, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "latent_channels": 4,
    "norm_num_groups": 8,
    "layers_per_block": 1,
    "scaling_factor": 0.5,
}
UNET = {
    "block_out_channels": [16, 32],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": 8,
    "norm_num_groups": 8,
    "layers_per_block": 1,
}
SIZE = figures.SIZE


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)
    with torch.device("cpu"):  # torch remembers its constructors at the first such block: before they are replaced
        torch.zeros(0)


@pytest.fixture(scope="session")
def records(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the eight drawn records, for all tests: nothing may change it."""
    folder = tmp_path_factory.mktemp("records")
    figures.make_records(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    yield folder
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    changed = [str(p) for p in before.keys() | after.keys() if before.get(p) != after.get(p)]
    assert not changed, f"tests have changed the shared records: {changed}"


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two outfits of one person, three views each, with portraits: records with all bodies."""
    from data_prep.wardrobe.synthetic import write_outfit

    folder = tmp_path_factory.mktemp("world")
    lines = [
        line for k in (0, 2)
        for line in write_outfit(f"s4-o{k}", k, folder, seed=4, size=SIZE, records=4 * k + 3, portraits=True)
    ]  # fmt: skip
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def make_compact(seed: int = 0, garment_slots: int = 2, **options: Any) -> OMFAPipeline:
    """A tiny compact pipeline, random weights (``conv_out`` and ``conv_in`` included), silent."""
    torch.manual_seed(seed)
    pipe = compact_pipeline(VAE, UNET, SIZE, garment_slots, token_dim=32, **options)
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.eval()
    return pipe


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer that knows single letters."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(c) for c in range(ord("!"), ord("~") + 1)]
    words = [*letters, *(x + "</w>" for x in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def make_sdxl_parts(folder: Path, seed: int = 0, in_channels: int = 4) -> dict[str, object]:
    """The parts of an SDXL pipeline at tiny size: same classes, same wiring, random weights."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(folder / "letters")
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 16,
        "max_position_embeddings": 77,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }
    unet = UNet2DConditionModel(
        **UNET,
        in_channels=in_channels,
        out_channels=4,
        cross_attention_dim=32,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
        use_linear_projection=True,
    )
    return {
        "vae": AutoencoderKL(**VAE),
        "unet": unet,
        "text_encoder": CLIPTextModel(CLIPTextConfig(**text)),
        "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**text)),
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer,
    }


def make_sdxl_folder(folder: Path, seed: int = 0, in_channels: int = 4) -> Path:
    """A tiny SDXL-shaped pipeline as its folder on disk: base (4 channels), inpainting (9), or widened (13)."""
    for name, part in make_sdxl_parts(folder, seed, in_channels).items():
        part.save_pretrained(folder / name)  # type: ignore[attr-defined]
    return folder


def make_sdxl(folder: Path, seed: int = 0, join: str = "canvas") -> OMFAPipeline:
    """A tiny SDXL-shaped pipeline, widened from 4 channels."""
    parts = make_sdxl_parts(folder, seed)
    widen_unet(parts["unet"])
    torch.nn.init.normal_(parts["unet"].conv_in.weight, std=0.1)
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        timestep_spacing="trailing",
    )
    pipe = OMFAPipeline(**parts, scheduler=scheduler, person_size=SIZE, garment_slots=2, join=join)
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.eval()
    return pipe


@pytest.fixture(scope="session")
def compact() -> OMFAPipeline:
    """A tiny compact pipeline; don't change it."""
    return make_compact()


@pytest.fixture(scope="session")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> OMFAPipeline:
    """A tiny SDXL-shaped pipeline; don't change it."""
    return make_sdxl(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(params=["compact", "sdxl"], scope="session")
def pipe(request: pytest.FixtureRequest) -> OMFAPipeline:
    """Both kinds in turn."""
    return request.getfixturevalue(request.param)


def encode_call(base: Path, records: Path, out: Path, *more: str) -> list[str]:
    size = f"{SIZE[0]}x{SIZE[1]}"
    return ["--records", str(records), "--base", str(base), "--size", size, "--out", str(out), *more]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SDXL-base, tiny: 4 channels."""
    return make_sdxl_folder(tmp_path_factory.mktemp("base") / "sdxl")


@pytest.fixture(scope="session")
def inpainting(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SDXL-inpainting, tiny: 9 channels, all other parts SDXL-base's."""
    folder = make_sdxl_folder(tmp_path_factory.mktemp("inpainting") / "sdxl", in_channels=9)
    for part in ("vae", "text_encoder", "text_encoder_2"):
        shutil.copytree(base / part, folder / part, dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def latents(base: Path, records: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything encoded ahead, captions too."""
    out = tmp_path_factory.mktemp("ahead") / "latents"
    assert encode.main(encode_call(base, records, out, "--captions")) == 0
    return out
