"""The training loss in rows: given rows run once, several draws of the noise share them.

Legend: ``B`` examples, ``K`` draws of the noise, ``T`` target rows, ``C`` latent channels, ``h w`` latents of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from omfa import partial_diffusion as pd
from omfa.conditioning import Layout, choose
from omfa.network import Network
from omfa.rows import Recall, RowGuide


def row_losses(
    network: Network,
    guide: RowGuide,
    layouts: Sequence[Layout],
    z0: Tensor,
    noise: Tensor,
    t: Tensor,
    unconditional: Tensor,
    alphas_cumprod: Tensor,
    kind: pd.Prediction,
    min_snr: float | None = None,
) -> Tensor:
    """Each example's loss (B,), the mean over its targets and draws: partial diffusion's, row by row.

    Args:
        network: the pipeline.
        guide: all rows of the batch.
        layouts: of the examples.
        z0: clean latents of the target rows (T, C, h, w), in the guide's order.
        noise: standard normal (K, T, C, h, w).
        t: timesteps (B, K).
        unconditional: (B,) bool, examples that see nothing that is given.
        alphas_cumprod: the scheduler's.
        kind: what the network predicts.
        min_snr: gamma of min-SNR weights, or None.
    """
    draws, targets = len(noise), guide.targets
    rows, owner = targets.repeated(draws), targets.owner.repeat(draws)
    draw = torch.arange(draws, device=owner.device).repeat_interleave(len(targets.owner))
    nothing = network.rows_without_anything(targets, layouts).repeated(draws)
    dropped = unconditional.to(owner.device)[owner]
    seen = replace(rows, guide=choose(dropped, nothing.guide, rows.guide))
    recall = Recall(network.remember(guide.given), torch.where(dropped, -1, owner), owner + len(layouts) * draw)

    steps = t.to(owner.device)[owner, draw]
    alpha_bar = alphas_cumprod[steps]
    clean, noise = z0.repeat(draws, 1, 1, 1), noise.flatten(0, 1)
    z_t = pd.add_noise(clean, noise, alpha_bar, seen.guide.target)
    prediction = network.predict(z_t, steps, seen.guide, recall)
    weight = None if min_snr is None else pd.min_snr_weight(alpha_bar, min_snr, kind)
    losses = pd.loss(prediction, pd.training_goal(clean, noise, alpha_bar, kind), seen.guide.target, weight)
    sums = losses.new_zeros(len(layouts)).index_add(0, owner, losses)
    return sums / owner.bincount(minlength=len(layouts))
