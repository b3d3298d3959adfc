"""The frontier of SAEs that were evaluated on rows alone: explained variance in the place of loss recovered."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from trials import FINGERPRINT, begin, expand, finish, random_sae

from gsae_ray.cli.frontier_table import print_frontier
from gsae_ray.errors import UserError
from gsae_ray.evaluation.metrics import Evaluation
from gsae_ray.results.best import choose
from gsae_ray.results.columns import columns
from gsae_ray.results.comparison import l0_ratio
from gsae_ray.results.frontier import frontier
from gsae_ray.results.intervals import interval
from gsae_ray.results.intervals import l0_ratio as l0_ratio_of
from gsae_ray.results.plots import plot_frontier
from gsae_ray.storage.launch_directory import EVALUATED, LAUNCH

TRIALS = expand(l1_coefficient=[1.0, 2.0, 4.0])
SUMS = {"rows": 10.0, "x_sq": 50.0, "x_hat_sq": 30.0, "x_hat_x": 30.0, "centred_sq": 40.0}
FEATURES = {"mcc": 0.9, "feature_precision": 0.8, "feature_recall": 0.7, "feature_f1": 0.75, "splitting": 1.5}


def an_evaluation(l0: float, fvu: float, absorbed: float | None = None, known: bool = True) -> Evaluation:
    """Of two groups of ten rows; `absorbed` of ten rows with a child in each group, None: no pair was found."""
    sums = {**SUMS, "active": 10 * l0, "error_sq": 40 * fvu}
    if known:
        sums |= {"true_active": 25.0, "with_child": 0.0 if absorbed is None else 10.0, "absorbed": absorbed or 0.0}
    return Evaluation.of(
        {name: [value] * 2 for name, value in sums.items()}, 0.5, dense_heldout=0.25, **(FEATURES if known else {})
    )


def launch(root: Path, evaluations: list[Evaluation]) -> Path:
    folder = root / "swept/launches/20260101-000000-abcd"
    folder.mkdir(parents=True)
    identities = {trial.name: trial.identity for trial in TRIALS}
    LAUNCH.write(folder / "launch.json", {"sweep": {"name": "swept"}, "trials": identities})
    EVALUATED.write(folder / "evaluation.json", {"fingerprint": FINGERPRINT, "encoders": [None]})
    for trial, evaluation in zip(TRIALS, evaluations, strict=True):
        directory = begin(root / "swept/trials", trial)
        directory.finish(random_sae(trial))
        directory.save_evaluation(FINGERPRINT, trial.training.tokens, evaluation)
    return root


@pytest.fixture
def rows(tmp_path: Path) -> pd.DataFrame:
    evaluations = [an_evaluation(20, 0.1, 1.0), an_evaluation(15, 0.4, 0.0), an_evaluation(10, 0.3, 5.0)]
    return frontier("swept", storage=launch(tmp_path, evaluations))


def test_the_frontier_is_that_of_explained_variance(rows: pd.DataFrame) -> None:
    assert rows["l0"].tolist() == [10, 15, 20]
    assert rows["fvu"].tolist() == pytest.approx([0.3, 0.4, 0.1])
    assert rows["on_frontier"].tolist() == [True, False, True]
    assert rows["loss_recovered"].isna().all()
    assert rows.attrs["notes"] == []


def test_metrics_of_true_features_are_columns_where_some_sae_has_them(rows: pd.DataFrame, tmp_path: Path) -> None:
    more = ["mcc", "feature_precision", "feature_recall", "feature_f1", "absorption", "splitting", "true_l0"]
    more += ["absorption_low", "absorption_high", "true_l0_low", "true_l0_high"]
    assert [name for name in rows if name not in columns()] == more
    assert rows["absorption_high"].tolist() == pytest.approx([0.5, 0, 0.1])  # its two groups are alike
    assert rows["absorption"].tolist() == [0.5, 0, 0.1] and (rows["true_l0"] == 2.5).all()
    others = frontier("swept", storage=launch(tmp_path / "others", [an_evaluation(10, 0.1, known=False)] * 3))
    assert list(others) == columns() and others.attrs["notes"] == []


def test_an_sae_in_which_nothing_is_found_of_the_hierarchy_is_named(tmp_path: Path) -> None:
    evaluations = [an_evaluation(20, 0.1, 1.0), an_evaluation(15, 0.4, None), an_evaluation(10, 0.3, 5.0)]
    notes = frontier("swept", storage=launch(tmp_path, evaluations)).attrs["notes"]
    assert notes == [f"{TRIALS[1].name} has no finite absorption"]


def test_saes_of_a_language_model_have_no_such_columns(tmp_path: Path) -> None:
    folder = launch(tmp_path, [an_evaluation(10, 0.1)] * 3)
    for trial in TRIALS:
        finish(begin(folder / "swept/trials", trial), trial)
    rows = frontier("swept", storage=folder)
    assert list(rows) == columns() and (rows["loss_recovered"] == 0.9).all()


def test_the_best_is_the_one_with_the_highest_explained_variance(rows: pd.DataFrame) -> None:
    assert choose(rows, max_l0=16)["fvu"] == pytest.approx(0.3)
    assert choose(rows, max_l0=100)["fvu"] == pytest.approx(0.1)
    with pytest.raises(UserError, match=r"^min_loss_recovered: .* no loss recovered; give max_l0 \(e.g. 15\)"):
        choose(rows, min_loss_recovered=0.9)


def test_the_table_has_what_there_is(rows: pd.DataFrame) -> None:
    def shown(width: int) -> str:
        out = io.StringIO()
        print_frontier(rows, Console(file=out, width=width))
        return " ".join(out.getvalue().split())

    wide = shown(200)
    assert "loss recovered" not in wide
    assert all(head in wide for head in ("fvu", "mcc", "feature precision", "absorption", "splitting", "true l0"))
    assert "fvu" in shown(40) and "mcc" in shown(40) and "no room for true l0" in shown(40)


def test_the_picture_says_what_it_shows(rows: pd.DataFrame) -> None:
    (axis,) = plot_frontier(rows).axes
    assert axis.get_ylabel() == "explained variance"
    points = np.concatenate([np.asarray(line.get_xydata()) for line in axis.lines])
    np.testing.assert_allclose(sorted(points.tolist()), [(10, 0.7), (15, 0.6), (20, 0.9)])


def test_curves_are_compared_at_equal_explained_variance(rows: pd.DataFrame) -> None:
    twice = rows.assign(l0=2 * rows["l0"])
    assert l0_ratio(twice, rows) == pytest.approx(2)
    saes = [an_evaluation(l0, fvu).sequences for l0, fvu in ((10, 0.3), (20, 0.1), (30, 0.3), (60, 0.1))]
    assert interval(l0_ratio_of([2, 3], [0, 1]), [saes]).value == pytest.approx(3)
    assert np.isfinite(interval(l0_ratio_of([2, 3], [0, 1]), [saes]).low)
