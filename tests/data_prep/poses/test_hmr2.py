"""HMR2.0: the documented keys and shapes, strict loading, crop and camera against numbers worked by hand."""

from __future__ import annotations

import json
import math
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from data_prep.__main__ import main
from data_prep.poses import hmr2
from omfa.bodies.parameters import BodyParameters
from omfa.bodies.placing import project


def documented() -> dict[str, tuple[int, ...]]:
    """Every key of the released network with its shape, as documented."""
    keys: dict[str, tuple[int, ...]] = {
        "backbone.patch_embed.proj.weight": (1280, 3, 16, 16),
        "backbone.patch_embed.proj.bias": (1280,),
        "backbone.pos_embed": (1, 193, 1280),
        "backbone.last_norm.weight": (1280,),
        "backbone.last_norm.bias": (1280,),
    }
    for i in range(32):
        for name, shape in {
            "norm1": (1280,), "norm2": (1280,), "attn.qkv": (3840, 1280), "attn.proj": (1280, 1280),
            "mlp.fc1": (5120, 1280), "mlp.fc2": (1280, 5120),
        }.items():  # fmt: skip
            keys |= {f"backbone.blocks.{i}.{name}.weight": shape, f"backbone.blocks.{i}.{name}.bias": shape[:1]}
    head, layers = "smpl_head.transformer.", "smpl_head.transformer.transformer.layers."
    keys |= {head + "to_token_embedding.weight": (1024, 1), head + "to_token_embedding.bias": (1024,)}
    keys[head + "pos_embedding"] = (1, 1, 1024)
    for i in range(6):
        for k in range(3):
            keys |= {f"{layers}{i}.{k}.norm.weight": (1024,), f"{layers}{i}.{k}.norm.bias": (1024,)}
        keys[f"{layers}{i}.0.fn.to_qkv.weight"] = (1536, 1024)
        keys[f"{layers}{i}.1.fn.to_kv.weight"] = (1024, 1280)
        keys[f"{layers}{i}.1.fn.to_q.weight"] = (512, 1024)
        for name, shape in {"0.fn.to_out.0": (1024, 512), "1.fn.to_out.0": (1024, 512)}.items():
            keys |= {f"{layers}{i}.{name}.weight": shape, f"{layers}{i}.{name}.bias": (1024,)}
        for k in (0, 3):
            keys |= {f"{layers}{i}.2.fn.net.{k}.weight": (1024, 1024), f"{layers}{i}.2.fn.net.{k}.bias": (1024,)}
    for name, size in {"pose": 144, "shape": 10, "cam": 3}.items():
        keys |= {f"smpl_head.dec{name}.weight": (size, 1024), f"smpl_head.dec{name}.bias": (size,)}
    for name, size in {"body_pose": 144, "betas": 10, "cam": 3}.items():
        keys[f"smpl_head.init_{name}"] = (1, size)
    return keys


def test_the_full_network_has_the_documented_keys_and_shapes() -> None:
    with torch.device("meta"):
        network = hmr2.Hmr2Network()
        assert {k: tuple(v.shape) for k, v in network.state_dict().items()} == documented()
        rotations, betas, camera = network(torch.zeros(2, 3, 256, 192))
    assert (rotations.shape, betas.shape, camera.shape) == ((2, 24, 3, 3), (2, 10), (2, 3))


def small(seed: int = 0, mean_token: bool = False) -> hmr2.Hmr2Network:
    torch.manual_seed(seed)
    network = hmr2.Hmr2Network(dim=80, depth=2, heads=1, head_dim=32, head_depth=1, mean_token=mean_token)
    six = torch.tensor([1.0, 0, 0, 0, 1, 0]).repeat(24)
    six[:6] = torch.tensor([1.0, 0, 0, 0, -1, 0])  # upright before a camera with y down
    network.smpl_head.init_body_pose[0] = six
    network.smpl_head.init_cam[0] = torch.tensor([0.9, 0.0, 0.0])
    return network.eval()


def official(network: hmr2.Hmr2Network, path: Path) -> Path:
    """A file in the layout of the official checkpoint, with what is to be ignored in it."""
    state = dict(network.state_dict())
    state |= {
        "discriminator.fc.weight": torch.zeros(2),
        "smpl.betas": torch.zeros(1, 10),
        "initialized": torch.tensor(1),
    }
    torch.save({"state_dict": state, "epoch": 3, "hyper_parameters": {"cfg": {"MODEL": {"IMAGE_SIZE": 256}}}}, path)
    return path


@pytest.mark.parametrize("mean_token", [False, True])
def test_a_checkpoint_in_the_official_layout_loads_strictly(tmp_path: Path, mean_token: bool) -> None:
    network = small(mean_token=mean_token)
    loaded = hmr2.load(official(network, tmp_path / "model.ckpt"))
    crops = torch.randn(2, 3, 256, 192)
    with torch.inference_mode():
        for a, b in zip(network(crops), loaded(crops), strict=True):
            assert torch.equal(a, b)


class CfgNode(dict):  # type: ignore[type-arg]
    """As 4D-Humans' settings are kept: a dict with attributes, which pickles by its class's name."""


def test_settings_kept_beside_the_weights_are_read_past(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    yacs, config = types.ModuleType("yacs"), types.ModuleType("yacs.config")
    config.CfgNode = CfgNode  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "yacs", yacs)
    monkeypatch.setitem(sys.modules, "yacs.config", config)
    monkeypatch.setattr(CfgNode, "__module__", "yacs.config")
    settings = CfgNode(MODEL=CfgNode(IMAGE_SIZE=256))
    settings.frozen = True  # type: ignore[attr-defined]
    state = dict(small().state_dict())
    for number, kept in enumerate([settings, OmegaConf.create({"MODEL": {"IMAGE_SIZE": 256, "NAMES": ["a"]}})]):
        path = tmp_path / f"{number}.ckpt"
        torch.save({"state_dict": state, "hyper_parameters": {"cfg": kept}}, path)
        with pytest.raises(pickle.UnpicklingError):
            torch.load(path, weights_only=True)
        loaded = hmr2.load(path).state_dict()
        assert all(torch.equal(loaded[k], v) for k, v in state.items())


def test_other_files_are_refused_with_the_reason(tmp_path: Path) -> None:
    state = dict(small().state_dict())
    with pytest.raises(ValueError, match=r"blocks.1.mlp.fc1.bias"):
        hmr2.from_weights({k: v for k, v in state.items() if k != "backbone.blocks.1.mlp.fc1.bias"})
    with pytest.raises(ValueError, match=r"something\.else"):
        hmr2.from_weights(state | {"something.else": torch.zeros(1)})
    with pytest.raises(ValueError, match="no weights of HMR2"):
        hmr2.from_weights({"a": torch.zeros(1)})
    (tmp_path / "no.ckpt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no checkpoint of plain weights"):
        hmr2.load(tmp_path / "no.ckpt")
    torch.save(
        {"state_dict": state, "path": Path("x")}, tmp_path / "objects.ckpt"
    )  # needs more than weights_only gives
    with pytest.raises(ValueError, match="no checkpoint of plain weights"):
        hmr2.load(tmp_path / "objects.ckpt")
    for odd in ({"state_dict": 3}, {"state_dict": {1: torch.zeros(2)}}, [1, 2]):
        torch.save(odd, tmp_path / "odd.ckpt")
        with pytest.raises(ValueError, match=r"no weights of HMR2|no checkpoint"):
            hmr2.load(tmp_path / "odd.ckpt")
    with pytest.raises(ValueError, match="no such file"):
        hmr2.load(tmp_path / "missing.ckpt")


def test_six_numbers_are_two_columns_one_after_the_other() -> None:
    six = torch.tensor([0.0, 2, 0, 1, 5, 0])  # first column along y; the second, made orthogonal, along x
    expected = torch.tensor([[0.0, 1, 0], [1, 0, 0], [0, 0, -1]])
    assert torch.allclose(hmr2.rotations_from_six(six), expected)


def test_a_head_takes_its_answer_from_the_mean_when_it_has_nothing_to_say() -> None:
    network = small()
    for name in ("decpose", "decshape", "deccam"):
        torch.nn.init.zeros_(getattr(network.smpl_head, name).weight)
        torch.nn.init.zeros_(getattr(network.smpl_head, name).bias)
    rotations, betas, camera = network(torch.randn(1, 3, 256, 192))
    assert torch.allclose(rotations[0, 1:], torch.eye(3).expand(23, 3, 3)) and not betas.any()
    assert torch.allclose(camera, torch.tensor([[0.9, 0, 0]]))


def test_crop_by_hand() -> None:
    assert hmr2.crop_side((0, 0, 30, 120)) == 120  # tall: its height
    assert hmr2.crop_side((0, 0, 90, 60)) == 120  # wide: 90 * 256 / 192
    rgb = np.zeros((300, 300, 3), np.uint8)
    rgb[100:228, 50:178] = 255  # a white square of 128 pixels in the crop's middle
    crop = hmr2.crop(rgb, (50, 36, 178, 292))  # 256 high: no scaling, centre (114, 164)
    assert crop.shape == (1, 3, 256, 192)
    white = (1 - hmr2.MEAN) / hmr2.STD
    assert np.allclose(crop[0, :, 64, 32], white, atol=1e-5)  # photo (50, 100) is square (64, 64), crop column 32
    assert np.allclose(crop[0, :, 63, 32], -hmr2.MEAN / hmr2.STD, atol=1e-5)
    assert np.allclose(crop[0, :, 191, 159], white, atol=1e-5)


def test_camera_by_hand() -> None:
    # photo 400x300 (H, W), box centre (100, 150), crop of 200 pixels, s = 0.5: b = 100, F = 5000/256 * 400 = 7812.5
    params = hmr2.to_parameters(
        np.eye(3)[None].repeat(24, 0), np.array([0.5, 0.1, -0.2]), (60, 50, 140, 250), (400, 300)
    )
    assert np.allclose(params.transl, [0.1 + 2 * (100 - 150) / 100, -0.2 + 2 * (150 - 200) / 100, 2 * 7812.5 / 100])
    assert math.isclose(params.K[0, 0], 7812.5) and params.body.startswith("smpl")


def test_estimator_from_a_checkpoint_and_a_file_of_boxes(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (96, 128), "white").save(tmp_path / "in" / "a.png")
    Image.new("RGB", (96, 128), "white").save(tmp_path / "in" / "b.png")
    checkpoint = official(small(), tmp_path / "model.ckpt")
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps({"a": [[20, 10, 76, 118]]}))
    call = ["pose-maps", "--images", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--estimator", "hmr2"]
    assert main([*call, "--checkpoint", str(checkpoint), "--boxes", str(boxes)]) == 1
    line = json.loads((tmp_path / "out" / "metadata.jsonl").read_text())
    assert line["provenance"]["pose"]["estimator"] == "hmr2" and "approximate" in line["provenance"]["pose"]["body"]
    params = BodyParameters.load(tmp_path / "out" / "pose" / "a.npz")
    pelvis = project(params.transl, params.K)
    assert np.isfinite(pelvis).all() and params.image_size == (128, 96)
    failed = json.loads((tmp_path / "out" / "failures.jsonl").read_text())
    assert failed["id"] == "b" and "no box for b" in failed["reason"]
    boxes.write_text('{"a": [[5, 5, 1, 9]]}')
    hmr2.read_boxes.cache_clear()
    assert (
        main([*call[:4], str(tmp_path / "o2"), *call[5:], "--checkpoint", str(checkpoint), "--boxes", str(boxes)]) == 2
    )
