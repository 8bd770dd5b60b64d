"""SDXL from its folders to pictures: init, encode, fit, export, from_pretrained; what is trained; small cards."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from omfa import encode
from omfa.backbone import posterior
from omfa.pipeline import OMFAPipeline
from omfa.prompts import PromptFiles, phrases
from omfa.sdxl import BASE, CLASSES, INPAINTING, sdxl_pipeline, text_encoders
from omfa.training.examples import ExampleOptions, Geometry, RecordsDataset, collate
from omfa.training.module import OMFAModule
from omfa.tuning import choose_trained
from tests.conftest import SIZE, encode_call, make_sdxl_folder
from tests.test_pipeline import FAST, face, gen, pose, shirt

WORN = {"garments": {"upper": shirt()}, "face": face(), "pose": pose()}


def make(base: Path, text: Path | None = None, slots: int = 1) -> OMFAPipeline:
    pipe = sdxl_pipeline(str(base), None, text and str(text), SIZE, slots)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def silent(pipe: OMFAPipeline) -> OMFAPipeline:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(pipe: OMFAPipeline, **options: object) -> np.ndarray:
    call = {"generator": gen(), "output_type": "np", **FAST, **options}
    return np.asarray(pipe(["person"], **WORN, **call).images)


# ------------------------------------------------------------------------------------------------------- beginnings


@pytest.mark.parametrize("channels", [4, 9, 13])
def test_any_of_sdxls_widths_is_widened_and_keeps_its_keys(tmp_path: Path, channels: int) -> None:
    folder = make_sdxl_folder(tmp_path / "sdxl", in_channels=channels)
    before = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    after = make(folder).unet.state_dict()
    assert before.keys() == after.keys() and after["conv_in.weight"].shape[1] == 13
    assert all(torch.equal(before[k], after[k]) for k in before if k != "conv_in.weight")
    assert torch.equal(after["conv_in.weight"][:, :channels], before["conv_in.weight"])
    assert (after["conv_in.weight"][:, channels:] == 0).all()


def test_released_weights_lie_in_a_folder_of_a_repository(tmp_path: Path) -> None:
    make_sdxl_folder(tmp_path / "OneModelForAll" / "vitonhd", in_channels=9)
    assert make(tmp_path / "OneModelForAll" / "vitonhd").unet.config.in_channels == 13


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("nobody/nothing/vitonhd", r"hf download nobody/nothing --include 'vitonhd/\*.json'.* give nothing/vitonhd"),
        ("./not/here", f"hf download {INPAINTING} .*--local-dir ./not/here\n.*text-to-image SDXL is {BASE}"),
        ("models/sdxl", "no such folder here, and as a hub id: .*If a folder was meant, correct its path"),
    ],
)
def test_missing_weights_name_the_cure(where: str, words: str) -> None:
    with pytest.raises(ValueError, match=f"(?s)unet could not be read from '{where}'.*{words}"):
        sdxl_pipeline(where)


def test_a_folder_of_something_else_is_not_filled_with_weights(tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    with pytest.raises(ValueError, match="it has no folder 'unet'") as refused:
        sdxl_pipeline(str(tmp_path / "records"))
    assert f"--local-dir {INPAINTING.split('/')[1]}\n" in str(refused.value)


def test_half_precision_files_are_read_in_float32(base: Path, records: Path, tmp_path: Path) -> None:
    """What their config says of a dtype is not followed; encode reads them by their variant."""
    for part in ("text_encoder", "text_encoder_2", "unet", "vae"):
        module = CLASSES[part].from_pretrained(base / part).half()
        module.save_pretrained(tmp_path / "half" / part, variant="fp16")
    for part in ("tokenizer", "tokenizer_2"):
        shutil.copytree(base / part, tmp_path / "half" / part)
    pipe = sdxl_pipeline(str(tmp_path / "half"), person_size=SIZE, variant="fp16")
    parts = (pipe.unet, pipe.vae, pipe.text_encoder, pipe.text_encoder_2)
    assert {p.dtype for part in parts for p in part.parameters()} == {torch.float32}
    call = encode_call(tmp_path / "half", records, tmp_path / "out")
    assert encode.main(call) == 2 and encode.main([*call, "--variant", "fp16"]) == 0


def test_a_missing_part_is_named(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "tokenizer_2")
    with pytest.raises(ValueError, match=r"tokenizer_2 could not be read .*it has no folder 'tokenizer_2'"):
        make(tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "vae")
    with pytest.raises(ValueError, match="vae could not be read"):
        make(tmp_path / "half")


def test_a_vae_that_overflows_never_runs_in_float16(base: Path) -> None:
    """SDXL's says ``force_upcast``; the fp16-fix one says not, and is left alone."""
    pixels = torch.rand(1, 3, 64, 48) * 2 - 1
    for upcast, dtype in ((True, torch.float32), (False, torch.bfloat16)):
        vae = make(base).vae
        vae.register_to_config(force_upcast=upcast)
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            assert posterior(vae, pixels).dtype == dtype
    half = make(base).vae.half()
    half.register_to_config(force_upcast=True)
    with torch.no_grad():
        assert posterior(half, pixels).dtype == torch.float32
        assert torch.allclose(posterior(half, pixels), posterior(make(base).vae, pixels), atol=1e-2)


# ------------------------------------------------------------------------------------------------ prompts encoded ahead


def test_kept_phrases_equal_the_encoders_and_need_none(base: Path, latents: Path) -> None:
    full, kept = make(base), make(base, latents)
    assert kept.text_encoder is None and kept.tokenizer is None
    for a, b in zip(full.texts([*phrases(), ""], "cpu"), kept.texts([*phrases(), ""], "cpu"), strict=True):
        assert torch.allclose(a, b, atol=2e-3) and (b[-1] == 0).all() and a.dtype == b.dtype == torch.float32
    assert np.abs(picture(full) - picture(kept)).max() < 0.01
    with pytest.raises(ValueError, match="not encoded ahead"):
        picture(kept, caption="a red coat")


def test_every_phrase_of_training_is_kept(base: Path, records: Path, latents: Path) -> None:
    """Whatever tasks and drops compose, with captions and without, for both canvases."""
    for slots in (1, 2):
        pipe = make(base, latents, slots)
        for captions in (True, False):
            data = RecordsDataset(
                records, Geometry(pipe.canvas, 4, 4), ExampleOptions(split=None, latents=latents, captions=captions)
            )
            asked = {data[epoch, i].layout.prompt() for epoch in range(25) for i in range(len(data))}
            assert len(asked) > 20 or not captions
            pipe.texts(sorted(asked), "cpu")


def test_encoding_goes_on_and_refuses_other_encoders(
    base: Path, records: Path, latents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "latents"
    shutil.copytree(latents, out)
    before = {f: f.stat().st_mtime_ns for f in out.rglob("*.safetensors")}
    assert encode.main(encode_call(base, records, out, "--captions")) == 0
    assert {f: f.stat().st_mtime_ns for f in out.rglob("*.safetensors")} == before
    stored = PromptFiles(out / "captions")
    assert len(stored.where) > 8 and stored.find("nothing") is None
    other = make_sdxl_folder(tmp_path / "other", seed=7)
    shutil.rmtree(other / "vae")
    shutil.copytree(base / "vae", other / "vae")
    assert encode.main(encode_call(other, records, out)) == 2
    assert "other text encoders" in capsys.readouterr().err
    with pytest.raises(ValueError, match="keeps no phrases"):
        make(base, tmp_path)


# ---------------------------------------------------------------------------------------------------- what is trained


def batch(pipe: OMFAPipeline, records: Path) -> object:
    data = RecordsDataset(records, Geometry(pipe.canvas, 4, 4), ExampleOptions(captions=False))
    return collate([data[0, i] for i in range(4)])


@pytest.mark.parametrize("train", ["all", "attention", "lora"])
def test_only_what_is_asked_for_is_trained_and_kept(base: Path, records: Path, train: str) -> None:
    pipe = make(base)
    frozen_before = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    module = OMFAModule(pipe, train=train, rank=2, gradient_checkpointing=True)  # type: ignore[arg-type]
    names = {n for n, p in module.named_parameters() if p.requires_grad}
    assert {"unet.conv_in.weight", "unet.conv_in.bias"} < names
    part = {"all": "", "attention": "attn", "lora": "lora_"}[train]
    assert all(part in n or "conv_in" in n for n in names) and any("attn2" in n for n in names)
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], 1e-2)
    for _ in range(2):  # LoRA's first matrix has no gradient until the second one has moved
        module.losses(batch(pipe, records)).mean().backward()  # type: ignore[arg-type]
        optimizer.step()
    grads = {n for n, p in module.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert grads >= {n for n in names if "norm" not in n} and grads <= names
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    assert set(checkpoint["state_dict"]) == names
    again = OMFAModule(make(base), train=train, rank=2)  # type: ignore[arg-type]
    again.load_state_dict(checkpoint["state_dict"])
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), again.parameters(), strict=True))
    with pytest.raises(RuntimeError, match="Missing key"):
        again.load_state_dict({})
    if train != "all":
        kept = {k.replace(".base_layer", ""): v for k, v in module.unet.state_dict().items() if "lora_" not in k}
        same = [k for k in frozen_before if f"unet.{k}" not in names]
        assert all(torch.equal(kept[k], frozen_before[k]) for k in same)


def test_lora_begins_as_the_base_and_gradients_do_not_depend_on_checkpointing(base: Path, records: Path) -> None:
    losses, grads = [], []
    for options in ({}, {"train": "lora", "rank": 4}, {"gradient_checkpointing": True}):
        module = OMFAModule(make(base), **options)  # type: ignore[arg-type]
        loss = module.losses(batch(module.pipe, records)).mean()  # type: ignore[arg-type]
        loss.backward()
        losses.append(float(loss.detach()))
        grads.append(module.unet.conv_in.weight.grad)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5) and losses[2] == pytest.approx(losses[0], rel=1e-6)
    assert all(torch.allclose(g, grads[0], rtol=1e-3, atol=1e-6) for g in grads)


def test_what_is_frozen_takes_half_the_memory(base: Path, records: Path) -> None:
    full, half = OMFAModule(make(base), train="lora"), OMFAModule(make(base), train="lora", frozen_bf16=True)
    types = {(p.requires_grad, p.dtype) for p in half.parameters()}
    assert types == {(True, torch.float32), (False, torch.bfloat16)}
    with torch.autocast("cpu", torch.bfloat16):
        a, b = (m.losses(batch(m.pipe, records)).mean() for m in (full, half))  # type: ignore[arg-type]
    assert float(b.detach()) == pytest.approx(float(a.detach()), rel=0.02)
    b.backward()
    assert half.unet.conv_in.weight.grad is not None and half.unet.conv_in.weight.grad.dtype == torch.float32


def test_parts_of_the_compact_model_are_not_trained_alone(compact: OMFAPipeline) -> None:
    with pytest.raises(ValueError, match="train 'all' of it"):
        OMFAModule(compact, train="lora")


def test_a_rank_below_one_is_refused(base: Path) -> None:
    with pytest.raises(ValueError, match="rank 0"):
        choose_trained(make(base).unet, "lora", rank=0)


# -------------------------------------------------------------------------------------------------------- small cards


@pytest.fixture(scope="module")
def model(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved pipeline with its text encoders and its phrases."""
    folder = tmp_path_factory.mktemp("model")
    OMFAModule(make(base)).save(folder)
    return folder


def load(model: Path, **options: object) -> OMFAPipeline:
    return silent(OMFAPipeline.from_pretrained(model, **options))


def test_a_saved_model_needs_no_text_encoders(model: Path, base: Path) -> None:
    without = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    bare = load(model, **without)
    assert bare.text_encoder is None and np.abs(picture(load(model)) - picture(bare)).max() < 0.01
    with pytest.raises(ValueError, match="not encoded ahead"):
        picture(bare, caption="a red coat")
    assert np.isfinite(picture(load(model, **text_encoders(str(base))), caption="a red coat")).all()
    assert not [p for p in model.rglob("*.json") if str(base.parent) in p.read_text()]  # nothing of this machine


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_the_same_picture(model: Path, dtype: torch.dtype) -> None:
    half = load(model, dtype=dtype)
    assert half.unet.dtype == dtype
    error = np.abs(picture(half) - picture(load(model)))
    assert error.max() < 0.05 and error.mean() < 0.005


def test_the_vae_in_slices_and_tiles(model: Path) -> None:
    pipe = load(model)
    whole = picture(pipe)
    pipe.vae.enable_slicing()
    assert (picture(pipe) == whole).all()
    pipe.vae.enable_tiling()
    pipe.vae.tile_sample_min_size, pipe.vae.tile_latent_min_size = 48, 12  # as 768 would be to a 1024x768 picture
    error = np.abs(picture(pipe) - whole)  # borders and group norms differ by tile, in a VAE of random weights most
    assert 0 < error.mean() < 0.03 and (error < 0.1).mean() > 0.99


@pytest.mark.gpu
@pytest.mark.parametrize("offload", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offloading_in_bfloat16_gives_the_same_picture(model: Path, offload: str) -> None:
    without = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    expected = picture(load(model, dtype=torch.bfloat16, **without).to("cuda"))
    pipe = load(model, dtype=torch.bfloat16, **without)
    getattr(pipe, offload)()
    assert np.abs(picture(pipe) - expected).max() < 0.05
