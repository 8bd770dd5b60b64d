"""What a model folder needs on a hub: a card with the fields hubs read, a file by which plain diffusers loads it; and
what to do where a hub says no."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import snapshot_download

CARD, LOADER = "README.md", "pipeline.py"  # diffusers looks for a folder's own pipeline under this name
_FETCHING = ("cache_dir", "token", "revision", "force_download", "local_files_only")
TASK = "image-to-image"
TAGS = ("virtual-try-on", "virtual-try-off", TASK)
_LOADER_TEXT = '''"""For plain diffusers:

DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=FOLDER, trust_remote_code=True)
"""

from omfa.pipeline import OMFAPipeline  # pip install omfa

__all__ = ["OMFAPipeline"]
'''


def front_matter(
    name: str,
    tags: Sequence[str] = TAGS,
    licence: str = "other",
    base_model: str | None = None,
    datasets: Sequence[str] = (),
    results: Mapping[str, float] | None = None,
    measured_on: str = "",
) -> str:
    """The head of a card, between two lines of dashes.

    Args:
        name: of the model.
        tags: of the hub.
        licence: the hub's short name; "other" where the card says it in words.
        base_model: hub id of what training began with.
        datasets: names of what it was trained on.
        results: metric to value.
        measured_on: what the results were measured on.
    """
    fields: dict[str, Any] = {"license": licence}
    if licence == "other":
        fields["license_name"] = "see-the-card"
    if base_model:
        fields["base_model"] = base_model
    fields |= {"library_name": "diffusers", "pipeline_tag": TASK, "tags": list(tags)}
    if datasets:
        fields["datasets"] = list(datasets)
    if results:
        fields["metrics"] = list(results)
        values = [{"type": metric, "value": value} for metric, value in results.items()]
        one = {"task": {"type": TASK}, "dataset": {"name": measured_on, "type": "records"}, "metrics": values}
        fields["model-index"] = [{"name": name, "results": [one]}]
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=100)}---\n"


def plain_card(name: str) -> str:
    """A card for a model that came without one; ``name``: its hub id."""
    code = f'```python\nfrom omfa.pipeline import OMFAPipeline\n\npipe = OMFAPipeline.from_pretrained("{name}")\n```'
    return (
        f"{front_matter('OMFA')}# OMFA model\n\nTry-on and try-off by partial diffusion ([arXiv 2508.04559]"
        f"(https://arxiv.org/abs/2508.04559)).\n\n{code}\n\n"
        "Its licence is that of the weights it began with and of the data it was trained on.\n"
    )


def write_loader(folder: Path) -> None:
    """The file by which plain diffusers loads a folder."""
    (folder / LOADER).write_text(_LOADER_TEXT, encoding="utf-8")


def fetched(name: str, options: dict[str, Any]) -> str:
    """The local copy of a model on a hub, fetched whole: diffusers' own fetching knows no classes beside its own.

    Args:
        name: hub id.
        options: of ``from_pretrained``; what concerns the fetching is taken out.
    """
    known = {k: options.pop(k) for k in _FETCHING if k in options}
    return snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.md", "*.txt", "*.model"], **known)


def cure_for(error: BaseException, name: str) -> str:
    """What to do about an error of loading: gates, missing names and missing networks in plain words.

    Args:
        error: as it was raised; its causes are looked at too.
        name: folder or hub id that was to be loaded.
    """
    if Path(name).exists():
        return "export or fetch it again"
    seen, kinds, text = error, set[str](), ""
    while seen is not None and len(kinds) < 20:
        kinds |= {kind.__name__ for kind in type(seen).__mro__}
        text += f" {seen}"
        following = seen.__cause__ or seen.__context__
        if following is None:
            break
        seen = following
    if "GatedRepoError" in kinds:
        return (
            f"its owner asks for your agreement: open https://huggingface.co/{name}, agree, then 'hf auth login' here, "
            "or pass token="
        )
    if "RepositoryNotFoundError" in kinds:
        return "the hub knows no such model, or it is a private one: check the name, or 'hf auth login', or pass token="
    if (
        kinds & {"OfflineModeIsEnabled", "LocalEntryNotFoundError", "ConnectionError", "ConnectError"}
        or "offline" in text
    ):
        return (
            f"the hub can't be reached from here: where there is a network, 'hf download {name} --local-dir DIR', then "
            "give that DIR"
        )
    return "check name and network, or give a folder"


def unloadable(where: str, error: Exception) -> ValueError:
    """What a loader said of a model, in a line with the cure."""
    first = next(iter(str(error).splitlines()), "")
    return ValueError(f"{where!r} can't be loaded ({type(error).__name__}: {first}); {cure_for(error, where)}")
