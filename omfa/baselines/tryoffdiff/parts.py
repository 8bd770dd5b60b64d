"""Where TryOffDiff's parts come from: a folder, a hub id, or fresh ones; what is missing is named with its cure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from huggingface_hub import hf_hub_download
from transformers import SiglipVisionModel

from omfa.baselines.tryoffdiff.networks import Version, make_encoder
from omfa.weights import TEXT_TOWER, read_part

SD14 = "CompVis/stable-diffusion-v1-4"
SIGLIP_HUB = "google/siglip-base-patch16-512"
MSE_VAE = "stabilityai/sd-vae-ft-mse"
DECODERS: dict[Version, str] = {"v1": f"{SD14}/vae", "v2": MSE_VAE, "mgt": MSE_VAE}
SUFFIXES = ".pth", ".pt", ".bin"  # of published files
Part = str | Mapping[str, Any]


def load_encoder(where: Part = SIGLIP_HUB) -> SiglipVisionModel:
    """The vision transformer: folder or hub id, or arguments of a fresh one's ``SiglipVisionConfig``.

    Raises:
        ValueError: not there.
    """
    return _read(SiglipVisionModel, "image_encoder", where) if isinstance(where, str) else make_encoder(where)


def load_vae(where: Part) -> AutoencoderKL:
    """The VAE: folder or hub id (``owner/name/folder``), or arguments of a fresh one; errors as above."""
    return _read(AutoencoderKL, "vae", where) if isinstance(where, str) else AutoencoderKL(**where)


def load_unet(where: str) -> UNet2DConditionModel:
    """A UNet: folder or hub id (``owner/name/folder``); errors as above."""
    return _read(UNet2DConditionModel, "unet", where)


def local_file(where: str) -> Path:
    """A published file: a path here, or ``owner/name/file.pth`` on the hub, which is fetched once.

    Raises:
        ValueError: it can't be fetched. A path of this machine that is not there comes back as it is.
    """
    pieces = where.split("/")
    if Path(where).exists() or len(pieces) < 3 or where[0] in "./~":
        return Path(where)
    repository, name = "/".join(pieces[:2]), "/".join(pieces[2:])
    try:
        return Path(hf_hub_download(repository, name))
    except Exception as e:  # no network, no such repository or file, no access: many kinds
        raise ValueError(
            f"{where!r}: no such file here, and not fetched from the hub ({_first_line(e)}): correct the path, or run "
            f"'hf download {repository} {name}' where there is a network, and give the file's path"
        ) from None


def _read(kind: Any, part: str, where: str) -> Any:
    """A part from a folder that holds it by itself, or from the hub."""
    here, pieces = Path(where, "config.json").is_file(), where.split("/")
    is_hub_id = not Path(where).exists() and len(pieces) > 1 and where[0] not in "./~"
    repository, inside = ("/".join(pieces[:2]), "/".join(pieces[2:])) if is_hub_id else ("", "")
    if here or is_hub_id:
        options: dict[str, Any] = {"subfolder": inside} if inside else {}
        if part == "image_encoder":
            options |= {"dtype": torch.float32, "left_over": TEXT_TOWER}  # SigLIP is published whole
        else:
            options |= {"torch_dtype": torch.float32}
        try:
            return read_part(kind, where if here else repository, **options).eval()
        except Exception as e:  # loaders raise almost anything
            told = _first_line(e)
    else:
        told = "no folder with a config.json, and no hub id like 'owner/name'"
    source = repository if is_hub_id else SIGLIP_HUB if part == "image_encoder" else SD14
    include = f" --include '{inside or part}/*'" if (inside or source == SD14) else ""
    raise ValueError(
        f"{part} could not be read from {where!r} ({told}): run 'hf download {source}{include} --local-dir DIR' where "
        f"there is a network, and give {part}='DIR{'/' + (inside or part) if include else ''}'"
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '').rstrip('.')}"
