"""ZeRO-2 by torch alone, for modules that step several optimisers: DeepSpeed takes one.

Weights, gradients and AdamW's moments are dealt out by torch's ``fully_shard``. The whole weights of a block are put
together when it runs and stay until backward has passed it, so that they travel once for each backward: ZeRO-2
(Rajbhandari et al. 2020, arXiv 1910.02054), which Zhao et al. (2023, arXiv 2304.11277) call SHARD_GRAD_OP.
Checkpoints are those of a run on one process, as under :class:`omfa.training.zero.ZeRO`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from omfa.training.zero import MOMENTS, trained


def blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The parts of a network that are called as they are: lists, and stages without a forward, are looked into."""
    for child in network.children():
        if type(child).forward is nn.Module.forward:
            yield from blocks(child)
        else:
            yield child


def blocks_of_all(module: nn.Module) -> list[nn.Module]:
    """The blocks of all networks that are a module's children.

    Raises:
        ValueError: weights that no block holds.
    """
    found = [block for network in module.children() for block in blocks(network)]
    held = {p for block in found for p in block.parameters()}
    for name, p in module.named_parameters():
        if p not in held:
            raise ValueError(f"TorchZeRO deals out what lies in the blocks of networks, and {name} does not")
    return found


def dealt(whole: Tensor, like: DTensor) -> DTensor:
    """A whole tensor, which every process has, dealt out as another one is."""
    whole = whole.to(like.device, like.dtype)
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


class TorchZeRO(DDPStrategy):
    """ZeRO-2 over the devices of all nodes, for a :class:`omfa.training.parts.SeveralOptimizers`.

    The module's children are its networks, and the blocks that these are made of must be called, not reached into. What
    the processes learn is averaged, as under DDP: their batches are one batch in equal parts.
    """

    def __init__(self) -> None:
        super().__init__()

    def configure_ddp(self) -> None:
        """Deal the networks out, where DDP would wrap the module.

        Raises:
            ValueError: weights that no block holds.
        """
        module: Any = self.lightning_module
        for value in module.state_dict().values():  # as DDP does: the first process's weights count
            dist.broadcast(value, 0)
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        for block in blocks_of_all(module):
            fully_shard(block, mesh=mesh, reshard_after_forward=False)
        # One root, so that all blocks know of each other; it is entered where a step begins.
        fully_shard(module, mesh=mesh, reshard_after_forward=False)
        register_fsdp_forward_method(module, "training_step")

    teardown = ModelParallelStrategy.teardown  # what is dealt out stays on its device

    # ------------------------------------------------------------------- what this rank holds, and what it is part of

    def _dealt_out(self) -> list[tuple[str, DTensor]]:
        """Names and parts of what is trained, also in the midst of a step."""
        module: Any = self.lightning_module
        for block in module.modules():
            if isinstance(block, FSDPModule):
                block.reshard()
        return trained(module)  # type: ignore[return-value]

    def masters(self) -> list[Tensor]:
        """This rank's parts of the float32 weights; the tensors themselves, which the optimisers update."""
        return [p.to_local().detach() for _, p in self._dealt_out()]

    def gather(self, parts: Sequence[Tensor] | None = None) -> dict[str, Tensor]:
        """Whole tensors by parameter name, float32 on the CPU, on the first rank; nothing on the others. All must call.

        Args:
            parts: this rank's parts, laid out as :meth:`masters`; None gathers the weights themselves.
        """
        whole = {}
        for (name, p), part in zip(self._dealt_out(), parts or self.masters(), strict=True):
            layout = p.device_mesh, p.placements
            value = self._whole(DTensor.from_local(part, *layout, shape=p.shape, stride=p.stride(), run_check=False))
            if self.is_global_zero:
                whole[name] = value
        return whole

    def scatter(self, whole: Mapping[str, Tensor]) -> list[Tensor]:
        """This rank's parts of whole tensors, laid out as :meth:`masters`; the opposite of :meth:`gather`."""
        return [dealt(whole[name], p).to_local().clone() for name, p in self._dealt_out()]

    def _whole(self, value: Any) -> Any:
        """What is dealt out, whole and on the CPU, on the first rank; anything else as it is."""
        if not isinstance(value, DTensor):
            return value
        put_together = value.full_tensor()
        return put_together.detach().cpu().clone() if self.is_global_zero else value

    # -------------------------------------------------------------------------------------------- one plain checkpoint

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole weights and buffers; on the first rank."""
        self._dealt_out()
        return {name: self._whole(value) for name, value in super().lightning_module_state_dict().items()}

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """AdamW's state as torch has it on one process; on the first rank."""
        state: dict[str, Any] = super().optimizer_state(optimizer)
        whole = {i: {key: self._whole(v) for key, v in own.items()} for i, own in state["state"].items()}
        return {**state, "state": whole}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Deal out AdamW's state of a checkpoint of any strategy."""

        def own(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            state = {
                i: {key: dealt(v, parameters[i]) if key in MOMENTS else v for key, v in values.items()}
                for i, values in saved["state"].items()
            }
            return {**saved, "state": state}

        states = zip(self.optimizers, checkpoint["optimizer_states"], strict=True)
        super().load_optimizer_state_dict({"optimizer_states": [own(*pair) for pair in states]})
