"""The networks are the published ones: names, sizes, numbers; published files load strictly, others are refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from omfa.baselines.tryoffdiff.networks import (
    ImageAdapter,
    Version,
    add_classes,
    make_adapter,
    make_scheduler,
    make_unet,
    version_of,
)
from omfa.baselines.tryoffdiff.weights import load_official, official_version, official_weights, read_official
from tests.baselines import rule
from tests.baselines.tryoffdiff.common import (
    GOLDEN,
    PREFIXES,
    golden,
    largest,
    meta_networks,
    networks,
    official_keys,
    siglip_tokens,
    unet_config,
)

VERSIONS = list(PREFIXES)
PARAMETERS = {"v1": 865_115_409, "v2": 859_601_425, "mgt": 859_605_265}


def test_the_rule_gives_the_values_it_should() -> None:
    checks = load_file(GOLDEN / "rule_check.safetensors")
    assert torch.equal(rule.weight("tod.v1", "proj.weight", (77, 1024)).flatten()[:16], checks["tod.v1:proj.weight"])
    name = "extractionA.model.2.running_var"
    assert torch.equal(rule.weight("ladi.tps", name, (64,), 1.5)[:16], checks[f"ladi.tps:{name}"])


@pytest.mark.parametrize("version", VERSIONS)
def test_names_shapes_and_counts_are_the_published_ones(version: Version) -> None:
    ours = official_weights(*meta_networks(version))
    assert {k: list(v.shape) for k, v in ours.items()} == official_keys(version)
    assert sum(v.numel() for v in ours.values()) == PARAMETERS[version]


@pytest.mark.parametrize("version", VERSIONS)
@torch.no_grad()
def test_adapters_and_class_embedding_agree(version: Version) -> None:
    unet, adapter = networks(version)
    numbers, name = golden("adapters"), PREFIXES[version].removeprefix("tod.")
    given, nothing = adapter(siglip_tokens()), adapter(torch.zeros(1, 1024, 768))
    assert largest(given[..., ::4], numbers[f"{name}.cond_embedding_stride4"]) < 1e-5
    # Of equal tokens the blending keeps its weights' sum; the norm divides by that, and by rounding where it is small:
    # v1's differ by 7.7e-5 there, by less than 1e-5 where each row is weighted with what it was divided by.
    zoom = adapter.proj.weight.sum(1)[None, :, None].abs().clamp(max=1) if version == "v1" else 1.0
    assert largest(nothing[..., ::4] * zoom, numbers[f"{name}.uncond_embedding_stride4"] * zoom) < 1e-5
    assert largest(nothing[..., ::4], numbers[f"{name}.uncond_embedding_stride4"]) < 1e-4
    latents, t = rule.uniform("tod:in.latents", (2, 4, 64, 64)), torch.tensor([7, 801])
    calls = {"unet_output": (given, [2, 0]), "unet_output_uncond": (nothing.expand_as(given), [2, 0])}
    if version == "mgt":
        calls["unet_output_class1"] = given, [1, 1]
    for call, (context, classes) in calls.items():
        labels = torch.tensor(classes) if version == "mgt" else None
        made = unet(latents, t, context, class_labels=labels).sample[..., ::4, ::4]
        assert largest(made, numbers[f"{name}.{call}_stride4"]) < 1e-5, call


def test_noise_tables_agree() -> None:
    numbers = golden("noise")
    euler, pndm = make_scheduler("v2"), make_scheduler("v1")
    for scheduler, name in ((euler, "euler"), (pndm, "pndm")):
        made = scheduler.add_noise(numbers["latents"], numbers["noise"], numbers["timesteps"])
        assert largest(made, numbers[f"{name}_add_noise"]) < 1e-5
    for steps in (1, 3, 20):
        euler.set_timesteps(steps)
        assert largest(euler.sigmas, numbers[f"euler_karras_{steps}.sigmas"]) < 1e-5
        assert largest(euler.timesteps, numbers[f"euler_karras_{steps}.timesteps"]) < 1e-5
    for steps in (3, 50):
        pndm.set_timesteps(steps)
        assert torch.equal(pndm.timesteps, numbers[f"pndm_{steps}.timesteps"])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module._orig_mod."])
def test_a_published_file_loads_strictly(version: Version, prefix: str, tmp_path: Path) -> None:
    unet, adapter = networks(version)
    own = official_weights(unet, adapter)
    torch.save({prefix + k: v for k, v in own.items()}, tmp_path / "model.pth")
    fresh = make_unet(version, unet_config()), make_adapter(version)
    weights = read_official(tmp_path / "model.pth")
    assert official_version(weights, "model.pth") == version == version_of(*fresh)
    load_official(weights, *fresh, "model.pth")
    loaded = official_weights(*fresh)
    assert own.keys() == loaded.keys() and all(torch.equal(own[k], loaded[k]) for k in own)
    fresh[1].save_pretrained(tmp_path / "adapter")
    again = ImageAdapter.from_pretrained(tmp_path / "adapter")
    assert all(torch.equal(v, own[k]) for k, v in again.state_dict().items())


class Poison:
    """Makes a folder when it is unpickled."""

    def __init__(self, where: Path) -> None:
        self.where = str(where)

    def __reduce__(self) -> object:
        return os.mkdir, (self.where,)


def one_line(error: pytest.ExceptionInfo[ValueError], path: Path) -> str:
    said = str(error.value)
    assert said.startswith(str(path)) and "\n" not in said and len(said) < 400
    return said


def test_bad_files_are_refused_in_one_line(tmp_path: Path) -> None:
    weights = {"unet.conv_in.weight": torch.ones(3), "proj.weight": torch.ones(9), "norm.weight": torch.ones(9)}
    path = tmp_path / "model.pth"
    with pytest.raises(ValueError) as error:
        read_official(path)
    assert "no such file" in one_line(error, path)
    torch.save(weights, path)
    whole = path.read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError) as error:
            read_official(path)
        assert "damaged or cut short" in one_line(error, path), cut
    for poison in (weights | {"x": Poison(tmp_path / "made")}, Poison(tmp_path / "made")):
        torch.save(poison, path)
        with pytest.raises(ValueError) as error:
            read_official(path)
        assert "none of it was run" in one_line(error, path) and not (tmp_path / "made").exists()
    torch.save(weights, path)
    at = whole.index(torch.ones(9).numpy().tobytes()) + 5
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x5A]) + whole[at + 1 :])
    with pytest.raises(ValueError) as error:
        read_official(path)
    assert "the checksum of model/data/1 is another" in one_line(error, path)
    strangers = {
        b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\n": "a pointer of Git LFS",
        b"\n<!DOCTYPE html><html>404</html>": "a web page",
        b"\x00\x01random bytes": "begins with b'",
    }
    for content, said in strangers.items():
        path.write_bytes(content)
        with pytest.raises(ValueError) as error:
            read_official(path)
        assert said in one_line(error, path) and "hf download" in str(error.value)
    for other in ([1, 2], {}, {"epoch": 3}, {1: torch.ones(2)}, {"x": torch.eye(3).to_sparse()}):
        torch.save(other, path)
        with pytest.raises(ValueError) as error:
            read_official(path)
        assert "no plain weights" in one_line(error, path)
    for bad in (torch.tensor([1.0, float("nan")]), torch.ones(2, dtype=torch.int64)):
        torch.save({"unet.x": bad}, path)
        with pytest.raises(ValueError) as error:
            read_official(path)
        assert "unet.x" in one_line(error, path)
    with pytest.raises(ValueError) as error:
        official_version({"conv.weight": torch.ones(1)}, path)
    assert "'conv.weight'" in one_line(error, path)


def test_no_name_stands_for_two_weights(tmp_path: Path) -> None:
    torch.save({"proj.weight": torch.ones(2), "_orig_mod.proj.weight": torch.zeros(2)}, tmp_path / "model.pth")
    assert set(read_official(tmp_path / "model.pth")) == {"proj.weight", "_orig_mod.proj.weight"}


def test_a_file_of_another_version_or_size_is_refused(tmp_path: Path) -> None:
    made = official_weights(*networks("v2"))
    for version in ("v1", "mgt"):
        with pytest.raises(ValueError) as error:
            load_official(made, make_unet(version, unet_config()), make_adapter(version), tmp_path)
        assert "missing" in one_line(error, tmp_path)
    with pytest.raises(ValueError, match=r"weights don't fit, like proj\.weight"):
        load_official(made, make_unet("v2", unet_config()), make_adapter("v2", tokens=64), tmp_path)
    with pytest.raises(ValueError, match="no version of TryOffDiff"):
        version_of(make_unet("mgt", unet_config()), make_adapter("v1"))


def test_classes_can_be_added_to_a_plain_unet(tmp_path: Path) -> None:
    unet = add_classes(make_unet("v2", unet_config()))
    assert version_of(unet, make_adapter("v2")) == "mgt"
    unet.save_pretrained(tmp_path)
    again = type(unet).from_pretrained(tmp_path)
    assert torch.equal(again.class_embedding.weight, unet.class_embedding.weight)
