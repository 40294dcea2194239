"""Rounding with error feedback against a plain version that solves every least-squares problem anew."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from emendo.errors import InputError, NumericalError
from emendo.solve.grid_rounding import Grid, round_nearest, round_with_feedback, rounding_metric

ROWS, WIDTH = 5, 150  # more than one block of columns


def problem(seed: int) -> tuple[Tensor, Grid, Tensor]:
    made = torch.Generator().manual_seed(seed)
    draw = lambda *size: torch.randn(*size, generator=made, dtype=torch.float64)  # noqa: E731
    scale = (0.2 + draw(ROWS, WIDTH // 30).abs()).repeat_interleave(30, dim=1)
    offset = draw(ROWS, WIDTH // 30).repeat_interleave(30, dim=1)
    keys = draw(4 * WIDTH, 12) @ draw(12, WIDTH) + 0.3 * draw(4 * WIDTH, WIDTH)
    levels = torch.tensor([-1.7, -0.6, 0.0, 0.5, 1.1, 2.0], dtype=torch.float64)
    return draw(ROWS, WIDTH), Grid(scale, offset, levels), keys.T @ keys / len(keys)


def plain(target: Tensor, grid: Grid, metric: Tensor, damping: float) -> Tensor:
    """One column at a time; the free columns then minimise the whole error, by a solve of their own."""
    full = metric + damping * metric.diagonal().mean() * torch.eye(WIDTH, dtype=torch.float64)
    index = torch.empty(target.shape, dtype=torch.long)
    for row in range(ROWS):
        wish, error = target[row].clone(), torch.zeros(WIDTH, dtype=torch.float64)
        for j in range(WIDTH):
            values = grid.scale[row, j] * grid.levels + grid.offset[row, j]
            index[row, j] = int((values - wish[j]).abs().argmin())
            error[j] = values[index[row, j]] - target[row, j]
            if j + 1 < WIDTH:  # minimise error H errorᵀ over what is free
                free = torch.linalg.solve(full[j + 1 :, j + 1 :], -full[j + 1 :, : j + 1] @ error[: j + 1])
                wish[j + 1 :] = target[row, j + 1 :] + free
    return index


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_plain_version(seed: int) -> None:
    target, grid, metric = problem(seed)
    assert torch.equal(round_with_feedback(target, grid, metric, damping=0.01), plain(target, grid, metric, 0.01))


@pytest.mark.parametrize("seed", range(3))
def test_keys_feel_less_of_it_than_of_nearest_rounding(seed: int) -> None:
    target, grid, metric = problem(seed)

    def cost(index: Tensor) -> float:
        error = grid.values(index, slice(None)) - target
        return float((error @ metric * error).sum())

    assert cost(round_with_feedback(target, grid, metric)) < 0.5 * cost(round_nearest(target, grid))


def test_nearest_is_the_nearest_of_all_levels_with_scales_of_either_sign() -> None:
    target, grid, _ = problem(7)
    grid = Grid(torch.where(target > 0, grid.scale, -grid.scale), grid.offset, grid.levels)
    every = grid.scale[..., None] * grid.levels + grid.offset[..., None]
    found = grid.values(round_nearest(target, grid), slice(None))
    torch.testing.assert_close((found - target).abs(), (every - target[..., None]).abs().amin(dim=-1))


def test_a_matrix_on_the_grid_stays_what_it_is_and_a_zero_scale_has_one_value() -> None:
    target, grid, metric = problem(8)
    on_it = grid.values(round_nearest(target, grid), slice(None))
    assert torch.equal(grid.values(round_with_feedback(on_it, grid, metric), slice(None)), on_it)
    flat = Grid(torch.zeros_like(grid.scale), grid.offset, grid.levels)
    assert torch.equal(flat.values(round_with_feedback(target, flat, metric), slice(None)), grid.offset)


def test_keys_weigh_a_stated_multiple_of_what_is_preserved() -> None:
    _, _, metric = problem(9)
    keys = torch.randn(3, WIDTH, dtype=torch.float64)
    added = rounding_metric(metric, keys, weight=100.0) - metric
    torch.testing.assert_close(added.diagonal().sum(), 100 * metric.diagonal().sum())
    assert torch.linalg.matrix_rank(added) == 3


def test_what_does_not_fit_is_refused() -> None:
    target, grid, metric = problem(10)
    with pytest.raises(InputError, match="width 150"):
        round_with_feedback(target, grid, metric[:10, :10])
    with pytest.raises(InputError, match="expected the same"):
        rounding_metric(metric, torch.randn(2, 3))
    with pytest.raises(NumericalError, match="positive definite"):
        round_with_feedback(target, grid, -metric)
