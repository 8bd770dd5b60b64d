"""Feature networks, distances between sets, intervals: against the packages, and as statistics should behave."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from omfa.evaluation.distances import frechet_distance, kernel_distance_jackknife
from omfa.evaluation.intervals import bootstrap_mean, frechet_halves, group_numbers, half_samples, jackknife_error
from omfa.evaluation.learned_metrics import (
    CLIP,
    DINO,
    DISTS,
    LPIPS,
    MissingWeights,
    centre_crop,
    find_weights,
    load_network,
    resize_clean,
)
from tests.evaluation.metrics_golden import GOLDEN, distorted, features, picture, random_state

GOLDEN_VALUES: dict[str, list[float]] = json.loads(GOLDEN.read_text())
SIZES = [(256, 192), (341, 257)]


@pytest.fixture(scope="module")
def vgg() -> dict[str, torch.Tensor]:
    return random_state("vgg")


@pytest.mark.parametrize("net", ["alex", "vgg", "squeeze"])
def test_lpips_agrees_with_its_package(net, vgg) -> None:
    model = LPIPS(net, vgg if net == "vgg" else random_state(net))
    for seed, size in enumerate(SIZES):
        truth = picture(seed, *size)
        assert model(distorted(truth, seed), truth).item() == pytest.approx(
            GOLDEN_VALUES[f"lpips_{net}"][seed], rel=1e-4
        )
    assert model(truth, truth).item() == 0
    assert model(distorted(truth, 1), truth, torch.ones(1, 1, 341, 257)).item() == pytest.approx(
        model(distorted(truth, 1), truth).item(), rel=1e-5
    )


def test_dists_agrees_with_its_package(vgg) -> None:
    model = DISTS(vgg)
    for seed, size in enumerate(SIZES):
        truth = picture(seed, *size)
        assert model(distorted(truth, seed), truth).item() == pytest.approx(GOLDEN_VALUES["dists"][seed], rel=1e-4)
    assert model(truth, truth).item() == pytest.approx(0, abs=1e-6)


def test_lpips_mask_sees_its_own_part() -> None:
    model, truth = LPIPS("squeeze", random_state("squeeze")), picture(0)
    mask = torch.zeros(1, 1, 256, 192)
    mask[..., :96, :] = 1
    pred = truth.clone()
    pred[..., 160:, :] = 1 - pred[..., 160:, :]  # far from the mask
    assert model(pred, truth).item() > 10 * model(pred, truth, mask).item()


def kernel_distance(x: np.ndarray, y: np.ndarray) -> float:
    """KID alone."""
    return kernel_distance_jackknife(x, y, np.arange(len(x)), np.arange(len(y)))[0]


@pytest.mark.parametrize(("index", "count", "width"), [(0, 900, 64), (1, 500, 256)])
def test_fid_and_kid_agree_with_scipy_and_clean_fid(index: int, count: int, width: int) -> None:
    x, y = features(1, count, width), features(2, count, width)
    assert frechet_distance(x, y) == pytest.approx(GOLDEN_VALUES["fid"][index], rel=1e-6)
    assert kernel_distance(x, y) == pytest.approx(GOLDEN_VALUES["kid"][index], rel=1e-6)


def test_fid_with_fewer_samples_than_features() -> None:
    x, y = features(1, 40, 64).astype(np.float64), features(2, 50, 64).astype(np.float64)
    product = np.cov(x, rowvar=False) @ np.cov(y, rowvar=False)
    root_trace = np.sqrt(np.linalg.eigvals(product).real.clip(min=0)).sum()
    wanted = ((x.mean(0) - y.mean(0)) ** 2).sum() + x.var(0, ddof=1).sum() + y.var(0, ddof=1).sum() - 2 * root_trace
    assert frechet_distance(x, y) == pytest.approx(wanted, rel=1e-5)


def test_a_set_against_itself() -> None:
    x = features(1, 300, 64)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x[:40], x[:40]) == pytest.approx(0, abs=1e-9)
    assert -0.1 < kernel_distance(x, x) < 0


def test_kid_without_a_group_is_kid_of_the_rest() -> None:
    x, y = features(1, 30, 16), features(2, 24, 16)
    gx, gy = np.arange(30) // 3, np.arange(24) // 3
    value, left_out = kernel_distance_jackknife(x, y, gx, gy)
    assert value == pytest.approx(kernel_distance(x, y))
    for group in range(10):
        assert left_out[group] == pytest.approx(kernel_distance(x[gx != group], y[gy != group]), rel=1e-9)


def test_kid_jackknife_error_is_the_true_spread() -> None:
    def sample(seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.RandomState(seed)
        return rng.randn(80, 8), rng.randn(80, 8) + 0.3

    values, errors = [], []
    for seed in range(60):
        value, left_out = kernel_distance_jackknife(*sample(seed), np.arange(80), np.arange(80))
        values.append(value)
        errors.append(jackknife_error(left_out))
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.3)


def test_bootstrap_covers_the_mean_and_respects_groups() -> None:
    covered = 0
    for seed in range(100):
        rng = np.random.RandomState(seed)
        values = np.repeat(rng.randn(40), 5)  # five copies of each: 40 independent values, not 200
        low, high = bootstrap_mean(values, np.arange(200) // 5, draws=400)
        covered += low <= 0 <= high
    assert 88 <= covered <= 99
    assert bootstrap_mean(values, np.arange(200) // 5) == bootstrap_mean(values, np.arange(200) // 5)
    too_sure = bootstrap_mean(values, np.arange(200))
    assert too_sure[1] - too_sure[0] < (high - low) * 0.7
    assert np.isnan(bootstrap_mean(np.ones(4), np.zeros(4, dtype=int))).all()


def test_half_samples_keep_groups_whole() -> None:
    groups = group_numbers(["a", "b", "a", "c", "d", "b"])
    assert groups.tolist() == [0, 1, 0, 2, 3, 1]
    for rows in half_samples(groups):
        inside = set(groups[rows])
        assert len(inside) == 2 and set(np.flatnonzero(np.isin(groups, list(inside)))) == set(rows)
    x, y = features(1, 60, 16), features(2, 60, 16)
    assert frechet_halves(x, y, np.arange(60)).std() > 0
    assert frechet_halves(x, y, np.zeros(60, dtype=int)).size == 0


def _pillow(x: torch.Tensor) -> Image.Image:
    return Image.fromarray((x[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))


def test_resizing_is_what_clean_fid_does_with_pillow() -> None:
    x = picture(0, 341, 257)
    planes = [Image.fromarray(np.asarray(plane, dtype=np.float32)) for plane in x[0].numpy() * 255]
    theirs = np.stack([np.asarray(p.resize((299, 299), Image.Resampling.BICUBIC)).clip(0, 255) for p in planes])
    assert np.abs(resize_clean(x)[0].numpy() - theirs).max() < 0.01

    small = _pillow(x).resize((224, int(341 * 224 / 257)), Image.Resampling.BICUBIC)  # as torchvision's Resize(224)
    top = round((small.height - 224) / 2)
    theirs = np.asarray(small.crop((0, top, 224, top + 224)), dtype=np.float32).transpose(2, 0, 1)
    assert np.abs(centre_crop(x, 224, 224)[0].numpy() * 255 - theirs).max() <= 1.01


def test_dino_is_the_transformer_of_that_name() -> None:
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536, layer_norm_eps=1e-6)
    theirs = ViTModel(config, add_pooling_layer=False).eval()
    rng = torch.Generator().manual_seed(0)
    width, shapes = (
        384,
        {"cls_token": (1, 1, 384), "pos_embed": (1, 197, 384), "patch_embed.proj.weight": (384, 3, 16, 16)},
    )
    for i in range(12):
        shapes |= {f"blocks.{i}.attn.qkv.weight": (3 * width, width), f"blocks.{i}.attn.qkv.bias": (3 * width,)}
        shapes |= {f"blocks.{i}.attn.proj.weight": (width, width), f"blocks.{i}.attn.proj.bias": (width,)}
        shapes |= {f"blocks.{i}.mlp.fc1.weight": (4 * width, width), f"blocks.{i}.mlp.fc1.bias": (4 * width,)}
        shapes |= {f"blocks.{i}.mlp.fc2.weight": (width, 4 * width), f"blocks.{i}.mlp.fc2.bias": (width,)}
        shapes |= {f"blocks.{i}.norm{n}.{k}": (width,) for n in (1, 2) for k in ("weight", "bias")}
    shapes |= {"patch_embed.proj.bias": (width,), "norm.weight": (width,), "norm.bias": (width,)}
    official = {k: torch.randn(s, generator=rng) * 0.05 for k, s in shapes.items()}
    state = _as_transformers(official, theirs.state_dict())
    theirs.load_state_dict(state)
    x = picture(0)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    seen = (centre_crop(x, 256, 224) - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    with torch.no_grad():
        wanted = theirs(seen).last_hidden_state[:, 0]
    torch.testing.assert_close(DINO(official)(x), wanted, rtol=1e-4, atol=1e-5)
    del official["norm.bias"]
    with pytest.raises(RuntimeError, match=r"norm\.bias"):
        DINO(official)


def _as_transformers(official: dict[str, torch.Tensor], like: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """DINO's official names to those of transformers' ViT, whichever release."""
    state = {}
    for key in like:
        name = key.replace("embeddings.cls_token", "cls_token").replace("embeddings.position_embeddings", "pos_embed")
        name = name.replace("embeddings.patch_embeddings.projection", "patch_embed.proj").replace("layernorm.", "norm.")
        name = name.replace("encoder.layer.", "blocks.").replace("layers.", "blocks.")
        for part, (old, rows) in {
            "q": ("query", slice(0, 384)),
            "k": ("key", slice(384, 768)),
            "v": ("value", slice(768, 1152)),
        }.items():
            for theirs in (f"attention.attention.{old}", f"attention.{part}_proj"):
                if theirs in name:
                    state[key] = official[name.replace(theirs, "attn.qkv")][rows]
        for theirs, ours in {
            "attention.output.dense": "attn.proj",
            "attention.o_proj": "attn.proj",
            "intermediate.dense": "mlp.fc1",
            "output.dense": "mlp.fc2",
            "layernorm_before": "norm1",
            "layernorm_after": "norm2",
        }.items():
            name = name.replace(theirs, ours)
        state.setdefault(key, official.get(name))
    assert all(v is not None for v in state.values()), [k for k, v in state.items() if v is None]
    return state


def test_clip_is_the_projected_embedding_and_never_random(tmp_path: Path) -> None:
    from transformers import CLIPModel, CLIPTextConfig, CLIPVisionConfig
    from transformers.models.clip.configuration_clip import CLIPConfig

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=CLIPTextConfig(vocab_size=50, **small).to_dict(),
        vision_config=CLIPVisionConfig(image_size=64, patch_size=16, projection_dim=24, **small).to_dict(),
        projection_dim=24,
    )
    theirs = CLIPModel(config).eval()
    theirs.save_pretrained(tmp_path / "whole")
    x = picture(0)
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    seen = (centre_crop(x, 64, 64) - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    with torch.no_grad():
        pooled = theirs.vision_model(pixel_values=seen).pooler_output
        wanted = theirs.visual_projection(pooled)
    torch.testing.assert_close(CLIP(tmp_path / "whole")(x), wanted, rtol=1e-4, atol=1e-5)
    file = tmp_path / "whole" / "model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if k != "visual_projection.weight"}, file, {"format": "pt"})
    with pytest.raises(ValueError, match="lacks weights"):
        CLIP(tmp_path / "whole")


def test_missing_and_wrong_weights(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    for name in ("alex", "inception", "clip"):
        with pytest.raises(MissingWeights, match="--weights DIR"):
            find_weights(name, tmp_path)
    torch.save({}, tmp_path / "squeezenet1_1-b8a52dc0.pth")
    with pytest.raises(ValueError, match="not the official file"):
        load_network("lpips_squeeze", tmp_path)
    (tmp_path / "inception-2015-12-05.pt").write_bytes(b"no network")
    with pytest.raises(ValueError, match="not the official file"):
        load_network("inception", tmp_path)
