"""The card that a run leaves beside its model: what it is, how it was made, and nothing of the machine it ran on."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from omfa.evaluation.report import markdown
from omfa.evaluation.results import RESULTS, Results
from omfa.hub import front_matter
from omfa.records.prepared import RecordError
from omfa.records.shards import open_records

EVALUATION = "evaluation"  # in the run folder: what ``omfa.evaluate run --out RUN/evaluation`` wrote
LAST = 20  # logged values that a last loss is the mean of
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(/[\w.-]+)?")
WEIGHTS_FROM = ("base", "vae")  # arguments that may hold hub ids


@dataclass(frozen=True)
class About:
    """What a card says of one kind of model, whatever run it comes from.

    Args:
        title: its heading.
        tags: of the hub.
        what: a sentence or two.
        use: how the folder is loaded, in Markdown.
        terms: the licences of what its weights are made from, beyond those of the data.
    """

    title: str
    tags: tuple[str, ...]
    what: str
    use: str
    terms: str


def write_card(run: Path, folder: Path, step: int, about: About) -> Path:
    """Write ``README.md`` beside a model.

    Args:
        run: the run folder: ``config.yaml``, TensorBoard's files, perhaps ``evaluation/``.
        folder: the model's.
        step: optimiser steps behind the weights.
        about: the model.

    Returns:
        The card's path.
    """
    config = yaml.safe_load((run / "config.yaml").read_text())
    card = folder / "README.md"
    card.write_text("\n\n".join(_sections(run, config, step, about)) + "\n", encoding="utf-8")
    return card


def _sections(run: Path, config: dict[str, Any], step: int, about: About) -> Iterator[str]:
    model = config["model"]["init_args"]
    base = [value for key in WEIGHTS_FROM if (value := public(model.get(key), key)) and HUB_ID.fullmatch(str(value))]
    head: dict[str, Any] = {
        "base_model": base[0] if base else None,
        "datasets": data_names(config["data"]["init_args"]),
    }
    if (run / EVALUATION / RESULTS).is_file():
        results = Results(run / EVALUATION)
        head["results"] = {n: row["value"] for n, row in results.summary["metrics"].items() if row["value"] is not None}
        head["measured_on"] = f"{len(results.lines)} pictures, {data_fingerprint(config['data']['init_args'])}"
    yield f"{front_matter(about.title, about.tags, **head)}# {about.title}"
    yield about.what
    yield about.use
    devices = config["trainer"]
    facts = {
        "steps": step,
        "trained": model.get("train", "all"),
        "records": data_fingerprint(config["data"]["init_args"]),
        "examples a step": _examples_a_step(config),
        "precision": devices.get("precision") or "32-true",
    }
    facts |= {f"last {name}": f"{value:.4g}" for name, value in last_losses(run, step).items()}
    yield "## How it was made\n\n| | |\n|---|---|\n" + "\n".join(f"| {k} | {v} |" for k, v in facts.items())
    shown = {key: public(config.get(key)) for key in ("seed_everything", "model", "data")}
    yield "```yaml\n" + yaml.safe_dump(shown, sort_keys=False, width=100).strip() + "\n```"
    if (run / EVALUATION / RESULTS).is_file():
        yield f"## Metrics\n\n{markdown([Results(run / EVALUATION)]).strip()}"
    yield (
        "## Licence\n\nThe code is Apache-2.0. These weights carry the terms of the weights they began with and of the "
        f"data they were trained on ({about.terms}VITON-HD, DeepFashion-MultiModal: non-commercial). "
        "Read both before passing them on, and put the result here."
    )


def _examples_a_step(config: dict[str, Any]) -> str:
    trainer, batch = config["trainer"], config["data"]["init_args"].get("batch_size", 8)
    devices, nodes, times = (trainer.get(k, 1) for k in ("devices", "num_nodes", "accumulate_grad_batches"))
    return f"{batch} a device, {devices} device(s), {nodes} node(s), accumulated {times}x"


def data_fingerprint(data: dict[str, Any]) -> str:
    """How many records a run saw and 16 hex digits of their metadata, wherever they lie."""
    try:
        records = open_records(data["folder"]).records(data.get("split"))
    except (RecordError, OSError, KeyError):
        return "not at hand when this was written"
    digest = hashlib.sha256("\n".join(sorted(r.to_json() for r in records)).encode()).hexdigest()
    return f"{len(records)} of split {data.get('split')}, fingerprint {digest[:16]}"


def data_names(data: dict[str, Any]) -> list[str]:
    """What made the records (a data set's name, or the wardrobe); empty where they are not at hand."""
    try:
        records = open_records(data["folder"]).records(data.get("split"))
    except (RecordError, OSError, KeyError):
        return []
    return sorted({str(r.provenance["stage"]) for r in records if r.provenance.get("stage")})


def last_losses(run: Path, step: int) -> dict[str, float]:
    """Name to mean of the last values of every loss logged in the first ``step`` steps; empty without TensorBoard's."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    names = [n for n in events.Tags()["scalars"] if n.startswith("loss")]
    losses = {n: [e.value for e in events.Scalars(n) if e.step < step][-LAST:] for n in names}  # the first is step 0
    return {name: sum(values) / len(values) for name, values in losses.items() if values}


def public(value: Any, key: str = "") -> Any:
    """A setting as a stranger may see it: paths are left out, hub ids stay."""
    if isinstance(value, dict):
        return {k: public(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [public(v, key) for v in value]
    if not isinstance(value, str) or not ({"/", "\\"} & set(value) or value[:1] in ("~", ".")):
        return value
    hub = key in WEIGHTS_FROM and HUB_ID.fullmatch(value) and not Path(value).exists()
    return value if hub else "(a local path)"


def forget_origins(folder: Path) -> None:
    """Take out of a saved model's config files where its parts were read from."""
    for path in folder.rglob("*.json"):
        values = json.loads(path.read_text())
        if isinstance(values, dict) and values.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
