"""What stands behind the page: one model, one order at a time, watched step by step and stopped at will."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from omfa.bodies.body import load_body
from omfa.bodies.parameters import JOINT_IDS, BodyParameters
from omfa.bodies.placing import project
from omfa.orders import Order, check_seed
from omfa.pipeline import OMFAPipeline
from omfa.tasks import Estimate

Watch = Callable[[float, str], None]
"""Told how far it is, from 0 to 1, and what is being done."""
_SEEN = {"ankle": "the feet", "knee": "the knees", "hip": "the hips", "wrist": "a hand", "head": "the head"}


class Stopped(Exception):
    """The order was called off."""


@dataclass(frozen=True)
class Made:
    """Pictures by name, and what the person who asked should know of them."""

    pictures: dict[str, Image.Image]
    notes: list[str]


class Studio:
    """A pipeline for many visitors: it makes one order at a time.

    Args:
        pipe: with a pose estimator.
    """

    def __init__(self, pipe: OMFAPipeline) -> None:
        self.pipe, self.estimator, self._lock = pipe, pipe.pose_estimator, threading.Lock()
        self._closed = threading.Event()
        pipe.set_progress_bar_config(disable=True)

    def close(self) -> None:
        """Call off whatever is being made or waits, at its next step, and make nothing more."""
        self._closed.set()

    def make(
        self,
        order: Order,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        watch: Watch = lambda *_: None,
        stop: threading.Event | None = None,
    ) -> Made:
        """The pictures of an order.

        Args:
            order: what to make.
            seed: the same seed gives the same picture.
            steps, guidance: of the sampler; None takes the model's own.
            watch: told of every step, and of what is done beside them.
            stop: called off when this is set, at the next step.

        Raises:
            ValueError: what can't be made, in words for the person who asked.
            Stopped: it was called off.
        """
        check_seed(seed)
        notes: list[str] = []
        rounds = 0

        def go_on() -> None:
            if self._closed.is_set() or (stop is not None and stop.is_set()):
                raise Stopped

        def after(pipe: Any, i: int, t: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
            nonlocal rounds
            rounds += i == 0
            total = len(pipe.scheduler.timesteps)
            doing = "finishing" if i + 1 == total else f"drawing, step {i + 1} of {total}"
            watch(0.4 + 0.5 * (i + 1) / total, doing if rounds == 1 else f"picture {rounds}: {doing}")
            go_on()
            return values

        def estimate(photo: Image.Image) -> Estimate:
            assert self.estimator is not None
            watch(0.05, "looking for the body")
            try:
                found = self.estimator(photo)
            except ValueError as e:
                notes.append(f"No body was found in the photo ({e}). What comes of it is a guess.")
                raise
            finally:
                go_on()
                watch(0.2, "laying out the clothes")
            if cut := cut_off(found.params):
                notes.append(cut)
            return found

        with self._lock, warnings.catch_warnings(action="ignore"):  # they are in the notes
            go_on()
            self.pipe.pose_estimator = None if self.estimator is None else estimate
            try:
                generator = torch.Generator().manual_seed(seed)
                options = {"num_inference_steps": steps, "guidance_scale": guidance, "generator": generator}
                made = order.make(self.pipe, callback_on_step_end=after, **options)
            finally:
                self.pipe.pose_estimator = self.estimator
        return Made(made, list(dict.fromkeys(notes)))


def cut_off(params: BodyParameters) -> str | None:
    """A sentence on what of a body lies outside its photo; None where all of it is inside.

    Args:
        params: the body, in the photo's camera.
    """
    points = project(load_body().posed(params).joints[0].cpu().numpy(), params.K)
    height, width = params.image_size
    gone = []
    for part, words in _SEEN.items():
        joints = [points[JOINT_IDS[n]] for n in (part, f"left_{part}", f"right_{part}") if n in JOINT_IDS]
        if not all(-0.5 <= x < width - 0.5 and -0.5 <= y < height - 0.5 for x, y in joints):
            gone.append(words)
    if not gone:
        return None
    named = " and ".join([", ".join(gone[:-1]), gone[-1]] if len(gone) > 1 else gone)
    return f"The photo cuts off {named}: what is not seen is a guess."
