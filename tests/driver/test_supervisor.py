"""The driver's watch over a launch, with a store and a time of the test's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from supervised import HANG_TIMEOUT_S, SPECS, Watch
from trials import random_sae

from gsae_ray.activations.production_log import PRODUCTION_LOG, ProductionLog
from gsae_ray.activations.store import Wait
from gsae_ray.driver.store_control import STORE_TIMEOUT_S, StoreDied, StoreSilent
from gsae_ray.driver.supervisor import LONG_WAIT_S, ROUNDS_BEFORE_KILL
from gsae_ray.driver.trial_deaths import DEATHS_WITHOUT_CHECKPOINT
from gsae_ray.errors import ReplacedError, SweepStoppedError

ONE, TWO = (spec.name for spec in SPECS)


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    return Watch(tmp_path)


def test_a_store_that_comes_up_gets_the_trials_that_are_left_and_the_record(watch: Watch) -> None:
    watch.begin(ONE).finish(random_sae(SPECS[0]))
    watch.begin(TWO)
    watch.begin(TWO)
    watch.round()
    ((readers, record),) = watch.store.begun
    assert {name: reader.attempt for name, reader in readers.items()} == {TWO: 2}
    assert record == ProductionLog()


def test_an_attempt_of_an_earlier_session_is_none_of_this_one(watch: Watch) -> None:
    watch.begin(ONE, session=0)
    watch.round()
    ((readers, _),) = watch.store.begun
    assert {name: reader.attempt for name, reader in readers.items()} == {ONE: 0, TWO: 0}


def test_a_store_that_died_is_told_of_once_and_begins_with_the_newest_record(watch: Watch) -> None:
    watch.round()
    watch.store.record = ProductionLog(produced={0: 1})
    watch.round()
    watch.store.error = StoreDied()
    for _ in range(3):
        watch.round()
    watch.store.error, watch.store.waits_for_begin = None, True
    watch.round()
    assert watch.shown == ["the activation store's process died; it is started again, and blocks are made again"]
    assert [record.produced for _, record in watch.store.begun] == [{}, {0: 1}]
    watch.store.error = StoreDied()
    watch.round()
    assert len(watch.shown) == 2, "another death"


def test_a_store_that_gives_no_answer_is_killed(watch: Watch) -> None:
    watch.store.error = StoreSilent()
    watch.round()
    assert watch.store.restarts == 1
    assert watch.shown == [f"the activation store gave no answer for {STORE_TIMEOUT_S:g} s; its process is killed"]


def test_the_record_is_kept_and_gone_on_with(watch: Watch, tmp_path: Path) -> None:
    watch.round()
    watch.store.record = ProductionLog(produced={0: 1, 1: 2})
    watch.round()
    assert PRODUCTION_LOG.read_whole(tmp_path / "record.json") == watch.store.record
    (tmp_path / "again").mkdir()
    (tmp_path / "record.json").rename(tmp_path / "again/record.json")
    again = Watch(tmp_path / "again")
    again.round()
    ((_, record),) = again.store.begun
    assert record == watch.store.record


def test_another_driver_stops_the_launch_and_nothing_is_written_any_more(watch: Watch) -> None:
    watch.round()
    (watch.folder / "drivers/2.json").touch()
    watch.store.record = ProductionLog(produced={0: 1})
    watch.round()
    assert not (watch.folder / "record.json").exists()
    with pytest.raises(ReplacedError):
        watch.stop.check()


def test_errors_may_pass_but_not_stay(watch: Watch) -> None:
    watch.round()
    watch.store.error = OSError("stale file handle")
    watch.round(STORE_TIMEOUT_S / 2)
    watch.store.error = None
    watch.round(STORE_TIMEOUT_S / 2)
    watch.store.error = OSError("stale file handle")
    watch.round(STORE_TIMEOUT_S / 2)
    watch.stop.check()
    watch.round(STORE_TIMEOUT_S)
    with pytest.raises(SweepStoppedError, match="cannot look after the sweep for 120 s .stale file handle.; "):
        watch.stop.check()


def test_a_trial_that_hangs_is_killed_after_some_rounds_and_again_if_that_did_not_help(watch: Watch) -> None:
    watch.begin(ONE)
    watch.round()
    watch.store.silent = {ONE: (1, HANG_TIMEOUT_S + 1.0)}
    killed_in = []
    for number in range(1, 2 * (ROUNDS_BEFORE_KILL + HANG_TIMEOUT_S)):
        before = len(watch.store.killed)
        watch.round()
        if len(watch.store.killed) > before:
            killed_in.append(number)
    assert killed_in == [ROUNDS_BEFORE_KILL, 2 * ROUNDS_BEFORE_KILL + HANG_TIMEOUT_S]
    assert [(attempt["attempt"], attempt["pid"]) for attempt in watch.store.killed] == [(1, 123)] * 2
    assert f"{ONE} is silent for trials.hang_timeout_s = 10 s; its process is killed" in watch.shown


def test_a_trial_that_is_heard_of_again_is_not_killed(watch: Watch) -> None:
    """It may have been the store that stood still."""
    watch.begin(ONE)
    watch.round()
    for _ in range(3):
        watch.store.silent = {ONE: (1, HANG_TIMEOUT_S + 1.0)}
        for _ in range(ROUNDS_BEFORE_KILL - 1):
            watch.round()
        watch.store.silent = {}
        watch.round()
    assert watch.store.killed == []


def test_the_successor_of_a_trial_that_hung_is_not_killed(watch: Watch) -> None:
    watch.begin(ONE)
    watch.begin(ONE)
    watch.round()
    watch.store.silent = {ONE: (1, HANG_TIMEOUT_S + 1.0)}
    for _ in range(ROUNDS_BEFORE_KILL):
        watch.round()
    assert watch.store.killed == []


def test_a_long_wait_for_activations_is_shown_at_once_and_logged_once(watch: Watch) -> None:
    wait = Wait(ONE, 7, "no producer is free")
    watch.round()
    watch.store.waits = (wait,)
    for _ in range(4):
        watch.round(LONG_WAIT_S / 2)
    assert watch.waits == (wait,) and watch.shown == []
    watch.round(LONG_WAIT_S)
    events = [json.loads(line)["event"] for line in (watch.folder / "events.jsonl").read_text().splitlines()]
    assert events == [f"{ONE} waits for block 7: no producer is free"]


def test_a_second_kind_of_machine_is_told(watch: Watch) -> None:
    watch.round()
    watch.supervisor.saw_machine("A")
    watch.store.machines = frozenset({"A", "B"})
    watch.round()
    (line,) = watch.shown
    assert line.startswith("trials and producers run on 2 kinds of machines") and line.endswith("A; B")
    assert watch.supervisor.machines == ["A", "B"]


def test_a_trial_that_died_is_tried_again_from_its_checkpoint_until_it_does_not_get_on(watch: Watch) -> None:
    directory = watch.begin(ONE)
    for death in range(1, DEATHS_WITHOUT_CHECKPOINT + 1):
        assert watch.supervisor.trial_died(ONE, "killed") == (death == DEATHS_WITHOUT_CHECKPOINT)
    assert directory.failure == "its process died 5 times without a checkpoint after 0 tokens: killed"
    assert watch.store.abandoned == [(ONE, False)] * DEATHS_WITHOUT_CHECKPOINT + [(ONE, True)]
    assert watch.shown[0] == f"{ONE} died (killed); it is tried again from 0 tokens"
    assert watch.shown[-1] == f"{ONE} died (killed); it has failed"


def test_a_trial_that_is_done_cannot_fail_by_dying(watch: Watch) -> None:
    directory = watch.begin(ONE)
    directory.finish(random_sae(SPECS[0]))
    assert not any(watch.supervisor.trial_died(ONE, "killed") for _ in range(DEATHS_WITHOUT_CHECKPOINT + 1))
    assert directory.failure is None


def test_the_first_reason_to_stop_counts(watch: Watch) -> None:
    watch.stop.set(SweepStoppedError("first"))
    watch.stop.set(SweepStoppedError("second"))
    with pytest.raises(SweepStoppedError, match="first"):
        watch.stop.check()
