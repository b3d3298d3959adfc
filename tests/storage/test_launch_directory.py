"""A sweep's folder: its launches, and what a resumed one may change."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from gsae_ray.config import trial
from gsae_ray.config.site import Site
from gsae_ray.config.sweep import Sweep
from gsae_ray.config.trial import TrialSpec
from gsae_ray.errors import UserError
from gsae_ray.storage import launch_directory
from gsae_ray.storage.launch_directory import LAUNCH, OPERATIONAL, begin_launch, finish_launch
from gsae_ray.version import REVISION, WHY


def sweep_of(**changes: Any) -> Sweep:
    """A small sweep with other values at dotted keys (`__` for a dot)."""
    description: dict[str, Any] = {
        "name": "small",
        "model": {"name": "builtin"},
        "dataset": {"name": "builtin"},
        "sites": {"layers": [1], "points": ["resid_post"]},
        "saes": [{"architecture": "gated", "widths": [16], "l1_coefficient": 1.0}],
        "training": {"tokens": 1024, "batch_size": 64, "lr": 1e-3},
    }
    for key, value in changes.items():
        *sections, name = key.split("__")
        at = description
        for section in sections:
            at[section] = {**at.get(section, {})}
            at = at[section]
        at[name] = value
    return Sweep.model_validate(description)


def versions_of(folder: Path, launch_id: str) -> list[dict[str, str]]:
    return json.loads((folder / "launches" / launch_id / "versions.json").read_text())


def test_a_launch_is_written_down_with_its_sweep_and_versions(tmp_path: Path) -> None:
    launch_id, notices = begin_launch(tmp_path, sweep_of(), [], resume=False)
    folder = tmp_path / "launches" / launch_id
    assert notices == []
    assert Sweep.model_validate(json.loads((folder / "launch.json").read_text())["sweep"]) == sweep_of()
    assert Sweep.model_validate(yaml.safe_load((folder / "sweep.yaml").read_text())) == sweep_of()
    assert versions_of(tmp_path, launch_id) == [launch_directory.versions()]


def test_a_resumed_launch_keeps_its_id_and_a_plain_run_gets_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = begin_launch(tmp_path, sweep_of(), [], resume=False)
    assert begin_launch(tmp_path, sweep_of(), [], resume=True) == (first, [])
    monkeypatch.setattr("time.strftime", lambda *_: "99990101-000000")
    second, _ = begin_launch(tmp_path, sweep_of(), [], resume=False)
    assert second != first
    assert begin_launch(tmp_path, sweep_of(), [], resume=True)[0] == second, "the newest one"


def test_a_launch_that_was_only_half_written_down_is_not_resumed(tmp_path: Path) -> None:
    first, _ = begin_launch(tmp_path, sweep_of(), [], resume=False)
    half = tmp_path / "launches" / "99990101-000000-beef"
    half.mkdir()
    (half / "versions.json").write_text("[]")
    assert begin_launch(tmp_path, sweep_of(), [], resume=True)[0] == first


def test_resuming_without_a_launch_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--resume: no launch of 'small' in .*; run it without --resume"):
        begin_launch(tmp_path / "small", sweep_of(), [], resume=True)


def test_resuming_refuses_changed_keys_by_name_and_adds_no_session(tmp_path: Path) -> None:
    launch_id, _ = begin_launch(tmp_path, sweep_of(), [], resume=False)
    changed = sweep_of(training__lr=2e-3, dataset__seed=5, producers__count=3)
    with pytest.raises(UserError, match=rf"since launch {launch_id}: dataset\.seed, training\.lr; change it back"):
        begin_launch(tmp_path, changed, [], resume=True)
    assert len(versions_of(tmp_path, launch_id)) == 1


def test_what_was_computed_wrongly_is_not_reused_and_the_launch_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trials() -> list[TrialSpec]:
        return sweep_of().expand({Site("blocks.1.hook_resid_post"): 8}, {"tokens": "a corpus"})

    with monkeypatch.context() as before:
        for module in (launch_directory, trial):
            before.setattr(module, "REVISION", REVISION - 1)
        old = trials()
        begin_launch(tmp_path, sweep_of(), old, resume=False)
    assert {t.name for t in trials()} == {t.name for t in old}
    assert {t.identity for t in trials()}.isdisjoint(t.identity for t in old)
    with pytest.raises(UserError, match=f"--resume: .*{re.escape(WHY)}; run without --resume$"):
        begin_launch(tmp_path, sweep_of(), trials(), resume=True)
    monkeypatch.setattr("time.strftime", lambda *_: "99990101-000000")
    assert begin_launch(tmp_path, sweep_of(), trials(), resume=False)[1] == [f"every trial is trained anew: {WHY}"]
    assert begin_launch(tmp_path, sweep_of(), trials(), resume=False)[1] == [], "said once"


def test_resuming_refuses_trials_whose_model_or_data_have_changed_under_the_same_sweep_file(tmp_path: Path) -> None:
    def trials(tokens: str) -> list[TrialSpec]:
        site = Site("blocks.1.hook_resid_post")
        return sweep_of().expand({site: 8}, {"model": "m", "tokens": tokens})

    launch_id, _ = begin_launch(tmp_path, sweep_of(), trials("a corpus"), resume=False)
    with pytest.raises(UserError, match=rf"the data or a parent SAE has changed since launch {launch_id}.* \(1 of 1"):
        begin_launch(tmp_path, sweep_of(), trials("the corpus, edited"), resume=True)
    assert begin_launch(tmp_path, sweep_of(), trials("a corpus"), resume=True)[0] == launch_id


VALUES = {
    "producers.count": 3,
    "producers.budget_gib": 1.5,
    "producers.chunk_mib": 7,
    "producers.timeout_s": 99.0,
    "trials.max_concurrent": 2,
    "trials.hang_timeout_s": 77.0,
    "trials.room_timeout_s": 66.0,
    "references": [{"source": "theirs", "site": "blocks.1.hook_resid_post"}],
    "tracking.registry": False,
    "evaluation.features": {"contexts": 4},
    "evaluation.features.saes": "all",
    "evaluation.features.contexts": 6,
    "evaluation.features.window": 16,
    "evaluation.features.tokens": 1000,
    "evaluation.features.memory_gib": 4,
}
LONELY = {key for key in VALUES if key.startswith("evaluation.features.")}
"""Keys of a mapping that is not there unless it is asked for."""


@pytest.mark.parametrize("key", sorted(OPERATIONAL))
def test_resuming_allows_what_changes_no_result(tmp_path: Path, key: str) -> None:
    before = sweep_of(evaluation__features={}) if key in LONELY else sweep_of()
    launch_id, _ = begin_launch(tmp_path, before, [], resume=False)
    changed = sweep_of(**{key.replace(".", "__"): VALUES[key]})
    assert changed != before
    assert begin_launch(tmp_path, changed, [], resume=True) == (launch_id, [])


def test_a_launch_from_before_the_registry_goes_on(tmp_path: Path) -> None:
    launch_id, _ = begin_launch(tmp_path, sweep_of(), [], resume=False)
    file = tmp_path / "launches" / launch_id / "launch.json"
    found = LAUNCH.read(file)
    assert found is not None
    del found["sweep"]["tracking"]
    LAUNCH.write(file, found)
    assert begin_launch(tmp_path, sweep_of(), [], resume=True) == (launch_id, [])


# ---- the same command again -----------------------------------------------------------------------------------------


def again(folder: Path, sweep: Sweep | None = None) -> tuple[str, list[str]]:
    return begin_launch(folder, sweep or sweep_of(), [], resume="auto")


def test_auto_begins_a_launch_goes_on_until_it_is_finished_and_begins_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, notices = again(tmp_path)
    assert notices == []
    assert again(tmp_path) == (first, [])
    finish_launch(tmp_path, first, session=1)
    monkeypatch.setattr("time.strftime", lambda *_: "99990101-000000")
    second, notices = again(tmp_path)
    assert second != first and notices == []
    assert again(tmp_path) == (second, [])


def test_auto_goes_on_with_the_newest_launch_that_is_not_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = begin_launch(tmp_path, sweep_of(), [], resume=False)
    monkeypatch.setattr("time.strftime", lambda *_: "99990101-000000")
    second, _ = begin_launch(tmp_path, sweep_of(), [], resume=False)
    finish_launch(tmp_path, second, session=2)
    assert again(tmp_path)[0] == first
    assert begin_launch(tmp_path, sweep_of(), [], resume=True)[0] == second, "whether it is finished or not"
    assert again(tmp_path)[0] == second, "it has been taken up again"


def test_auto_begins_another_launch_where_the_sweep_has_changed_and_names_the_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = again(tmp_path)
    monkeypatch.setattr("time.strftime", lambda *_: "99990101-000000")
    changed = sweep_of(training__lr=2e-3, dataset__seed=5, producers__count=3)
    second, (notice,) = again(tmp_path, changed)
    assert second != first
    assert f"changed since launch {first}: dataset.seed, training.lr; this is another launch" in notice
    assert again(tmp_path, sweep_of(training__lr=2e-3, dataset__seed=5)) == (second, []), "how many is of no account"


def test_auto_begins_another_launch_where_the_newest_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = again(tmp_path)
    file = tmp_path / "launches" / first / "launch.json"
    file.write_text("{}")
    with pytest.raises(UserError, match=f"^{file}: this file is damaged"):
        begin_launch(tmp_path, sweep_of(), [], resume=True)
    monkeypatch.setattr("time.strftime", lambda *_: "99990101-000000")
    second, (notice,) = again(tmp_path)
    assert second != first and notice.startswith(f"{file}: this file is damaged")


def test_every_session_leaves_its_versions_and_says_how_it_differs_from_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = launch_directory.versions()
    launch_id, _ = begin_launch(tmp_path, sweep_of(), [], resume=False)
    there = here | {"torch": "0.4", "machine": "a Cray"}
    monkeypatch.setattr(launch_directory, "versions", lambda: there)
    _, notices = begin_launch(tmp_path, sweep_of(), [], resume=True)
    (notice,) = notices
    assert f"torch: {here['torch']} before, 0.4 now" in notice
    assert f"machine: {here['machine']} before, a Cray now" in notice
    assert "numpy" not in notice
    assert "\n" not in notice
    assert begin_launch(tmp_path, sweep_of(), [], resume=True) == (launch_id, []), "the same as the session before"
    assert versions_of(tmp_path, launch_id) == [here, there, there]
