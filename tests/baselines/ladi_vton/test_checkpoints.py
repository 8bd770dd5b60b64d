from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.testing import assert_close

from omfa.baselines.ladi_vton import checkpoints as ck
from omfa.baselines.ladi_vton.refinement import Refinement
from omfa.baselines.ladi_vton.warping import TPSWarping
from tests.baselines.ladi_vton.golden import fill, keys, shapes
from tests.baselines.ladi_vton.tiny import tiny_unet


def test_the_official_unet_has_a_place() -> None:
    with torch.device("meta"):
        network = UNet2DConditionModel(**ck.SD2_UNET, in_channels=31)
    assert shapes(network) == keys("unet")
    assert sum(p.numel() for p in network.parameters()) == 865_988_484


@pytest.fixture(scope="module")
def warping(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as published: two state dicts, as training on several devices leaves their names."""
    networks = {"tps": TPSWarping(), "refinement": Refinement()}
    both = {n: {f"module.{k}": v for k, v in fill(x, f"ladi.{n}").state_dict().items()} for n, x in networks.items()}
    path = tmp_path_factory.mktemp("official") / "warping_vitonhd.pth"
    torch.save(both, path)
    return path


def test_an_official_file_loads_and_goes_on_as_a_folder(warping: Path, tmp_path: Path) -> None:
    tps, refinement = ck.load_warping(warping)
    stored = torch.load(warping, weights_only=True)
    for network, name in ((tps, "tps"), (refinement, "refinement")):
        network.save_pretrained(tmp_path / name)
        assert [p.suffix for p in sorted((tmp_path / name).iterdir())] == [".json", ".safetensors"]
        again = type(network).from_pretrained(tmp_path / name).state_dict()
        assert {f"module.{k}" for k in again} == set(stored[name])
        assert all(torch.equal(v, stored[name][f"module.{k}"]) for k, v in again.items())


class Evil:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return Path.touch, ("never",)  # type: ignore[return-value]


def _without(state: dict[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in state.items() if k != key}


HOSTILE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a list": lambda s: [1, 2],
    "one network": lambda s: s["tps"],
    "no tensors": lambda s: s | {"tps": {"a": 1}},
    "one missing": lambda s: s | {"tps": _without(s["tps"], "module.gridGen.inverse_kernel")},
    "one too many": lambda s: s | {"tps": s["tps"] | {"more": torch.zeros(1)}},
    "another shape": lambda s: s | {"refinement": s["refinement"] | {"module.outc.conv.bias": torch.zeros(4)}},
    "nan": lambda s: s | {"refinement": s["refinement"] | {"module.outc.conv.bias": torch.full((3,), torch.nan)}},
    "code": lambda s: s | {"tps": Evil()},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_in_one_line(name: str, warping: Path, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(HOSTILE[name](torch.load(warping, weights_only=True)), path)
    with pytest.raises(ck.Refused) as error:
        ck.load_warping(path)
    assert "\n" not in str(error.value) and "w.pth" in str(error.value)
    assert not Path("never").exists()


def test_what_is_no_file_of_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("not a checkpoint")
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps({"a": 1}))
    (tmp_path / "cut.safetensors").write_bytes(b"\x40\0\0\0\0\0\0\0{")
    for path in [*tmp_path.iterdir(), tmp_path / "none.pth"]:
        for load in (ck.load_emasc, ck.load_inversion_adapter, ck.load_unet, ck.load_warping):
            with pytest.raises(ck.Refused, match=path.name):
                load(path)


def test_emasc_of_either_kind_and_the_unet_know_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("nonlinear", "linear"):
        network = ck.EMASC(kind=kind)
        torch.save({f"_orig_mod.{k}": v for k, v in network.state_dict().items()}, tmp_path / "emasc.pth")
        assert ck.load_emasc(tmp_path / "emasc.pth").config.kind == kind
    small = dict(tiny_unet().config)
    monkeypatch.setattr(
        ck, "SD2_UNET", {k: v for k, v in small.items() if not k.startswith("_") and k != "in_channels"}
    )
    for channels in (31, 27):
        torch.save(tiny_unet(channels).state_dict(), tmp_path / "unet.pth")
        assert ck.load_unet(tmp_path / "unet.pth").config.in_channels == channels
    torch.save(tiny_unet(9).state_dict(), tmp_path / "unet.pth")
    with pytest.raises(ck.Refused, match="31 or 27"):
        ck.load_unet(tmp_path / "unet.pth")


@torch.no_grad()
def test_a_widened_network_computes_as_before(tmp_path: Path) -> None:
    unet = tiny_unet(9).eval()
    x, text, more = torch.randn(1, 9, 8, 8), torch.randn(1, 77, 32), torch.randn(1, 22, 8, 8)
    before = unet(x, 5, text).sample
    wide = ck.widen(unet)
    assert_close(wide(torch.cat([x, more], 1), 5, text).sample, before, atol=1e-5, rtol=1e-5)
    wide.save_pretrained(tmp_path)
    assert UNet2DConditionModel.from_pretrained(tmp_path).config.in_channels == 31
    with pytest.raises(ValueError, match="9 channels"):
        ck.widen(tiny_unet(4))
