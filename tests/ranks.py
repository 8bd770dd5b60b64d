"""Runs of ``omfa.fit`` in processes forked from this one, which has imported everything already."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from omfa import fit
from omfa.training.checkpoints import SafeCheckpointIO, last_checkpoint


@dataclass(frozen=True)
class Ended:
    """How a run ended: an exit code per process (negative: its signal), and what all of them printed."""

    codes: list[int]
    log: str


def run(arguments: Sequence[str], processes: int = 1, limit: float = 500, own: Sequence[Sequence[str]] = ()) -> Ended:
    """``omfa.fit.main`` on each of some processes; when one fails, the others are ended, as torchrun does.

    ``own`` are more arguments of each process.
    """
    context = multiprocessing.get_context("fork")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    read, write = os.pipe()
    started = [
        context.Process(target=_fit, args=([*arguments, *(own[k] if own else ())], k, processes, port, write))
        for k in range(processes)
    ]
    for process in started:
        process.start()
    os.close(write)
    os.set_blocking(read, False)
    log, until = b"", time.monotonic() + limit
    while any(p.is_alive() for p in started):
        log += _read(read)
        time.sleep(0.05)
        failed = any(p.exitcode for p in started)
        if failed or time.monotonic() > until:
            grace = time.monotonic() + 5
            while any(p.is_alive() for p in started) and time.monotonic() < grace:
                log += _read(read)
                time.sleep(0.05)
            for p in started:
                p.kill()
    log += _read(read)
    os.close(read)
    for p in started:
        p.join()
    return Ended([p.exitcode for p in started], log.decode(errors="replace"))  # type: ignore[misc]


def _read(pipe: int) -> bytes:
    try:
        return os.read(pipe, 1 << 20)
    except BlockingIOError:
        return b""


def _fit(arguments: list[str], rank: int, processes: int, port: int, log: int) -> None:
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    if processes > 1:
        where = {"LOCAL_RANK": rank, "NODE_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({k: str(v) for k, v in where.items()})
        arguments = [*arguments, f"--trainer.devices={processes}"]
    try:
        code = fit.main(arguments)
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def saved(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a run's last checkpoint: weights, their average, optimiser state, and the losses of all steps."""
    path = last_checkpoint(folder / "checkpoints")
    assert path is not None, f"no whole checkpoint in {folder}"
    loaded = SafeCheckpointIO().load_checkpoint(path)
    callbacks = {k.split("{")[0]: v for k, v in loaded["callbacks"].items()}
    found = {f"weight.{k}": v for k, v in loaded["state_dict"].items()}
    found |= {f"ema.{k}": v for k, v in callbacks.get("EMA", {"weights": {}})["weights"].items()}
    for i, state in loaded["optimizer_states"][0]["state"].items():
        found |= {f"optimizer.{i}.{k}": v for k, v in state.items()}
    return {**found, "losses": torch.tensor(callbacks["LossGuard"]["recent"], dtype=torch.float64)}
