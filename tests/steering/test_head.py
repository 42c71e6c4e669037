from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steering.head import RefusalHead
from tests.reference import head as reference


def random_head(d: int, rank: int | None = None, dtype: torch.dtype = torch.float32) -> RefusalHead:
    head = RefusalHead(d, rank).to(dtype)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=d**-0.5)
    return head.requires_grad_(requires_grad=False)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.integers(1, 24), st.lists(st.floats(-3, 3), min_size=1, max_size=9), st.integers(0, 1000))
def test_the_head_is_the_output_matrix_built_out(batch: int, d: int, values: list[float], seed: int) -> None:
    torch.manual_seed(seed)
    head = random_head(d, dtype=torch.float64)
    embedding = torch.randn(3 * d, d, dtype=torch.float64)
    hidden = torch.randn(batch, d, dtype=torch.float64)
    eps = torch.tensor([values[place % len(values)] for place in range(batch)], dtype=torch.float64)
    fast = head.steer(hidden, eps) @ embedding.T
    # h (E + eps E W')^T = h E^T + eps h W'^T E^T, so the paper's W' is our W
    slow = reference.steered_logits(hidden, embedding, head.weight, eps)
    assert (fast - slow).abs().max() < 1e-10


@pytest.mark.parametrize("rank", [None, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_with_eps_0_come_back_bit_for_bit(rank: int | None, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    head = random_head(32, rank, dtype)
    hidden = torch.randn(6, 32).to(dtype)
    hidden[0, :3] = torch.tensor([-0.0, 1e-30, 6e4])
    steered = head.steer(hidden, torch.tensor([0.0, 2.0, 0.0, 0.0, 1.0, 0.0]))
    for row in (0, 2, 3, 5):
        assert torch.equal(steered[row].view(torch.uint8), hidden[row].view(torch.uint8))
    for row in (1, 4):
        assert not torch.equal(steered[row], hidden[row])


@pytest.mark.parametrize("rank", [None, 4])
def test_a_backbone_in_bf16_is_steered_by_a_head_in_fp32(rank: int | None) -> None:
    torch.manual_seed(0)
    head = random_head(32, rank)
    hidden, eps = torch.randn(6, 32).bfloat16(), torch.tensor([0.0, 2.0, 0.5, 0.0, 1.0, 0.25]).bfloat16()
    steered, exact = head.steer(hidden, eps), head.steer(hidden.float(), eps.float())
    assert steered.dtype is torch.bfloat16
    assert torch.equal(steered[[0, 3]], hidden[[0, 3]])
    assert (steered.float() - exact).abs().max() < 0.02 * exact.abs().max()


def test_a_flagged_row_with_values_that_are_no_numbers_changes_no_other() -> None:
    head = random_head(8)
    hidden = torch.randn(3, 8)
    hidden[1] = torch.nan
    steered = head.steer(hidden, torch.tensor([0.0, 1.0, 0.0]))
    assert torch.equal(steered[[0, 2]], hidden[[0, 2]])


def test_a_new_head_changes_nothing() -> None:
    hidden = torch.randn(4, 16)
    for rank in (None, 3):
        assert torch.equal(RefusalHead(16, rank).steer(hidden, torch.ones(4)), hidden)


def test_a_low_rank_head_is_the_full_one_of_its_product() -> None:
    torch.manual_seed(1)
    low = random_head(12, 3, torch.float64)
    full = RefusalHead(12).double()
    with torch.no_grad():
        full.weight.copy_(low.up @ low.down)
    hidden, eps = torch.randn(5, 12, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    assert (low.steer(hidden, eps) - full.steer(hidden, eps)).abs().max() < 1e-12
