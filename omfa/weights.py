"""Weights read whole or not at all: every key there, none too many, nothing that is no number.

Loaders of this field leave what is missing as it happened to be and pass over what they don't know, so a model can be
half read and nobody told. Here the names that wrappers put before every key are taken away, and all else is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

PREFIXES = ("_orig_mod.", "module.")  # of torch.compile and DistributedDataParallel
TEXT_TOWER = ("text_model.", "text_projection.", "visual_projection.", "logit_")  # CLIP's and SigLIP's, beside eyes
_DERIVED = ("position_ids",)  # older transformers kept what is counted anew


def plain(names: Iterable[str]) -> dict[str, str]:
    """Names without the prefixes that all of them have, to the names as they are."""
    found = {name: name for name in names}
    while prefix := next((p for p in PREFIXES if found and all(n.startswith(p) for n in found)), None):
        found = {n.removeprefix(prefix): name for n, name in found.items()}
    return found


def check_names(where: str | Path, there: Collection[str], wanted: Collection[str]) -> None:
    """Refuse weights that lack a key or have one too many.

    Raises:
        ValueError: which, and how many.
    """
    said = []
    for words, names in (("lacks", set(wanted) - set(there)), ("has what nothing takes:", set(there) - set(wanted))):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            said.append(f"{words} {min(names)}{more}")
    if said:
        raise ValueError(f"{where} holds other weights than are needed: it {' and it '.join(said)}; fetch it again")


def check_finite(where: str | Path, state: Mapping[str, Tensor]) -> None:
    """Refuse weights with NaN or infinity.

    Raises:
        ValueError: the first one.
    """
    for name, tensor in state.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{where}: {name} holds NaN or infinity: take an earlier checkpoint, or fetch it again")


def read_state(path: Path, wanted: Collection[str]) -> dict[str, Tensor]:
    """A safetensors file with exactly the keys ``wanted``, perhaps behind known prefixes, all of them finite.

    Raises:
        ValueError: other keys, numbers that are none, or no such file.
    """
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as e:
        raise ValueError(f"{path}: no readable safetensors file ({e}); fetch it again") from None
    state = {name: state[as_is] for name, as_is in plain(state).items()}
    check_names(path, state, wanted)
    check_finite(path, state)
    return state


def read_part(kind: Any, where: str | Path, left_over: tuple[str, ...] = (), **options: Any) -> Any:
    """A network by its ``from_pretrained``, seen to be whole.

    Args:
        kind: a class of diffusers or transformers.
        where: as its ``from_pretrained`` takes it.
        left_over: how names begin that the network has no use for, as a vision model has none for the text tower that
            is published with it.
        options: likewise.

    Raises:
        ValueError: keys missing or too many.
        OSError: nothing there.
    """
    part, told = kind.from_pretrained(where, output_loading_info=True, use_safetensors=True, **options)
    inside = Path(where, options.get("subfolder") or "")
    lacks, extra = set(told["missing_keys"]), {k for k in told["unexpected_keys"] if not k.endswith(_DERIVED)}
    extra = {k for k in extra if not k.startswith(left_over)}
    if lacks or extra:
        _mend(part, inside, {*part.state_dict()} - lacks | extra)
    return part


def check_parts(parts: Mapping[str, Any], folder: str | Path) -> None:
    """See that the networks of a saved pipeline were read whole, each from its own folder in ``folder``.

    Raises:
        ValueError: keys missing or too many.
    """
    for name, part in parts.items():
        if not isinstance(part, torch.nn.Module):
            continue
        there: set[str] = set()
        for path in sorted(Path(folder, name).glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                there |= {n for n in list(file.keys()) if not n.endswith(_DERIVED)}
        tied = getattr(part, "_tied_weights_keys", None) or ()
        differ = {_rooted(n) for n in there} ^ {_rooted(n) for n in part.state_dict()}
        if there and differ - {_rooted(n) for n in tied}:
            _mend(part, Path(folder, name), there)
        for key, tensor in part.state_dict().items():  # of a hub's model, whose files lie elsewhere
            if tensor.is_meta:
                raise ValueError(f"{folder}: {name} lacks {key}; fetch it again")


def _rooted(name: str) -> str:
    """A key as the older transformers had it and as the newer do."""
    return name.removeprefix("text_model.").removeprefix("vision_model.")


def _mend(part: torch.nn.Module, folder: Path, there: Collection[str]) -> None:
    """Read what stands behind known prefixes; all else is refused."""
    check_names(folder, plain(there), part.state_dict())
    state: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        state |= load_file(path)
    kind = next(iter(part.parameters())).dtype
    part.load_state_dict({name: state[as_is].to(kind) for name, as_is in plain(state).items()}, assign=True)
    part.eval()


def finite(pixels: Tensor) -> Tensor:
    """The same pixels, of any shape; before they are clamped, which would make black and white of what is no number.

    Raises:
        ValueError: NaN or infinity among them.
    """
    if not pixels.isfinite().all():
        raise ValueError("the model made NaN or infinity instead of a picture: its weights, or its precision, are bad")
    return pixels


def not_finite(parts: Mapping[str, torch.nn.Module]) -> str:
    """Where numbers that are none may come from: the first weights that hold some, else the computation."""
    for name, part in parts.items():
        for key, tensor in part.state_dict().items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                return (
                    f"{key} of the model's {name} holds NaN or infinity: take an earlier checkpoint, or fetch it again"
                )
    return "its weights are finite, so numbers grew too large on the way: try --dtype float32, or other settings"
