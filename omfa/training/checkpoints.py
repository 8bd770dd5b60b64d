"""Checkpoints that can't break, when they are written, which one a run goes on from, and the finished model."""

from __future__ import annotations

import hashlib
import os
import re
import signal
from pathlib import Path
from textwrap import shorten
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import Checkpoint

from omfa.files import aside, unwritable, whole
from omfa.training.ema import EMA, best_weights, lent
from omfa.training.guards import BadLoss
from omfa.training.model_card import write_card
from omfa.training.parts import Checks, Describes, Saves
from omfa.training.zero import Divides
from omfa.tuning import Mismatch

RUN_FOLDER = "--trainer.default_root_dir"


class SafeCheckpointIO(TorchCheckpointIO):
    """Checkpoints written to the side, checksummed, and swapped in; read with ``weights_only=True``.

    The checksum finds what a kill or a bad disk did. It proves nothing about who wrote the file: whoever can change the
    one can change the other. A stranger's checkpoint can still do no more than hold wrong numbers, since nothing but
    tensors and plain values is unpickled.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write ``path`` and ``path.sha256``; a kill at any moment leaves the old file or the new one."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part, checksum = path.with_name(path.name + ".part"), checksum_file(path)
        try:
            with part.open("wb") as out:
                torch.save(checkpoint, out)
                out.flush()
                os.fsync(out.fileno())
            with whole(checksum) as digest:
                digest.write_text(_sha256(part))
            os.replace(part, path)
        except (OSError, RuntimeError) as e:  # torch's own of a full disk is a RuntimeError
            raise unwritable(path.parent, e, RUN_FOLDER) from None
        finally:
            part.unlink(missing_ok=True)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint; ValueError if its checksum does not match."""
        if not is_whole(Path(path)):
            raise ValueError(f"{path}: damaged or cut short (its checksum does not match); use the one before it")
        try:  # ranks share the pages
            return torch.load(path, map_location=map_location or "cpu", weights_only=True, mmap=True)
        except Exception as e:  # unpicklers raise almost anything; torch's own message advises what must not be done
            raise Mismatch(
                f"{path}: holds more than tensors and plain values, or is no checkpoint at all ({type(e).__name__}); "
                "none of it was run. Give one that omfa.fit wrote"
            ) from None

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint and its checksum."""
        checksum_file(Path(path)).unlink(missing_ok=True)
        Path(path).unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum_file(path: Path) -> Path:
    """Where a checkpoint's checksum lies."""
    return path.with_name(path.name + ".sha256")


def is_whole(path: Path) -> bool:
    """Whether a checkpoint file is there and matches its checksum."""
    checksum = checksum_file(path)
    return path.is_file() and checksum.is_file() and checksum.read_text().strip() == _sha256(path)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run's ``checkpoints`` folder; None if there is none."""
    return next((p for p in reversed(by_step(folder)) if is_whole(p)), None)


def step_of(path: Path) -> int:
    """The optimiser steps behind ``step=N.ckpt``; -1 for another name."""
    found = re.fullmatch(r"step=(\d+)\.ckpt", path.name)
    return int(found[1]) if found else -1


def by_step(folder: Path) -> list[Path]:
    """A run's checkpoints, oldest first, damaged ones too."""
    return sorted((p for p in folder.glob("step=*.ckpt") if step_of(p) >= 0), key=step_of)


def checkpoint_to_resume(root: Path, wanted: str | None) -> Path | None:
    """The checkpoint a call goes on from.

    Args:
        root: the run folder.
        wanted: a path, "last", or None for a fresh start.

    Raises:
        ValueError: nothing to resume, or a fresh start where a run already lies.
    """
    last, there = last_checkpoint(root / "checkpoints"), by_step(root / "checkpoints")
    if wanted is None:
        if there:
            raise ValueError(
                f"{root} already holds a run up to {there[-1].name}; go on with --ckpt_path last, or choose another "
                "--trainer.default_root_dir"
            )
        return None
    if wanted == "last":
        if last is None and there:
            raise ValueError(
                f"{root / 'checkpoints'}: every checkpoint is damaged or cut short, {there[-1].name} the last of them: "
                "copy them again from where they are whole, or move them away to begin anew"
            )
        return last  # a run killed before its first checkpoint simply starts again
    if not is_whole(Path(wanted)):
        raise ValueError(f"--ckpt_path {wanted}: no such file, or damaged; give a whole checkpoint, or 'last'")
    return Path(wanted)


def load_weights(pl_module: Any, checkpoint: Path) -> int:
    """Put a checkpoint's weights into a module, averaged where the run keeps an average; returns its step.

    Raises:
        ValueError: a damaged checkpoint (:class:`omfa.tuning.Mismatch` where it is whole), or one of another model.
    """
    try:
        loaded = SafeCheckpointIO().load_checkpoint(checkpoint)
        if isinstance(pl_module, Checks):
            pl_module.check(loaded)
        pl_module.load_state_dict(loaded["state_dict"])
        for key, state in loaded.get("callbacks", {}).items():
            if key.startswith("EMA"):
                ema = EMA()
                ema.load_state_dict(state)
                ema.copy_to(pl_module)
        return int(loaded["global_step"])
    except (RuntimeError, LookupError, TypeError, AttributeError) as e:
        raise Mismatch(
            f"{checkpoint} is no checkpoint of this model ({shorten(str(e), 300)}): take the config.yaml of its run"
        ) from None


class Checkpoints(Checkpoint):
    """``checkpoints/step=N.ckpt`` every so often, at the end, and when SIGTERM or Ctrl-C asks for one.

    SIGTERM to any process of the run lets all of them finish the step at hand (where they have already exchanged their
    word on it, the next one), write a checkpoint and end well. Lightning's own handler is replaced while training: it
    talks to the other processes from within the signal, in the midst of whatever they are just telling each other.
    Under SLURM ask for the signal by ``--signal=TERM@120``: the default leaves 30 seconds, as does torchrun, which
    hands the signal on to its processes and itself ends with an error all the same.

    Weights that are not finite are never written over good ones: they end the run instead. A run that goes on from an
    older checkpoint puts the newer ones into ``checkpoints/abandoned``, so that "last" is always of one history.

    Args:
        every: steps between two checkpoints.
        keep: how many of the newest are kept.

    Raises:
        ValueError: a number below 1.
    """

    def __init__(self, every: int = 500, keep: int = 2) -> None:
        if every < 1 or keep < 1:
            raise ValueError(f"checkpoints every {every} steps, {keep} of them kept: both must be 1 or more")
        self.every, self.keep = every, keep
        self.goes_on_from: Path | None = None  # the checkpoint that is about to be read
        self._asked: signal.Signals | None = None
        self.stopped = False  # by a signal, before the end
        self.interrupted = False  # by Ctrl-C, and what was learned is saved
        self._seen = self._saved = 0

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Listen from the beginning, for reading a checkpoint can take long; all processes must read the same one.

        Raises:
            Mismatch: some process sees another checkpoint than the first one does.
        """
        self._listen()
        seen = None if self.goes_on_from is None else _identity(self.goes_on_from)
        if _any_process(seen != trainer.strategy.broadcast(seen), trainer):
            raise Mismatch(
                f"process {trainer.global_rank} goes on from {seen or 'the beginning'}, and not all see the same: "
                "trainer.default_root_dir must be a folder that all nodes share"
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Listen again, in place of Lightning's handler, which has come in between."""
        self._listen()
        self._seen = self._saved = trainer.global_step
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            abandon_after(_folder(trainer), self._seen)

    def _listen(self) -> None:
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    def _on_signal(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever presses it twice does not want to wait
        self._asked = signal.Signals(number)  # SIGTERM once or often: torchrun and SLURM may both tell one process

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After an optimiser step: save if it is time, stop if somebody asked."""
        if trainer.global_step == self._seen or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return  # within an accumulation, or a rehearsal that leaves nothing behind
        self._seen = trainer.global_step
        stop = _any_process(self._asked is not None, trainer)
        if stop or self._seen % self.every == 0 or self._seen >= trainer.max_steps:
            self._save(trainer, pl_module)
        if stop and self._seen < trainer.max_steps:
            trainer.should_stop = self.stopped = True
            self.interrupted = self._asked is signal.SIGINT
            if trainer.is_global_zero:
                why = "stopped by hand" if self.interrupted else "SIGTERM"
                print(f"{why}: saved step {self._seen}; go on with --ckpt_path last", flush=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Save what an end before ``max_steps`` (``max_time``, a callback's) would leave unsaved."""
        if self._saved < self._seen:
            self._save(trainer, pl_module)

    def _save(self, trainer: pl.Trainer, pl_module: Any) -> None:
        parts = trainer.strategy.masters() if isinstance(trainer.strategy, Divides) else pl_module.parameters()
        if _any_process(not all(bool(p.isfinite().all()) for p in parts), trainer):
            raise BadLoss(
                f"the weights are no longer finite at step {self._seen}: the gradients of a loss that was still finite "
                "were not. No checkpoint was written; go on from the last one with a lower learning rate or a "
                "tighter trainer.gradient_clip_val"
            )
        folder = _folder(trainer)
        if trainer.is_global_zero:
            for part in folder.glob("*.part"):  # what a killed run left behind
                part.unlink()
        trainer.save_checkpoint(folder / f"step={self._seen}.ckpt", False)  # all of the run, not its weights alone
        self._saved = self._seen
        if trainer.is_global_zero:
            for path in by_step(folder)[: -self.keep]:
                trainer.strategy.checkpoint_io.remove_checkpoint(path)


def _folder(trainer: pl.Trainer) -> Path:
    return Path(trainer.default_root_dir) / "checkpoints"


def _identity(checkpoint: Path) -> str:
    """Name and checksum of a whole checkpoint."""
    return f"{checkpoint.name} ({checksum_file(checkpoint).read_text()[:16]})"


def abandon_after(folder: Path, step: int) -> None:
    """Move checkpoints of a later step, which the run no longer leads to, into ``folder/abandoned``."""
    later = [path for path in by_step(folder) if step_of(path) > step]
    for path in later:
        (folder / "abandoned").mkdir(exist_ok=True)
        checksum = checksum_file(path)
        if checksum.exists():
            os.replace(checksum, folder / "abandoned" / checksum.name)
        os.replace(path, folder / "abandoned" / path.name)
    if later:
        print(
            f"going on from step {step}: {', '.join(p.name for p in later)} moved to {folder / 'abandoned'}", flush=True
        )


def _any_process(flag: bool, trainer: pl.Trainer) -> bool:
    if trainer.world_size == 1:
        return flag
    word = torch.tensor(float(flag), device=trainer.strategy.root_device)
    dist.all_reduce(word, dist.ReduceOp.MAX)
    return bool(word)


class SaveModel(pl.Callback):
    """At the end of a run, the module's ``save`` with averaged weights, and a card, into ``model/`` of the run.

    The folder is there whole or not at all. Where a run was killed while it wrote, ``--ckpt_path last`` writes it.
    """

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """See at once that there will be something to write.

        Raises:
            Mismatch: a module that can't be saved.
        """
        if not isinstance(pl_module, Saves):
            raise Mismatch(
                f"SaveModel asks for a module with save(folder, whole, dtype); {type(pl_module).__name__} has none"
            )

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Write the folder, unless a signal stopped the run before its end or it was only a rehearsal."""
        stopped = any(c.stopped for c in trainer.checkpoint_callbacks if isinstance(c, Checkpoints))
        if stopped or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        weights = best_weights(trainer, pl_module)
        if not trainer.is_global_zero:
            return
        if trainer.logger is not None:
            trainer.logger.save()
        with lent(pl_module, weights, cast=False):
            save_model(pl_module, Path(trainer.default_root_dir), trainer.global_step)


def save_model(pl_module: Saves, run: Path, step: int) -> None:
    """The module as it is, and a card of the run, as ``model/`` of the run folder."""
    with aside(run / "model") as folder:
        pl_module.save(folder)
        if isinstance(pl_module, Describes) and (run / "config.yaml").is_file():
            write_card(run, folder, step, pl_module.about(folder))
