from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from omfa.baselines.ladi_vton.warping import (
    TPSWarping,
    control_points,
    correlation,
    regularisers,
    resize,
    sample,
)
from tests.baselines.ladi_vton.golden import CLOSE, LOOSE, fill, keys, read, ruled, shapes


def test_the_official_weights_have_a_place() -> None:
    with torch.device("meta"):
        network = TPSWarping()
    assert shapes(network) == keys("warping")["tps"]
    assert sum(p.numel() for p in network.parameters()) == 19_056_626


@pytest.fixture(scope="module")
def network() -> TPSWarping:
    return fill(TPSWarping(), "ladi.tps", gain=1.5)


@pytest.fixture(scope="module")
def pictures() -> list[torch.Tensor]:
    return [ruled("ladi.tps:in.cloth", (2, 3, 256, 192)), ruled("ladi.tps:in.agnostic", (2, 21, 256, 192))]


@torch.no_grad()
def test_correlation_and_spline_as_the_original(network: TPSWarping, pictures: list[torch.Tensor]) -> None:
    golden = read("tps")
    cloth, agnostic = pictures
    matched = correlation(network.extractionA(cloth), network.extractionB(agnostic))
    assert_close(matched[:, ::8], golden["correlation_stride8"], **CLOSE)
    assert_close(network.gridGen.inverse_kernel, golden["gridGen.inverse_kernel"], **LOOSE)
    rows = network.gridGen.target_coordinate_repr[::97]
    assert_close(rows, golden["gridGen.target_coordinate_repr_stride97"], **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("case", ["a", "b"])
def test_points_grid_and_regularisers_as_the_original(
    network: TPSWarping, pictures: list[torch.Tensor], case: str
) -> None:
    golden, network = read("tps"), fill(network, "ladi.tps", gain=1.5)
    if case == "b":  # nearly at rest, so that the floors act
        network.loc_net["regression"].linear.bias.copy_(golden["linear_bias_init"])
        network.loc_net["regression"].linear.weight.mul_(0.05)
    grid, theta = network(*pictures)
    assert_close(theta, golden[f"{case}.theta"], **CLOSE)
    assert_close(grid[:, ::4, ::4], golden[f"{case}.grid_stride4"], **LOOSE)
    assert_close(grid[:, [0, 100, 255]], golden[f"{case}.grid_rows_0_255_row100"], **LOOSE)
    found = regularisers(theta)
    for name, value in found._asdict().items():
        assert_close(value[None], golden[f"{case}.reg.{name}"], **CLOSE)
    assert_close(found.total()[None], golden[f"{case}.reg_total"], **CLOSE)


@torch.no_grad()
def test_untrained_the_cloth_stays_where_it_is() -> None:
    """The points begin on the regular grid, and a spline through points that did not move moves nothing."""
    network = TPSWarping((128, 96), width=8).eval()
    cloth = torch.rand(2, 3, 128, 96)
    grid, theta = network(cloth, torch.rand(2, 21, 128, 96))
    assert_close(theta, control_points().expand(2, -1, -1), atol=1e-6, rtol=0)
    corners = grid[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert_close(corners[0], torch.tensor([[-1.0, -1], [1, -1], [-1, 1], [1, 1]]), atol=1e-4, rtol=0)


@torch.no_grad()
def test_an_affine_move_of_the_points_is_an_affine_grid() -> None:
    """A thin plate bends only where it must."""
    network = TPSWarping((64, 64), width=4)
    matrix, shift = torch.tensor([[0.8, 0.1], [-0.2, 0.9]]), torch.tensor([0.05, -0.1])
    grid = network.gridGen((control_points() @ matrix.T + shift)[None])[0]
    line = torch.linspace(-1, 1, 64)
    y, x = torch.meshgrid(line, line, indexing="ij")
    assert_close(grid, torch.stack([x, y], -1) @ matrix.T + shift, atol=1e-4, rtol=0)


def test_an_even_grid_costs_the_floors_alone() -> None:
    values = regularisers(control_points()[None])
    assert [round(float(v), 6) for v in values] == [0.08] * 4 + [0.02] * 2


@torch.no_grad()
def test_warp_path_as_the_original() -> None:
    golden = read("warp_path")
    assert_close(resize(golden["in.cloth"], (48, 36)), golden["out.cloth_half_antialias"], **CLOSE)
    high = resize(golden["in.grid_low"].movedim(3, 1), (96, 72)).movedim(1, 3)
    assert_close(high, golden["out.grid_high"], **CLOSE)
    assert_close(sample(golden["in.cloth"], golden["in.grid_low"]), golden["out.warped"], **CLOSE)


@pytest.mark.parametrize("size", [(48, 64), (250, 192)])
def test_a_size_it_can_not_halve_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="multiples of 16"):
        TPSWarping(size)
