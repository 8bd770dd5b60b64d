"""SDXL as the start of training: its weights read, its UNet widened, its text encoders replaced by kept phrases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from omfa.backbone import widen_unet
from omfa.few_steps import Ladder, make_distilled
from omfa.partial_diffusion import ddim
from omfa.pipeline import OMFAPipeline
from omfa.prompts import PromptFiles, Prompts
from omfa.tuning import BUILT, load_tuned, read_tuned
from omfa.weights import read_part

BASE = "stabilityai/stable-diffusion-xl-base-1.0"
INPAINTING = "diffusers/stable-diffusion-xl-1.0-inpainting-0.1"
FIXED_VAE = "madebyollin/sdxl-vae-fp16-fix"
PROMPTS, CAPTIONS = "prompts", "captions"  # in a folder of omfa.encode; the first one in a saved pipeline too
CLASSES = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
    "tokenizer": CLIPTokenizer,
    "tokenizer_2": CLIPTokenizer,
}


def sdxl_pipeline(
    base: str = BASE,
    vae: str | None = None,
    text: str | None = None,
    person_size: Sequence[int] = (1024, 768),
    garment_slots: int = 1,
    variant: str | None = None,
    unconditional_on: str = "canvas",
    join: str = "canvas",
    draft: str = "none",
    pose_style: str = "parts_blend",
    portraits: bool = False,
    accessories: Sequence[str] = (),
) -> OMFAPipeline:
    """SDXL (4 channels) or SDXL-inpainting (9) widened for the canvas, as the start of training.

    OMFA's released weights start a training too (``liujx233/OneModelForAll/vitonhd``), whether their UNet has 9 or 13
    channels. That their canvas, channels and prompts are laid out as ours is not known and not claimed: they are
    weights to begin with, no model to sample from.

    Args:
        base: folder or hub id of an SDXL pipeline; a folder inside a hub repository as ``owner/name/folder``.
        vae: folder or hub id of another VAE, like ``FIXED_VAE``; None takes the base's. All weights
            are read in float32; SDXL's own VAE never runs in float16 (:func:`omfa.backbone.steady`).
        text: folder of ``omfa.encode``, or of a saved pipeline, whose phrases take the text encoders' place: these are
            then not read. None reads the encoders.
        person_size: (height, width) in pixels.
        garment_slots: 1 (the paper's) or 2.
        variant: "fp16" to read the half-precision files.
        unconditional_on, join, draft, pose_style, portraits, accessories: see
            :class:`omfa.pipeline.OMFAPipeline`. ``pose_style`` is "parts_blend" where nothing is said, as old models
            and the paper's are; recipes of new ones say "surface".

    Raises:
        ValueError: weights that are not there; says how to get them.
    """
    unet = _read("unet", base, variant)
    codec = load_vae(base, vae, variant)
    parts = text_encoders(base, variant) if text is None else {PROMPTS: load_prompts(text)}
    scheduler = ddim(timestep_spacing="trailing", set_alpha_to_one=False)
    sizes: dict[str, Any] = {
        "person_size": list(person_size),
        "garment_slots": garment_slots,
        "unconditional_on": unconditional_on,
        "join": join,
        "draft": draft,
        "pose_style": pose_style,
        "portraits": portraits,
        "accessories": list(accessories),
    }
    pipe = OMFAPipeline(codec, widen_unet(unet), scheduler, **parts, **sizes)
    pipe.origin = {"base": _hub_id(base), "vae": _hub_id(vae)}
    if text is not None:
        pipe.texts.kept.append(PromptFiles(Path(text) / CAPTIONS))
    return pipe


def load_vae(base: str, vae: str | None = None, variant: str | None = None) -> AutoencoderKL:
    """The VAE of an SDXL pipeline, or another one; arguments and errors as in :func:`sdxl_pipeline`."""
    return _read("vae", base, variant) if vae is None else _read("vae", vae, None, alone=True)


def text_encoders(base: str = BASE, variant: str | None = None) -> dict[str, Any]:
    """Both text encoders and tokenizers by the names a pipeline has for them.

    For a saved model without them: ``OMFAPipeline.from_pretrained(folder, **text_encoders(base))``.
    """
    return {name: _read(name, base, variant) for name in CLASSES if name.startswith(("text", "token"))}


def load_prompts(folder: str | Path) -> Prompts:
    """The phrases that ``omfa.encode`` or a saved pipeline keeps in ``folder/prompts``.

    Raises:
        ValueError: none there.
    """
    if not Path(folder, PROMPTS, "config.json").is_file():
        raise ValueError(
            f"{str(folder)!r} keeps no phrases (no {PROMPTS}/config.json): make them with "
            f"python -m omfa.encode --base {BASE} --out {folder} --records ... --size ..., or leave text out"
        )
    return read_part(Prompts, Path(folder, PROMPTS))


def load_small(
    folder: str | Path, base: str | None = None, vae: str | None = None, variant: str | None = None
) -> OMFAPipeline:
    """A model from the small files of a LoRA or attention-only training, laid onto its base.

    Args:
        folder: what the run or ``omfa.export`` wrote.
        base: folder or hub id of the very weights the training began with; None takes the hub id written down there.
        vae: likewise.
        variant: "fp16" to read the base's half-precision files.

    Raises:
        ValueError: no such files, no base known, or files that don't fit the base.
    """
    tuned = read_tuned(Path(folder))
    base, vae = base or tuned["base"], vae or tuned["vae"]
    if base is None:
        raise ValueError(f"{folder} was trained from a local folder: give base=, the SDXL weights it began with")
    own = {name: tuned[name] for name in ("person_size", "garment_slots", *BUILT)}
    pipe = sdxl_pipeline(base, vae, str(folder), **own, variant=variant)
    load_tuned(pipe.unet, Path(folder))
    if (few := tuned["few_steps"]) is not None:
        make_distilled(pipe, Ladder(few["teacher_steps"], few["phases"]), few["steps"])
    return pipe


def _hub_id(where: str | None) -> str | None:
    """What may be told to others of where weights came from."""
    return None if where is None or where[0] in "./~" or Path(where).exists() else where


def _read(part: str, where: str, variant: str | None, alone: bool = False) -> Any:
    """One part of a pipeline, from a folder or a hub repository; ``alone``: the part lies there by itself."""
    local, pieces = Path(where).is_dir(), where.split("/")
    hub = _hub_id(where) is not None and len(pieces) > 1
    repository, inside = ("/".join(pieces[:2]), pieces[2:]) if hub else (where, [])
    folder = "/".join(inside if alone else [*inside, part])
    told = f"it has no folder {folder!r}" if local else "no such folder, and no hub id like 'owner/name'"
    if hub or Path(where, folder).is_dir():
        options: dict[str, Any] = {"subfolder": folder} if folder else {}
        network = not part.startswith("tokenizer")
        if network:
            options["variant"] = variant
        if part.startswith("text"):
            options["dtype"] = torch.float32  # transformers would take the config's; diffusers takes this one by itself
        try:
            kind = CLASSES[part]
            return read_part(kind, repository, **options) if network else kind.from_pretrained(repository, **options)
        except (OSError, ValueError, TypeError) as e:  # TypeError: transformers, of a tokenizer without its files
            told = str(e).strip().splitlines()[0].rstrip(".")
            if hub:
                told = f"no such folder here, and as a hub id: {told}"
    source = repository if hub else FIXED_VAE if alone else INPAINTING
    target = where if not hub and not local else source.split("/")[1]
    other = f"\n(SDXL-inpainting, as the recipes; text-to-image SDXL is {BASE})" if source == INPAINTING else ""
    raise ValueError(
        f"{part} could not be read from {where!r}: {told}. If a folder was meant, correct its path; or get weights "
        f"once with\n  {_download(source, inside, variant, alone)} --local-dir {target}\n"
        f"and give {'/'.join([target, *inside])}{other}"
    )


def _download(source: str, inside: Sequence[str], variant: str | None, alone: bool) -> str:
    """The command that fetches what :func:`_read` reads, and nothing else of a large repository."""
    ending = f".{variant}.safetensors" if variant else ".safetensors"
    names = [f"diffusion_pytorch_model{ending}", "config.json"] if alone else [
        *("*.json", "*.txt", f"*/model{ending}", f"*/diffusion_pytorch_model{ending}")
    ]  # fmt: skip
    return f"hf download {source} " + " ".join(f"--include '{'/'.join([*inside, name])}'" for name in names)
