"""DeepSpeed's ZeRO with checkpoints like everybody else's: whole weights, whole optimiser state, one plain file.

DeepSpeed itself writes a folder of pickles, a file per rank, that only the same number of ranks reads back, and
unpickles whatever they hold. Here nothing of that format is written or read. What ZeRO keeps in parts (float32 weights,
AdamW's two moments, the average of :class:`omfa.training.ema.EMA`) is gathered parameter by parameter into the
checkpoint that a run on one process writes. So any checkpoint goes on under ZeRO-2, ZeRO-3, DDP or one process, on any
number of ranks, with all of the optimiser's state, and is checksummed and read with ``weights_only=True``.
The price: the first rank holds one whole checkpoint in CPU memory while it writes (SDXL with an average: 41 GB).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DeepSpeedStrategy, Strategy
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")


def trained(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Names and parameters that are trained, in the order the optimiser has them."""
    return [(name, p) for name, p in module.named_parameters() if p.requires_grad]


@runtime_checkable
class Divides(Protocol):
    """A strategy under which each rank holds its parts of the trained weights."""

    def masters(self) -> list[Tensor]:
        """This rank's parts of the float32 weights; the tensors themselves, which the optimiser updates."""

    def gather(self, parts: Sequence[Tensor] | None = None) -> dict[str, Tensor]:
        """Whole tensors by parameter name on the first rank, of such parts (None: the weights). All must call."""

    def scatter(self, whole: Mapping[str, Tensor]) -> list[Tensor]:
        """This rank's parts of whole tensors; the opposite of :meth:`gather`."""


class ZeRO(DeepSpeedStrategy):
    """ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054) over the GPUs of all nodes; AdamW as without it.

    With ``trainer.precision: bf16-mixed`` the network is kept in bfloat16 (its first weights are rounded to it) and
    the optimiser's copy in float32, divided among the ranks.

    Args:
        stage: 2 divides optimiser state and gradients, 3 the weights too.
        offload: optimiser state (and for stage 3 the weights) in CPU memory; AdamW then runs on the CPU.
        process_group_backend: None chooses ("nccl" on GPUs).

    Raises:
        ValueError: another stage.
    """

    def __init__(
        self, stage: Literal[2, 3] = 2, offload: bool = False, process_group_backend: str | None = None
    ) -> None:
        if stage not in (2, 3):
            raise ValueError(
                f"ZeRO stage {stage} is not supported: 2 divides optimiser and gradients, 3 the weights too"
            )
        super().__init__(
            stage=stage,
            offload_optimizer=offload,
            offload_parameters=offload and stage == 3,
            pin_memory=offload and torch.cuda.is_available(),
            logging_batch_size_per_gpu=1,  # for DeepSpeed's own timing, which is off
            process_group_backend=process_group_backend,
        )
        assert isinstance(self.config, dict)
        self.config["zero_force_ds_cpu_optimizer"] = False  # torch's fused AdamW does on the CPU, and needs no compiler
        self.offload = offload

    def setup(self, trainer: pl.Trainer) -> None:
        """As usual, but batches of examples are left alone: they are frozen, and the module casts what it must."""
        super().setup(trainer)
        plugin: Any = self.precision_plugin
        convert = plugin.convert_input
        plugin.convert_input = lambda batch: batch if is_dataclass(batch) else convert(batch)

    def _init_optimizers(self) -> Any:
        optimizer, schedule = super()._init_optimizers()
        for group in optimizer.param_groups if self.offload else []:
            group["fused"] = True
        return optimizer, schedule

    # ------------------------------------------------------------------- what this rank holds, and what it is part of

    def masters(self) -> list[Tensor]:
        """This rank's parts of the float32 weights, flat; the tensors themselves, which the optimiser updates."""
        zero: Any = self.optimizers[0]
        return list(zero.fp32_partitioned_groups_flat if self.zero_stage_3 else zero.single_partition_of_fp32_groups)

    @contextmanager
    def _masters_kept(self) -> Iterator[list[Tensor]]:
        """The masters, to be written to; as they were afterwards."""
        own = [m.detach().clone() for m in self.masters()]
        try:
            with torch.no_grad():
                yield [m.detach() for m in self.masters()]
        finally:
            for master, kept in zip(self.masters(), own, strict=True):
                master.detach().copy_(kept)

    def gather(self, parts: Sequence[Tensor] | None = None) -> dict[str, Tensor]:
        """Whole tensors by parameter name, float32 on the CPU, on the first rank; nothing on the others. All must call.

        Args:
            parts: this rank's parts, laid out as :meth:`masters`; None gathers the weights themselves.
        """
        from deepspeed.utils import safe_get_full_fp32_param

        whole = {}
        with self._masters_kept() as masters:
            for master, part in zip(masters, parts or masters, strict=True):
                master.copy_(part)
            for name, p in trained(self.lightning_module):  # type: ignore[arg-type]
                value = safe_get_full_fp32_param(p)
                if self.is_global_zero:
                    whole[name] = value.detach().cpu().clone()
        return whole

    def scatter(self, whole: Mapping[str, Tensor]) -> list[Tensor]:
        """This rank's parts of whole tensors, laid out as :meth:`masters`; the opposite of :meth:`gather`."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        with self._masters_kept() as masters:
            for master in masters:
                master.zero_()
            for name, p in trained(self.lightning_module):  # type: ignore[arg-type]
                value = whole[name].to(self.root_device, torch.float32)
                if self.zero_stage_3:  # the setter for whole tensors takes no number of elements that doesn't divide
                    size = p.ds_tensor.numel()  # type: ignore[attr-defined]
                    padded = nn.functional.pad(value.flatten(), (0, size * self.world_size - value.numel()))
                    safe_set_local_fp32_param(p, padded[size * self.global_rank :][:size])
                else:
                    safe_set_full_fp32_param(p, value)
            return [m.clone() for m in masters]

    # -------------------------------------------------------------------------------------------- one plain checkpoint

    save_checkpoint = Strategy.save_checkpoint  # the first rank, by the trainer's checkpoint plugin
    load_checkpoint = Strategy.load_checkpoint
    load_model_state_dict = Strategy.load_model_state_dict

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Weights are read before DeepSpeed divides them."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """AdamW's state is read by :meth:`load_optimizer_state_dict`."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Trained weights in float32, and buffers; on the first rank."""
        module = self.lightning_module
        assert module is not None
        parameters = {name for name, _ in module.named_parameters()}
        return {k: v for k, v in module.state_dict().items() if k not in parameters} | self.gather()

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """AdamW's state as torch has it on one process; on the first rank."""
        adamw = optimizer.optimizer
        (group,) = adamw.param_groups
        own = [adamw.state[m] for m in self.masters() if m in adamw.state]
        moments = {key: self.gather([s[key] for s in own]) for key in MOMENTS} if own else {}
        names = list(moments[MOMENTS[0]]) if own else []
        state = {
            i: {"step": torch.tensor(float(own[0]["step"]))} | {key: moments[key][name] for key in MOMENTS}
            for i, name in enumerate(names)
        }
        return {"state": state, "param_groups": [{**group, "fused": None, "params": list(range(len(names)))}]}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Divide float32 weights and AdamW's state of a checkpoint of any strategy among the ranks."""
        (saved,) = checkpoint["optimizer_states"]
        adamw: Any = self.optimizers[0].optimizer  # type: ignore[attr-defined]
        (group,), (settings,) = adamw.param_groups, saved["param_groups"]
        group.update({k: v for k, v in settings.items() if k not in ("params", "fused")})
        names = [name for name, _ in trained(self.lightning_module)]  # type: ignore[arg-type]
        masters = self.masters()
        if saved["state"]:
            parts = {key: self.scatter({n: saved["state"][i][key] for i, n in enumerate(names)}) for key in MOMENTS}
            for i, master in enumerate(masters):
                step = torch.tensor(float(saved["state"][0]["step"]))
                adamw.state[master] = {"step": step} | {key: parts[key][i] for key in MOMENTS}
        for master, part in zip(masters, self.scatter(checkpoint["state_dict"]), strict=True):
            master.detach().copy_(part)
