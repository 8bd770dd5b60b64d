"""What the parts of training ask of a module, whichever model it trains, and a module that gives most of it.

The average, the guard, the step bar and the checkpoints of a run serve any LightningModule. ``SaveModel`` and
``omfa.export`` ask for :class:`Saves`, ``SamplePictures`` for :class:`Samples`; :class:`Describes` and :class:`Checks`
are used where a module has them. :class:`TrainedModule` is the common ground: subclass it, write ``losses``, ``save``.
``B`` examples of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor

from omfa.records.prepared import Record
from omfa.records.shards import Source
from omfa.training.model_card import About
from omfa.training.rates import Rates
from omfa.tuning import Mismatch


@runtime_checkable
class Saves(Protocol):
    """A module whose model can be written as a folder."""

    def save(self, folder: Path, whole: bool = False, dtype: torch.dtype | None = None) -> None:
        """Write the model, with the weights as they are now.

        Args:
            folder: to be made.
            whole: a whole model even where a small training writes small files; training need not go on afterwards.
            dtype: of all numbers in the files; None leaves them as they are. Training need not go on either.
        """


@dataclass(frozen=True)
class Sampling:
    """How a sample picture is made.

    Args:
        steps: of the sampler.
        guidance: scale of the guidance.
        seed: of its noise.
    """

    steps: int
    guidance: float
    seed: int


@runtime_checkable
class Samples(Protocol):
    """A module that makes pictures of a record, to look at while it learns."""

    @property
    def picture_size(self) -> tuple[int, int]:
        """(height, width) of a person picture in pixels."""

    def sample(self, source: Source, record: Record, how: Sampling) -> list[list[Image.Image]]:
        """Rows of pictures, given | made | truth each, with the weights as they are now."""


@runtime_checkable
class Describes(Protocol):
    """A module whose saved model gets a card."""

    def about(self, folder: Path) -> About:
        """What is in a folder that :meth:`Saves.save` wrote."""


@runtime_checkable
class Checks(Protocol):
    """A module that knows which checkpoints are not its own."""

    def check(self, checkpoint: Mapping[str, Any]) -> None:
        """Refuse a checkpoint of something else by a :class:`omfa.tuning.Mismatch` that says what would fit."""


class SeveralOptimizers(pl.LightningModule):
    """A module that steps several optimisers by hand, each in its turn: DeepSpeed's strategy takes one alone."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class TrainedModule(pl.LightningModule):
    """A module some of whose weights are trained: AdamW by its rates, and checkpoints that hold only what is trained.

    Frozen networks may be parameters of the module or lie outside of it: both stay out of checkpoints.

    Args:
        rates: AdamW's.
    """

    def __init__(self, rates: Rates) -> None:
        super().__init__()
        self.rates = rates

    def losses(self, batch: Any) -> Tensor:
        """Each example's loss, (B,)."""
        raise NotImplementedError

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The mean of :meth:`losses`, logged as ``loss``."""
        losses = self.losses(batch)
        self.log("loss", losses.mean(), prog_bar=True, batch_size=len(losses))
        return losses.mean()

    def configure_optimizers(self) -> Any:
        """AdamW with linear warm-up and a linear fall at the end."""
        return self.rates.adamw(self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Checkpoints hold what is trained; the rest comes from where it came from."""
        kept = checkpoint.get("state_dict", {})
        for name in self.frozen():
            kept.pop(name, None)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the rates of the config, if the checkpoint fits this module at all."""
        self.check(checkpoint)
        self.rates.follow(checkpoint, self)

    def check(self, checkpoint: Mapping[str, Any]) -> None:
        """Refuse a checkpoint of something else.

        Raises:
            Mismatch: other weights than those trained here.
        """
        frozen = self.frozen()
        own = {name: v.shape for name, v in self.state_dict().items() if name not in frozen}
        theirs = {name: v.shape for name, v in checkpoint["state_dict"].items()}
        differ = [name for name in {**own, **theirs} if own.get(name) != theirs.get(name)]
        if differ:
            here, there = (list(x.get(differ[0], ())) or "not trained" for x in (own, theirs))
            raise Mismatch(
                f"the checkpoint does not fit this model: {len(differ)} weights differ, like {differ[0]}: there "
                f"{there}, here {here}. Go on with the train, rank and network it was made with; config.yaml has them"
            )

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """What a checkpoint holds, over the frozen weights as they are; anything missing or too much is an error."""
        return super().load_state_dict({**self.frozen(), **state_dict}, strict, assign)

    def frozen(self) -> dict[str, Tensor]:
        """Parameters that are not trained, by name."""
        return {name: p for name, p in self.named_parameters() if not p.requires_grad}
