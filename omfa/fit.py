"""The training door.

    python -m omfa.fit --config lightning_configs/tiny.yaml [--config more.yaml] [--ckpt_path last] [--any.key value]

Everything of a run lies in ``trainer.default_root_dir``: ``config.yaml`` (it re-runs the run), ``checkpoints/``,
``samples/``, TensorBoard curves, and at the end ``model/``, which ``OMFAPipeline.from_pretrained`` reads; ``stopped/``
where the loss blew up. SIGTERM saves and exits 0, Ctrl-C saves and exits 130 (a second one at once).
``--ckpt_path last`` goes on, with any strategy on any number of
processes: exactly as if never stopped where both are the same and so is ``batch_size`` times processes. Learning rate
and weight decay are the config's, also when it has changed. ``--ckpt_path`` of an older checkpoint goes back to it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from pkgutil import resolve_name
from textwrap import shorten
from typing import Any, NoReturn

import pytorch_lightning as pl
from lightning_fabric.plugins.environments import LightningEnvironment
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.strategies import DeepSpeedStrategy, Strategy
from pytorch_lightning.utilities.exceptions import MisconfigurationException, SIGTERMException

from omfa.commands import begin_command
from omfa.files import Unwritable, read_text, sole
from omfa.images import ImageError
from omfa.records.prepared import RecordError
from omfa.training import examples, module, vae  # noqa: F401  a config may name their classes alone
from omfa.training.checkpoints import (
    RUN_FOLDER,
    Checkpoints,
    SafeCheckpointIO,
    SaveModel,
    checkpoint_to_resume,
    load_weights,
    save_model,
    step_of,
)
from omfa.training.configs import follow_moves, innermost, refuse_bombs
from omfa.training.guards import BadLoss, LossGuard
from omfa.training.parts import SeveralOptimizers
from omfa.training.sample_pictures import SamplePictures, StepBar
from omfa.training.torch_zero import TorchZeRO
from omfa.training.zero import Divides, ZeRO
from omfa.tuning import Mismatch


class OneLine(LightningArgumentParser):
    """Says what was wrong in one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """One line, and exit code 2."""
        self.exit(2, f"error: {shorten(innermost(ex) if ex else message, 500)} (see --help)\n")


class FitCLI(LightningCLI):
    """LightningCLI with a run folder, checkpoints by step, and ``--ckpt_path``."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """``--ckpt_path`` and ``--save_every``."""
        parser.add_argument("--ckpt_path", type=str | None, default=None, help="checkpoint to go on from, or 'last'")
        parser.add_argument("--save_every", type=int, default=500, help="steps between two checkpoints")

    def before_instantiate_classes(self) -> None:
        """Judge the strategy before networks are read."""
        check_optimizers(self.config.model.class_path, self.config.trainer.strategy)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """A trainer whose curves, checkpoints and pictures all lie in the run folder."""
        root = self.config.trainer.default_root_dir
        if root is None:
            raise ValueError("set trainer.default_root_dir, the folder of this run, like runs/tiny")
        if self.config.trainer.max_steps < 1:
            raise ValueError("set trainer.max_steps: the stream of examples is endless, epochs don't end it")
        several = self.config.trainer.accumulate_grad_batches
        if isinstance(several, int) and several < 1:
            raise ValueError(f"trainer.accumulate_grad_batches {several} must be 1 or more")
        configured = self._get(self.config_init, "trainer", default={})
        callbacks = _several(configured.get("callbacks"))
        guard = [] if any(isinstance(c, LossGuard) for c in callbacks) else [LossGuard()]
        kwargs["callbacks"] = [*callbacks, *guard, Checkpoints(self.config.save_every), StepBar()]
        kwargs["plugins"] = [*_several(configured.get("plugins")), SafeCheckpointIO()]
        if not configured.get("logger"):
            kwargs["logger"] = TensorBoardLogger(root, name="", version="")
        return check_strategy(super().instantiate_trainer(**kwargs))


def _several(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def check_optimizers(model: str, strategy: Any) -> None:
    """See whether a strategy is one, and steps as many optimisers as a module has.

    Args:
        model: class path of the module.
        strategy: what the config says of it.

    Raises:
        ValueError: it does not.
    """
    named = strategy if isinstance(strategy, str) else strategy.class_path
    try:
        kind = resolve_name(named) if "." in named else DeepSpeedStrategy if named.startswith("deepspeed") else Strategy
    except (ImportError, AttributeError):
        kind = Strategy
    several = issubclass(resolve_name(model), SeveralOptimizers)
    if several and issubclass(kind, DeepSpeedStrategy):
        raise ValueError(
            f"{model} steps several optimisers, and DeepSpeed takes one: write trainer.strategy: {{class_path: "
            "omfa.training.torch_zero.TorchZeRO}, which is ZeRO-2 without DeepSpeed"
        )
    if not several and issubclass(kind, TorchZeRO):
        raise ValueError(
            f"TorchZeRO is for modules that step several optimisers, and {model} steps one: write trainer.strategy: "
            "{class_path: omfa.training.zero.ZeRO, init_args: {stage: 2}}"
        )
    if isinstance(strategy, str) and "." in strategy:
        raise ValueError(f"write trainer.strategy: {{class_path: {strategy}}}; only Lightning's own go by a name alone")


def check_strategy(trainer: pl.Trainer) -> pl.Trainer:
    """The same trainer.

    Raises:
        ValueError: its strategy can't do what is asked of it.
    """
    strategy = trainer.strategy
    if isinstance(strategy, DeepSpeedStrategy) and not isinstance(strategy, ZeRO):
        raise ValueError(
            "Lightning's own DeepSpeed strategy keeps checkpoints as folders of pickles; write "
            "trainer.strategy: {class_path: omfa.training.zero.ZeRO, init_args: {stage: 2}}, the same with plain "
            "checkpoints"
        )
    if isinstance(strategy, Divides) and trainer.precision in ("16-mixed", "16-true"):
        raise ValueError(f"trainer.precision {trainer.precision} does not go with ZeRO; take bf16-mixed")
    pictures = any(isinstance(c, SamplePictures) for c in trainer.callbacks)  # type: ignore[attr-defined]
    if isinstance(strategy, ZeRO) and strategy.zero_stage_3 and pictures:
        raise ValueError(
            "SamplePictures needs the whole network, which ZeRO-3 divides: leave it out of trainer.callbacks, and "
            "sample from what python -m omfa.export makes of a checkpoint"
        )
    return trainer


def only_its_model_is_missing(trainer: pl.Trainer, checkpoint: Path) -> bool:
    """Whether a run has taken its last step, and was killed before :class:`SaveModel` was done."""
    asked = any(isinstance(c, SaveModel) for c in trainer.callbacks) and not trainer.fast_dev_run  # type: ignore[attr-defined]
    written = Path(trainer.default_root_dir, "model").exists()
    return asked and not written and step_of(checkpoint) == trainer.max_steps


def unreadable(words: Sequence[str]) -> str:
    """The first file named on a command line that is no text, for the head of a message."""
    for word in words:
        path = Path(word.removeprefix("--config="))
        try:
            if path.is_file():
                path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            return f"{path} is no config in YAML: "
    return ""


def check_configs(words: Sequence[str]) -> None:
    """Refuse configs on a command line that unfold to what no machine holds.

    Raises:
        ValueError: which one.
    """
    for word in words:
        path = Path(word.removeprefix("--config="))
        if path.suffix.lower() in (".yaml", ".yml") and path.is_file():
            refuse_bombs(read_text(path), str(path))


def main(args: list[str] | None = None) -> int:
    """Train; 0 all well (or stopped by SIGTERM), 1 the loss blew up, 2 wrong call or input, 130 stopped by hand."""
    follow_moves()
    begin_command()
    try:
        check_configs(sys.argv[1:] if args is None else args)
        cli = FitCLI(
            pl.LightningModule,
            pl.LightningDataModule,
            run=False,
            args=args,
            parser_class=OneLine,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            trainer_defaults={
                "limit_val_batches": 0,
                "num_sanity_val_steps": 0,
                "log_every_n_steps": 10,
                "max_epochs": -1,
                "use_distributed_sampler": False,  # the stream deals out to ranks by itself
            },
            save_config_kwargs={"overwrite": True},
        )
        root = Path(cli.trainer.default_root_dir)
        with sole(root, RUN_FOLDER) if cli.trainer.is_global_zero else nullcontext():
            return train(cli, root)
    except KeyboardInterrupt:
        print("stopped by hand before anything was learned that could be saved", file=sys.stderr)
        return 130
    except (MemoryError, OverflowError) as e:
        print(f"error: sizes that no machine holds ({shorten(str(e), 200)}): make the network smaller", file=sys.stderr)
        return 2
    except MisconfigurationException as e:
        print(f"error: {' '.join(str(e).split())}", file=sys.stderr)
        return 2
    except ValueError as e:
        where = unreadable(sys.argv[1:] if args is None else args) if isinstance(e, UnicodeDecodeError) else ""
        print(f"error: {where}{innermost(e)}", file=sys.stderr)
        return 2


def train(cli: FitCLI, root: Path) -> int:
    """Train in a run folder that is this call's alone; the exit code."""
    checkpoint = checkpoint_to_resume(root, cli.config.ckpt_path)
    saving = [c for c in cli.trainer.callbacks if isinstance(c, Checkpoints)]  # type: ignore[attr-defined]
    for callback in saving:
        callback.goes_on_from = checkpoint
    try:
        if checkpoint is not None and only_its_model_is_missing(cli.trainer, checkpoint):
            if cli.trainer.is_global_zero:
                save_model(cli.model, root, load_weights(cli.model, checkpoint))
            return 0
        cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as e:  # Lightning's answer to a second Ctrl-C; or to a SIGTERM before we listened, saved by then
        return 0 if isinstance(e, SIGTERMException) else 130
    except (
        RecordError,
        ImageError,
        Mismatch,
        Unwritable,
    ) as e:  # anything else is a fault of ours and shows itself
        said = str(e).strip().splitlines()[-1]  # a loader's process sends its whole traceback
        print(f"error: {said}", file=sys.stderr)
        return 2
    except BadLoss as e:
        print(f"error: {e}", file=sys.stderr)
        environment = getattr(cli.trainer.strategy, "cluster_environment", None)  # on one device there is none
        started_by_the_first = isinstance(environment, LightningEnvironment)
        # Lightning kills the first process as soon as one that it started fails, perhaps before it has said why
        return 0 if cli.trainer.global_rank and started_by_the_first else 1
    return 130 if any(c.interrupted for c in saving) else 0


if __name__ == "__main__":
    sys.exit(main())
