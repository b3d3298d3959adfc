"""`training.snapshots_at`: which trials have which snapshots, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from sweep_texts import ONE_TRIAL, error_of, expand, load_text
from trials import expand as trials_of

from gsae_ray.config.trial import TrialSpec


def _and_another(key: str) -> str:
    """The sweep file with an entry more, which has a key of `training`."""
    entry = f"  - {{architecture: standard, widths: [16], l1_coefficient: 1, {key}}}"
    return ONE_TRIAL.replace("training:", f"{entry}\ntraining:")


def test_a_snapshot_is_rounded_down_to_steps_as_tokens_are_and_named_by_its_tokens() -> None:
    (trial,) = trials_of(tokens=1000, snapshots_at=[64, 200, 600.0])
    (whole,) = trials_of(tokens=200)
    assert trial.training.snapshots_at == (64, 200, 600)
    assert trial.training.snapshot_steps == {1: 64, 3: 200, 9: 600}
    assert whole.training.steps == 3, "that of the same name"
    assert TrialSpec.from_json(trial.to_json()) == trial


def test_a_trial_has_those_before_its_last_step(tmp_path: Path) -> None:
    (base,) = expand(load_text(tmp_path, ONE_TRIAL))
    tokens, batch = base.training.tokens, base.training.batch_size
    given = f"training.snapshots_at=[{batch}, {tokens - batch}, {tokens}, {2 * tokens}]"
    short, long = expand(load_text(tmp_path, _and_another(f"tokens: {3 * tokens}"), given))
    assert short.training.snapshots_at == (batch, tokens - batch)
    assert long.training.snapshots_at == (batch, tokens - batch, tokens, 2 * tokens)


def test_they_change_neither_name_nor_identity(tmp_path: Path) -> None:
    (base,) = expand(load_text(tmp_path, ONE_TRIAL))
    for key in ("training", "saes.0"):
        (trial,) = expand(load_text(tmp_path, ONE_TRIAL, f"{key}.snapshots_at=[5_000]"))
        assert trial.training.snapshots_at == (5_000,)
        assert (trial.name, trial.identity) == (base.name, base.identity)


def test_an_entry_may_have_its_own_or_none(tmp_path: Path) -> None:
    text = _and_another("snapshots_at: []")
    first, second = expand(load_text(tmp_path, text, "training.snapshots_at=[5_000]"))
    assert (first.training.snapshots_at, second.training.snapshots_at) == ((5_000,), ())


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.snapshots_at=5_000", ["training.snapshots_at", "5000", "a list"]),
        ("training.snapshots_at=[0]", ["training.snapshots_at.0", "0", "greater than 0"]),
        ("training.snapshots_at=[1.5]", ["training.snapshots_at.0", "1.5", "integer"]),
        ("training.snapshots_at=[5_000, 4_000]", ["training", "snapshots_at: [5000, 4000]", "they must rise"]),
        ("training.snapshots_at=[5_000, 5_000]", ["training", "snapshots_at", "they must rise"]),
        ("training.snapshots_at=[3]", ["training", "snapshots_at: 3 is less than one batch of"]),
        ("training.snapshots_at=[5_000, 5_001]", ["snapshots_at: 5000 and 5001 are the same step"]),
        ("training.snapshots_at=[1e9]", ["training.snapshots_at: 1000000000 is not before the end of any trial"]),
        ("saes.0.snapshots_at=[1e9]", ["saes.0.snapshots_at: 1000000000 is not before the end of any trial"]),
        ("saes.0.snapshots_at=[3]", ["saes.0", "snapshots_at: 3 is less than one batch of"]),
        ("saes.0.snapshot_at=[3]", ["saes.0.snapshot_at", "unknown key", "did you mean 'snapshots_at'?"]),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(tmp_path: Path, override: str, said: list[str]) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(ONE_TRIAL)
    line = error_of(file, override)
    assert all(part in line for part in said), line


def test_what_no_entry_reads_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"training.snapshots_at: nothing reads it"):
        load_text(tmp_path, ONE_TRIAL, "training.snapshots_at=[5_000]", "saes.0.snapshots_at=[]")
