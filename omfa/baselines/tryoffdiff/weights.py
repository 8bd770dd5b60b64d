"""The published files: UNet and adapter of one model in one ``.pth``, read safely, checked and loaded strictly."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from omfa.baselines.tryoffdiff.networks import ImageAdapter, Version
from omfa.weights import plain

NAMES: dict[Version, str] = {"v1": "TryOffDiff v1", "v2": "TryOffDiff v2 of one category", "mgt": "TryOffDiff MGT"}
CLASS_EMBEDDING, MIXER = "unet.class_embedding.weight", "transformer."


def read_official(path: str | Path) -> dict[str, Tensor]:
    """Names and weights of a published file, without the prefixes that wrapped models leave, seen to be whole.

    Nothing but tensors and plain values is unpickled, so a file can do no more than hold wrong numbers.

    Raises:
        ValueError: not there, no such file, damaged, cut short, with code in it, with anything but weights, or weights
            that are no finite numbers; one line.
    """
    weights = open_official(path)
    check_official(path, weights)
    return weights


def open_official(path: str | Path) -> dict[str, Tensor]:
    """The same without a look at the numbers, which stay on the disk until they are used; errors as above."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; get one with 'hf download rizavelioglu/tryoffdiff', and give its path")
    _check_kind(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as e:  # a damaged file raises almost anything
        if "weights_only" in str(e) or "Unsupported" in str(e):
            raise ValueError(
                f"{path}: holds more than weights, and none of it was run; get the published file"
            ) from None
        raise _damaged(path, e) from None
    if not isinstance(loaded, Mapping) or not loaded or not all(map(_is_weight, loaded, loaded.values())):
        raise ValueError(f"{path}: holds no plain weights by name, as the published files do; give one of those")
    return {name: loaded[as_is] for name, as_is in plain(loaded).items()}


def check_official(path: str | Path, weights: Mapping[str, Tensor]) -> None:
    """See that the numbers of an opened file are those that were written, which torch doesn't, and finite.

    Raises:
        ValueError: damaged, or values that are no finite numbers; one line.
    """
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as file:
                bad = file.testzip()
        except Exception as e:  # likewise
            raise _damaged(path, e) from None
        if bad is not None:
            raise _damaged(path, f"the checksum of {bad} is another")
    for name, value in weights.items():
        if not value.is_floating_point() or not value.float().isfinite().all():
            raise ValueError(f"{path}: {name} holds values that are no finite numbers; download it again")


def _check_kind(path: Path) -> None:
    """Refuse what torch never wrote: its files are zip archives, the old ones pickles."""
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise _damaged(path, "it is empty")
    start = head.lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        what = "a pointer of Git LFS, not the file itself"
    elif start.startswith((b"<!doctype", b"<html")):
        what = "a web page, not the file"
    elif head.startswith((b"PK", b"\x80")):
        return
    else:
        what = f"no file of weights (it begins with {head[:8]!r})"
    raise ValueError(f"{path}: {what}; get it with 'hf download rizavelioglu/tryoffdiff {path.name}'")


def _is_weight(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided and value.is_cpu


def _damaged(path: str | Path, how: Exception | str) -> ValueError:
    told = how if isinstance(how, str) else f"{type(how).__name__}: " + shorten(str(how).partition("\n")[0], 120)
    return ValueError(f"{path}: damaged or cut short ({told}); download it again")


def official_version(weights: Mapping[str, Tensor], path: str | Path) -> Version:
    """Which version's file these weights are.

    Raises:
        ValueError: none's; ``path`` is named.
    """
    if not {"unet.conv_in.weight", "proj.weight", "norm.weight"} <= weights.keys():
        raise ValueError(
            f"{path}: no TryOffDiff (first weight {next(iter(weights))!r}); its files hold unet.*, proj.* and norm.*"
        )
    if any(name.startswith(MIXER) for name in weights):
        return "v1"
    return "mgt" if CLASS_EMBEDDING in weights else "v2"


def official_weights(unet: UNet2DConditionModel, adapter: ImageAdapter) -> dict[str, Tensor]:
    """UNet and adapter under the names that the published files have; the very tensors, no copies."""
    return {f"unet.{k}": v for k, v in unet.state_dict().items()} | adapter.state_dict()


def load_official(
    weights: Mapping[str, Tensor], unet: UNet2DConditionModel, adapter: ImageAdapter, path: str | Path
) -> None:
    """Give the networks a published file's weights in float32, all of them and nothing else.

    The networks may be on the meta device: no time is lost on weights that are not kept.

    Raises:
        ValueError: names or shapes that differ; ``path`` is named.
    """
    own = official_weights(unet, adapter)
    differ = [n for n in {**own, **weights} if n not in own or n not in weights or own[n].shape != weights[n].shape]
    if differ:
        there, here = ([*x[differ[0]].shape] if differ[0] in x else "missing" for x in (weights, own))
        raise ValueError(
            f"{path}: {len(differ)} weights don't fit, like {differ[0]} (in the file {there}, here {here}); "
            "get the published file again"
        )
    inside = {name.removeprefix("unet."): weights[name] for name in own if name.startswith("unet.")}
    for part, values in ((unet, inside), (adapter, {name: weights[name] for name in adapter.state_dict()})):
        part.load_state_dict({k: v.to(torch.float32, copy=True) for k, v in values.items()}, assign=True)
