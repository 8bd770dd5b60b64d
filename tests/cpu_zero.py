"""ZeRO on CPU processes over gloo, to test the real strategy without a GPU."""

from __future__ import annotations

import os
from typing import Literal

import torch
from pytorch_lightning.strategies import DeepSpeedStrategy

from omfa.training.zero import ZeRO


class CPUZeRO(ZeRO):
    """Takes ``trainer.accelerator: cpu``; all else is the strategy itself."""

    def __init__(self, stage: Literal[2, 3] = 2, offload: bool = False) -> None:
        super().__init__(stage, offload, "gloo")

    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu", 0)  # without an index DeepSpeed compares None with 0

    def setup_environment(self) -> None:
        super(DeepSpeedStrategy, self).setup_environment()  # the step over refuses CPUs

    def setup_distributed(self) -> None:
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # gloo does, and needs no compiler
        self.set_world_ranks()
        os.environ["LOCAL_RANK"] = str(self.local_rank)
        self._init_deepspeed_distributed()
