"""Fits and saves the small networks that judge pictures (``pattern_kind``, ``person_outline``)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm


def fit(net: nn.Module, losses: Iterable[Tensor], steps: int, rate: float, weight_decay: float) -> None:
    """AdamW with a one-cycle rate, one step a loss; the network is left in evaluation mode.

    Args:
        net: changed in place.
        losses: made one by one from the network as it then is.
        steps: how many losses there are.
        rate: the highest learning rate.
        weight_decay: AdamW's.
    """
    net.train()
    optimiser = torch.optim.AdamW(net.parameters(), weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    with tqdm(total=steps, disable=None) as bar:
        for loss in losses:
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            bar.update()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    net.eval()


def save_half(net: nn.Module, path: Path) -> None:
    """Half-precision safetensors, swapped in when whole."""
    part = path.with_suffix(".part")
    save_file({name: w.half() if w.is_floating_point() else w for name, w in net.state_dict().items()}, part)
    os.replace(part, path)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
