"""The training loss in rows: given rows run once, several draws of the noise share them.

Legend: ``B`` examples, ``K`` draws of the noise, ``T`` target rows, ``C`` latent channels, ``h w`` latents of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from omfa import partial_diffusion as pd
from omfa.conditioning import Layout, choose
from omfa.network import Network
from omfa.rows import Recall, RowGuide, Rows
from omfa.sampling import Predict


class DrawnRows(NamedTuple):
    """Target rows, all of them again for every draw of the noise, and what the network predicts of them.

    ``draw`` (K T,) is each row's draw. ``predict`` sees what is given, of dropped examples nothing; ``without`` sees
    nothing of any.
    """

    rows: Rows
    draw: Tensor
    predict: Predict
    without: Predict


def drawn_rows(
    network: Network, guide: RowGuide, layouts: Sequence[Layout], draws: int, unconditional: Tensor
) -> DrawnRows:
    """Given rows run here, once for all draws; gradients flow into them.

    Args:
        network: the pipeline.
        guide: all rows of the batch.
        layouts: of the examples.
        draws: K.
        unconditional: (B,) bool, examples that see nothing that is given.
    """
    targets = guide.targets
    rows, owner = targets.repeated(draws), targets.owner.repeat(draws)
    draw = torch.arange(draws, device=owner.device).repeat_interleave(len(targets.owner))
    nothing = network.rows_without_anything(targets, layouts).repeated(draws).guide
    dropped, group = unconditional.to(owner.device)[owner], owner + len(layouts) * draw
    seen = replace(rows, guide=choose(dropped, nothing, rows.guide))
    recall = Recall(network.remember(guide.given), torch.where(dropped, -1, owner), group)
    return DrawnRows(
        seen,
        draw,
        lambda z, t: network.predict(z, t, seen.guide, recall),
        lambda z, t: network.predict(z, t, nothing, Recall([], owner, group)),
    )


def of_examples(losses: Tensor, owner: Tensor) -> Tensor:
    """The mean over each example's rows: (rows,) to (B,)."""
    sums = losses.new_zeros(int(owner.max()) + 1).index_add(0, owner, losses)
    return sums / owner.bincount()


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
    rows, draw, predict, _ = drawn_rows(network, guide, layouts, len(noise), unconditional)
    steps = t.to(draw.device)[rows.owner, draw]
    alpha_bar = alphas_cumprod[steps]
    clean, noise = z0.repeat(len(noise), 1, 1, 1), noise.flatten(0, 1)
    z_t = pd.add_noise(clean, noise, alpha_bar, rows.guide.target)
    weight = None if min_snr is None else pd.min_snr_weight(alpha_bar, min_snr, kind)
    goal = pd.training_goal(clean, noise, alpha_bar, kind)
    return of_examples(pd.loss(predict(z_t, steps), goal, rows.guide.target, weight), rows.owner)
