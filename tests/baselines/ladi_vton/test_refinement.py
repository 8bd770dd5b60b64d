from __future__ import annotations

import torch
from torch.testing import assert_close

from omfa.baselines.ladi_vton.refinement import Refinement
from tests.baselines.ladi_vton.golden import LOOSE, fill, keys, read, ruled, shapes


def test_the_official_weights_have_a_place() -> None:
    with torch.device("meta"):
        network = Refinement()
    assert shapes(network) == keys("warping")["refinement"]
    assert sum(p.numel() for p in network.parameters()) == 17_275_203


@torch.no_grad()
def test_as_the_original_at_odd_sizes_too() -> None:
    golden, network = read("refinement"), fill(Refinement(), "ladi.refine", gain=1.5)
    assert_close(network(ruled("ladi.refine:in.x", (1, 24, 72, 56))), golden["y"], **LOOSE)
    assert_close(network(ruled("ladi.refine:in.x64", (2, 24, 64, 48))), golden["y64"], **LOOSE)
