"""Training that goes wrong numerically is an error that says where and why, and is no result."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from trainers import BATCH, BLOCKS, ROWS, SITE, N, make, run, sparse_rows

from gsae_ray.errors import NumericError


def test_a_loss_that_is_not_finite_is_a_numeric_error() -> None:
    rows_RD = sparse_rows().clone()
    rows_RD[2500, 3] = 1e30
    trainer = make(rows_RD=rows_RD, max_norm=None)
    with pytest.raises(NumericError, match=r"not finite at step 40 \(token 2560\); last finite: step 39: loss "):
        run(trainer)


def test_an_lr_far_too_high_is_a_numeric_error() -> None:
    with pytest.raises(NumericError):
        run(make(lr=1e30))


def test_activations_that_are_all_zero_are_a_numeric_error() -> None:
    with pytest.raises(NumericError, match=f"all activations at {SITE} are zero"):
        make(rows_RD=torch.zeros(ROWS, N))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_activations_that_are_not_finite_from_the_start_are_named_as_such(bad: float) -> None:
    rows_RD = sparse_rows().clone()
    rows_RD[0, 0] = bad
    message = f"activations at {SITE} are not finite in the first block; .*model.dtype"
    with pytest.raises(NumericError, match=message), np.errstate(invalid="ignore"):
        make(rows_RD=rows_RD)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_activations_that_are_not_finite_later_are_named_with_their_block_and_not_blamed_on_lr(
    bad: float, dtype: str
) -> None:
    row = BLOCKS[0] + 400
    trainer = make(dtype=dtype)
    trainer.stream.source.array = trainer.stream.source.array.copy()  # type: ignore[attr-defined]
    trainer.stream.source.array[row, 3] = bad  # type: ignore[attr-defined]
    with pytest.raises(NumericError) as caught:
        run(trainer)
    message = str(caught.value)
    assert f"activations at {SITE} are not finite in row {row:,} of the stream (block 1)" in message
    assert "lr" not in message.split() and f"model.dtype: {dtype}" in message
    assert ("bfloat16" in message) == (dtype == "float16")


def test_a_loss_that_explodes_but_stays_finite_is_a_numeric_error() -> None:
    rows_RD = sparse_rows().clone()
    rows_RD[BLOCKS[0] :] *= 1e4  # rows of 1e8 times the loss
    trainer = make(rows_RD=rows_RD, max_norm=None)
    with pytest.raises(NumericError, match=r"exploded: between steps 31 and 40 .*last: step 40: loss .*lower lr"):
        run(trainer)


def test_the_last_finite_losses_may_be_those_of_the_interval_before() -> None:
    rows_RD = sparse_rows().clone()
    rows_RD[40 * BATCH, 0] = 1e30  # the first step of an interval
    with pytest.raises(NumericError, match=r"not finite at step 41 \(token 2624\); last finite: step 40: loss [\d.]+,"):
        run(make(rows_RD=rows_RD, max_norm=None))


def test_an_sae_that_the_last_step_made_not_finite_is_a_failure_and_no_result() -> None:
    trainer = make("gated")
    run(trainer)
    with torch.no_grad():
        trainer.sae.b_dec[0] = math.inf
    with pytest.raises(NumericError, match="b_dec is not finite after step 78"):
        trainer.finished_sae({})
