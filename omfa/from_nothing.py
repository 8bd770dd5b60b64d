"""The compact model from nothing in a given time: ``make compact MINUTES=60``.

    python -m omfa.from_nothing --minutes 60 --out runs/from_nothing

A wardrobe is drawn, a VAE trained on it, latents and drafts made, the network trained in rows and the composer on what
it decodes; then the model is put together, judged on people it has not seen, and shown. Every stage is a command of
this project and gets its share of the time (``SHARES``); what a stage has done is not done again: killed at any moment,
the same call goes on. ``OUT/model`` is what ``OMFAPipeline.from_pretrained`` reads, its card says how it came about.
Exit code 0: all well; 1: a stage failed, its last lines are shown; 2: the call was wrong.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from omfa.commands import Parser, check_sides, count, find_device, size_of
from omfa.composer import Composer
from omfa.evaluation.report import markdown
from omfa.evaluation.results import Results
from omfa.files import aside, check_writable, sole, write_json
from omfa.pipeline import OMFAPipeline
from omfa.training.checkpoints import last_checkpoint, step_of
from omfa.training.model_card import forget_origins

CONFIGS = Path(__file__).resolve().parent.parent / "lightning_configs"
SHARES = {"wardrobe": 0.12, "vae": 0.15, "latents": 0.13, "network": 0.3, "composer": 0.22, "tables": 0.08}
RECORD = {"wardrobe": 0.5, "latents": 0.9}  # CPU-seconds of drawing and of encoding one
LEAST = 80  # records: one person of ten is held out, and has eight
SAVES = 10  # of a training, so that no more than a tenth of it is lost to a kill
TRIAL = 0.2  # of a training's time: how many steps it takes tells how many to take
JUDGED = 24  # pictures a direction
STATE = "stages.json"
_TELL_AT_PARENTS_END = 1  # PR_SET_PDEATHSIG


class Failed(RuntimeError):
    """A stage's command ended with an error."""


@dataclass
class Work:
    """A folder in which a model comes about.

    Args:
        out: the folder.
        seconds: for everything.
        device: of :func:`omfa.commands.find_device`.
        size: (H, W) of the network's pictures.
        seed: of the wardrobe and all training.
        done: by stage, what is known of it when it is done.
    """

    out: Path
    seconds: float
    device: str
    size: tuple[int, int]
    seed: int
    done: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def records(self) -> int:
        """How many records there is time for, whole people."""
        workers = os.cpu_count() or 1
        time_of = {"wardrobe": RECORD["wardrobe"] / workers, "latents": RECORD["latents"]}
        most = min(int(self.seconds * SHARES[stage] / each) for stage, each in time_of.items())
        return max(LEAST, most // LEAST * LEAST)

    def run(self, stage: str, *command: str) -> None:
        """A command of this project, its words in a file; Failed where it ends with an error."""
        with self._log(stage).open("ab") as log:
            self._check(stage, _started(command, log).wait())

    def fit(self, stage: str, config: str, *options: str) -> int:
        """Train for the stage's share of the time; returns how many steps that was.

        A first part tells how long a step takes. Then the number of steps is settled, and the rate falls towards it.
        """
        root, seconds = self.out / stage, self.seconds * SHARES[stage]
        known = self.done.setdefault(stage, {})
        accelerator = "gpu" if self.device == "cuda" else self.device
        base = [
            *("omfa.fit", "--config", str(CONFIGS / config), "--ckpt_path", "last", f"--seed_everything={self.seed}"),
            *(f"--trainer.default_root_dir={root}", f"--trainer.accelerator={accelerator}", *options),
        ]
        if "steps" not in known:
            before, step = self._trial(stage, base, root, seconds * TRIAL)
            known["steps"] = max(step + 1, int((step - before) / TRIAL))
            self.save()
        steps = int(known["steps"])
        self.run(stage, *base, f"--trainer.max_steps={steps}", f"--save_every={max(1, steps // SAVES)}")
        return steps

    def _trial(self, stage: str, base: Sequence[str], root: Path, seconds: float) -> tuple[int, int]:
        """The steps before and after so many seconds of training, by a run that is asked to stop."""
        before = last_checkpoint(root / "checkpoints")
        (root / "config.yaml").unlink(missing_ok=True)  # of a run that was killed: this one writes it when it listens
        with self._log(stage).open("ab") as log:
            run = _started([*base, "--trainer.max_steps=1000000"], log)
            while not (root / "config.yaml").exists() and run.poll() is None:
                time.sleep(0.2)  # until it listens
            try:
                code = run.wait(seconds)
            except subprocess.TimeoutExpired:
                run.send_signal(signal.SIGTERM)  # it finishes its step and saves
                code = run.wait()
        self._check(stage, code)
        checkpoint = last_checkpoint(root / "checkpoints")
        if checkpoint is None:
            raise Failed(f"{stage}: not one step in {seconds:.0f} s; give more --minutes")
        return 0 if before is None else step_of(before), step_of(checkpoint)

    def _log(self, stage: str) -> Path:
        return self.out / f"{stage}.log"

    def _check(self, stage: str, code: int) -> None:
        if code:
            last = self._log(stage).read_text(errors="replace").strip().splitlines()[-5:]
            raise Failed(f"{stage} ended with {code}; the last lines of {self._log(stage)}:\n" + "\n".join(last))

    def save(self) -> None:
        """Write down what is done."""
        write_json(self.out / STATE, self.done, indent=2)


def _started(command: Sequence[str], log: BinaryIO) -> subprocess.Popen[bytes]:
    """A command of this project at work; on Linux it is told to stop when this process ends, even by a kill."""

    def with_us() -> None:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_TELL_AT_PARENTS_END, signal.SIGTERM)

    return subprocess.Popen([sys.executable, "-m", *command], stdout=log, stderr=log, preexec_fn=with_us)


# ---------------------------------------------------------------------------------------------------- stages


def wardrobe(work: Work) -> dict[str, float]:
    """Dressed people and their garments, with bodies and portraits; half of them as a camera sees them."""
    options = ("--records", str(work.records), "--seed", str(work.seed), "--portraits", "--photographic", "0.5")
    workers = ("--workers", str(os.cpu_count() or 1))
    work.run("wardrobe", "data_prep", "synthetic", *options, "--out", str(work.out / "wardrobe_records"), *workers)
    return {"records": work.records}


def vae(work: Work) -> dict[str, float]:
    """The codec."""
    return {"steps": work.fit("vae", "compact_vae.yaml", f"--data.init_args.folders=[{work.out / 'wardrobe_records'}]")}


def latents(work: Work) -> dict[str, float]:
    """Latents of pictures, surface maps and drafts."""
    where = ("--records", str(work.out / "wardrobe_records"), "--vae", str(work.out / "vae" / "model"))
    what = ("--size", "x".join(map(str, work.size)), "--draft", "surface", "--device", work.device)
    work.run("latents", "omfa.encode", *where, *what, "--out", str(work.out / "latents_of_records"))
    return {}


def network(work: Work) -> dict[str, float]:
    """The diffusion model in rows."""
    built = "--model.init_args.pipeline.init_args"
    pipe = (f"{built}.vae={work.out / 'vae' / 'model'}", f"{built}.person_size=[{work.size[0]},{work.size[1]}]")
    data = f"--data.init_args.folder={work.out / 'wardrobe_records'}"
    encoded = f"--data.init_args.latents={work.out / 'latents_of_records'}"
    return {"steps": work.fit("network", "compact_rows.yaml", *pipe, data, encoded)}


def composer(work: Work) -> dict[str, float]:
    """What puts pictures together, trained on what the network decodes."""
    data = (f"--data.init_args.folder={work.out / 'wardrobe_records'}", f"--data.init_args.kept={work.out / 'drafts'}")
    model = f"--data.init_args.model={work.out / 'network' / 'model'}"
    return {"steps": work.fit("composer", "compact_composer.yaml", *data, model)}


def model(work: Work) -> dict[str, float]:
    """All of it in one folder, in float16."""
    import torch

    parts = Composer.from_pretrained(work.out / "composer" / "model")
    pipe = OMFAPipeline.from_pretrained(work.out / "network" / "model", composer=parts)
    with aside(work.out / "model") as folder:
        pipe.to(dtype=torch.float16).save_pretrained(folder)
        forget_origins(folder)
    return {"megabytes": round(sum(f.stat().st_size for f in (work.out / "model").rglob("*")) / 1e6, 1)}


def tables(work: Work) -> dict[str, float]:
    """Predictions for people who were held out, in both directions, and what they are worth."""
    where = ("--records", str(work.out / "wardrobe_records"))
    for task in ("try_on", "try_off"):
        made, judged = work.out / f"{task}_pictures", work.out / f"{task}_results"
        of = ("--task", task, "--model", str(work.out / "model"), "--name", "compact", "--device", work.device)
        which = ("--split", "test", "--max-yaw", "60", "--limit", str(JUDGED))
        work.run("tables", "omfa.predict", *where, *of, *which, "--out", str(made))
        how = ("--predictions", str(made), "--protocol", "wardrobe", "--out", str(judged))  # pictures of any size
        work.run("tables", "omfa.evaluate", "run", *where, *how)
    return {}


def pictures(work: Work) -> dict[str, float]:
    """The demo of this model, on people of another world."""
    records, demo = work.out / "demo_records", work.out / "demo"
    work.run("pictures", "data_prep", "synthetic", "--records", "16", "--seed", "77", "--out", str(records))
    work.run("pictures", "omfa.demo", "--model", str(work.out / "model"), "--records", str(records), "--out", str(demo))
    shutil.copy(demo / "contact_sheet.png", work.out / "model" / "contact_sheet.png")
    return {}


def card(work: Work) -> dict[str, float]:
    """The model's README."""
    rows = [f"| {name} | {_said(facts)} |" for name, facts in work.done.items() if name != "card"]
    results = [markdown([Results(work.out / f"{task}_results")]).strip() for task in ("try_on", "try_off")]
    tags = "tags: [virtual-try-on, virtual-try-off, image-to-image]"
    height, width = work.size
    text = [
        f"---\nlicense: apache-2.0\nlibrary_name: diffusers\n{tags}\n---\n# OMFA compact",
        f"Made from nothing on {work.device}, for {work.seconds / 60:.0f} minutes of it, pictures of {height}x{width}, "
        f"seed {work.seed}, by `python -m omfa.from_nothing`.",
        "| stage | |\n|---|---|\n" + "\n".join(rows),
        f"## Held-out people, yaw within 60 degrees, at most {JUDGED} pictures a direction",
        *results,
        "![the demo](contact_sheet.png)",
    ]
    (work.out / "model" / "README.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    return {}


def _said(facts: dict[str, float]) -> str:
    words = [f"{value:g} {name}" for name, value in facts.items() if name != "seconds"]
    return ", ".join([*words, f"{facts['seconds'] / 60:.1f} minutes"])


STAGES: tuple[Callable[[Work], dict[str, float]], ...] = (
    wardrobe, vae, latents, network, composer, model, tables, pictures, card
)  # fmt: skip


def make(work: Work) -> None:
    """All stages that are not done yet, one after the other; Failed where one ends with an error."""
    path = work.out / STATE
    if path.is_file():
        work.done = json.loads(path.read_text())
    for stage in STAGES:
        name = stage.__name__
        if "seconds" in work.done.get(name, {}):
            continue
        print(f"{name} ...", flush=True)
        began = time.monotonic()
        found = stage(work)
        work.done[name] = found | {"seconds": round(time.monotonic() - began, 1)}
        work.save()


def main(args: Sequence[str] | None = None) -> int:
    """See the module's docstring."""
    parser = Parser(prog="python -m omfa.from_nothing", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=count, default=60, help="for everything (default 60)")
    parser.add_argument("--out", type=Path, default=Path("runs/from_nothing"))
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    parser.add_argument(
        "--size", type=size_of, default=None, help="HxW of the network's pictures (default 128x96, on a GPU 256x192)"
    )
    parser.add_argument("--seed", type=int, default=0)
    call = parser.parse_args(args)
    try:
        work = _work(call)
        with sole(work.out, "--out"):
            make(work)
    except Failed as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    print(f"made in {sum(s['seconds'] for s in work.done.values()) / 60:.0f} minutes: {work.out / 'model'}")
    return 0


def _work(call: argparse.Namespace) -> Work:
    """The folder, told apart from one of another call."""
    device = find_device(call.device)
    size = call.size or ((128, 96) if device == "cpu" else (256, 192))
    check_sides(size)
    if not CONFIGS.is_dir():
        raise ValueError(f"{CONFIGS} is missing: run this in a checkout of the project, its recipes are no package")
    check_writable(call.out, "--out")
    wanted = {"minutes": call.minutes, "size": list(size), "seed": call.seed}
    path = call.out / "call.json"
    if path.is_file() and (found := json.loads(path.read_text())) != wanted:
        raise ValueError(f"{call.out} holds a model of {found}, this call makes {wanted}: give another --out")
    write_json(path, wanted)
    return Work(call.out, call.minutes * 60.0, device, size, call.seed)


if __name__ == "__main__":
    sys.exit(main())
