"""The other design, to compare with: a second UNet reads the garment, the person's UNet attends to what it saw.

Nothing of OMFA uses it; :mod:`omfa.bench` and :mod:`omfa.bench.costs` set it beside the canvas.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn


class DualUNet(nn.Module):
    """Two UNets, joined at every self-attention as in IDM-VTON (arXiv 2403.05139).

    The input of each self-attention of the (frozen) reference UNet is appended to the keys and values of the same layer
    of the main one. IDM-VTON lets the garment's tokens ask as well and throws their answers away; here they don't, so
    this costs less than the original. In guided sampling the unconditional half sees zeros in the garment's place, and
    the reference runs once.

    Args:
        unet: the person's, trained.
        reference: the garment's, with the same blocks; frozen here.
    """

    def __init__(self, unet: UNet2DConditionModel, reference: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet, self.reference = unet, reference.requires_grad_(False)
        self._tokens: dict[str, Tensor] = {}
        for network, hook in ((unet, self._append), (reference, self._collect)):
            for name, module in network.named_modules():
                if name.endswith(".attn1"):
                    module.register_forward_pre_hook(hook(name), with_kwargs=True)

    def forward(self, person: Mapping[str, Any], garment: Mapping[str, Any] | None) -> Tensor:
        """One pass of both.

        Args:
            person: arguments of the main UNet, batch B or (guided: unconditional first) 2B.
            garment: arguments of the reference UNet, batch B; None appends nothing.

        Returns:
            The main UNet's prediction.
        """
        self._tokens.clear()
        if garment is not None:
            with torch.no_grad():
                self.reference(**garment)
        return self.unet(**person, return_dict=False)[0]

    def _collect(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor], kwargs: dict[str, Any]) -> None:
            self._tokens[name] = args[0]

        return hook

    def _append(self, name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Tensor], kwargs: dict[str, Any]) -> Any:
            hidden = args[0]
            tokens = self._tokens.get(name, hidden[:, :0])
            if 2 * len(tokens) == len(hidden):
                tokens = torch.cat([torch.zeros_like(tokens), tokens])
            return args, {**kwargs, "encoder_hidden_states": torch.cat([hidden, tokens], dim=1)}

        return hook
