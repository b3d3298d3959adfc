"""`gsae-ray rate` from tables of features to columns of the frontier, against a real server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner, Result
from mlflow.tracking import MlflowClient
from rater_server import RaterServer, always, nonsense, perfect, serving
from recorder import NEWER, Recorder, ends
from trials import FINGERPRINT, evaluation, expand
from word_tables import word_tables

import gsae_ray
from gsae_ray.cli.main import main
from gsae_ray.feature_tables import read
from gsae_ray.saes.folder import content_hash
from gsae_ray.storage import launch_directory
from gsae_ray.storage.trial_directory import TrialDirectory

GATED = expand("gated", layers=(1, 2), l1_coefficient=[1.0, 2.0])
SITE = GATED[0].site
FEATURES = 4


@pytest.fixture
def recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Four SAEs at two sites, of which three have tables of features; in storage and in MLflow."""
    monkeypatch.chdir(tmp_path)  # MLflow puts the artifacts of an SQLite store into the working directory
    recorder = Recorder(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", recorder.uri)
    recorder.record("small", NEWER, [*zip(GATED, ends((40, 0.96), (20, 0.9), (41, 0.96), (19, 0.91)), strict=True)])
    launch = tmp_path / "gsae_runs" / "small" / "launches" / NEWER
    launch.mkdir(parents=True)
    trials = launch.parents[1] / "trials"
    trials.symlink_to(tmp_path / "small" / NEWER)
    sweep = {"name": "small", "experiment": "small", "model": {"name": "builtin"}}
    identities = {trial.name: trial.identity for trial in GATED}
    launch_directory.LAUNCH.write(launch / "launch.json", {"sweep": sweep, "trials": identities})
    launch_directory.EVALUATED.write(launch / "evaluation.json", {"fingerprint": FINGERPRINT, "encoders": [None]})
    for number, trial in enumerate(GATED[:3]):
        tables = word_tables(seed=number)
        tables.about["sae"], tables.about["heldout"] = content_hash(trials / trial.directory_name / "sae"), FINGERPRINT
        tables.write(trials / trial.directory_name / "features")
    return recorder


@pytest.fixture
def server() -> Iterator[RaterServer]:
    with serving(perfect) as server:
        yield server


def invoke(server: RaterServer, *arguments: object, answer: str | None = None) -> Result:
    where = ["--endpoint", server.url, "--model", "judge", "--features", FEATURES]
    return CliRunner().invoke(main, ["rate", "small", *map(str, [*where, *arguments])], input=answer)


def rated(server: RaterServer, *arguments: object) -> list[dict[str, Any]]:
    result = invoke(server, "--yes", "--json", *arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(server: RaterServer, *arguments: object) -> str:
    result = invoke(server, *arguments)
    assert result.exit_code == 2 and "Traceback" not in result.output, result.output
    return result.stderr


@pytest.mark.usefixtures("recorder")
def test_a_rater_that_is_always_right(server: RaterServer) -> None:
    result = invoke(server, answer="y\n")
    assert result.exit_code == 0, result.output
    asked = len(server.bodies)
    assert f"12 features of 3 SAEs: {asked} requests; about " in result.stderr, "as it was said before"
    assert f"ask judge at {server.url}? [y/N]" in result.stderr
    assert f"{asked} requests, {100 * asked:,} tokens sent and {10 * asked:,} got" in result.stderr
    assert result.stdout.count("1.000 [1.000, 1.000]") == 6 and "rated by judge" in result.stdout
    again = invoke(server)  # nothing to be asked, so that nothing is confirmed
    assert again.exit_code == 0 and f"0 requests ({asked} more are answered already)" in again.stderr
    assert len(server.bodies) == asked and again.stdout == result.stdout
    more = invoke(server, "--yes", "--features", FEATURES + 2, "--site", SITE)
    assert more.exit_code == 0 and "more are answered already" in more.stderr


@pytest.mark.usefixtures("recorder")
def test_scores_are_columns_of_the_frontier(server: RaterServer) -> None:
    server.rule = always(1)
    rated(server)
    server.rule = perfect
    invoke(server, "--yes", "--site", SITE, "--model", "another")
    stored, mirrored = gsae_ray.frontier("small", storage="gsae_runs"), gsae_ray.frontier("small")
    for rows in (stored, mirrored):
        found = rows.set_index("trial")
        first, third, bare = (found.loc[GATED[number].name] for number in (0, 2, 3))
        assert (first["detection"], first["detection_low"], first["detection_high"]) == (1, 1, 1)
        assert (first["rater"], first["fuzzing"], third["rater"]) == ("another", 1, "judge")
        assert (third["detection"], third["fuzzing_low"], third["fuzzing_high"]) == (0.5, 0.5, 0.5)
        assert pd.isna(bare["detection"]) and pd.isna(bare["rater"])
        assert any("by 2 raters (another, judge), and compare only within each" in note for note in rows.attrs["notes"])
        assert "detection  " in repr(rows).splitlines()[0] and "fuzzing" in repr(rows).splitlines()[0]
    printed = CliRunner().invoke(main, ["frontier", "small", "--site", SITE], env={"COLUMNS": "200"}).stdout
    assert "detection" in printed and "fuzzing" in printed
    shared = [name for name in stored if name not in ("run_id", "trained_at")]
    pd.testing.assert_frame_equal(pd.DataFrame(stored[shared]), pd.DataFrame(mirrored[shared]))
    sae = gsae_ray.best("small", site=SITE, max_l0=1e9, by="detection")
    assert sae.cfg.metadata["frontier"]["detection"] == 1
    run = mirrored.set_index("trial").loc[GATED[0].name]["run_id"]
    client = MlflowClient()
    assert client.get_run(run).data.metrics["rated/fuzzing"] == 1
    kept = json.loads(Path(client.download_artifacts(run, "ratings.json")).read_text())
    assert kept["rater"] == "another" and len(kept["features"]) == FEATURES
    assert {rated["explanation"] for rated in kept["features"]} == {
        f"on the word word{r['feature']}" for r in kept["features"]
    }


@pytest.mark.usefixtures("recorder")
def test_a_rater_that_answers_nonsense_is_counted_as_unread(server: RaterServer) -> None:
    server.rule = nonsense
    result = invoke(server, "--yes", "--site", SITE)
    assert result.exit_code == 0, result.output
    asked, explained = len(server.bodies), 2 * FEATURES
    of_each = [line for line in result.stdout.splitlines() if "could not be read" in line]
    assert len(of_each) == 2
    counts = [(int(line.split(": ")[1].split()[0]), int(line.split(" of ")[1].split()[0])) for line in of_each]
    assert sum(unread for unread, _ in counts) == asked - explained and sum(answers for _, answers in counts) == asked
    assert all(f"of {FEATURES} of {FEATURES} features; scores are without them" in line for line in of_each)
    assert "detection" not in gsae_ray.frontier("small", storage="gsae_runs"), "no score was had"
    server.rule = lambda kind, explanation, pieces: "" if kind == "explain" else always(1)(kind, explanation, pieces)
    (one, _) = rated(server, "--site", SITE, "--model", "silent")
    assert one["scores"] == {} and all(
        f["explanation"] is None and (f["answers"], f["unread"]) == (1, 1) for f in one["features"]
    )


@pytest.mark.slow
@pytest.mark.usefixtures("recorder")
def test_one_that_is_killed_goes_on_without_asking_again(server: RaterServer, tmp_path: Path) -> None:
    server.delay_s = 0.05
    command = [sys.executable, "-m", "gsae_ray", "rate", "small", "--endpoint", server.url, "--model", "judge", "--yes"]
    with subprocess.Popen([*command, "--features", str(FEATURES), "--threads", "2"], stderr=subprocess.PIPE) as process:
        until = time.monotonic() + 120
        while len(server.bodies) < 8 and time.monotonic() < until:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    time.sleep(0.2)  # those that were on their way arrive
    before = len(server.bodies)
    with sqlite3.connect(tmp_path / "gsae_runs" / "rater_answers.db") as database:
        (kept,) = database.execute("SELECT count(*) FROM answers").fetchone()
    assert 6 <= kept <= before <= kept + 2, "but for those that were on their way"
    server.delay_s = 0
    found = rated(server)
    assert [one["scores"]["detection"] for one in found] == [1, 1, 1]
    different = len({json.dumps(body, sort_keys=True) for body in server.bodies})
    assert len(server.bodies) - before == different - kept


@pytest.mark.usefixtures("recorder")
def test_a_second_ctrl_c_ends_it_at_once(server: RaterServer) -> None:
    server.delay_s = 60
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # background jobs ignore it
    program = [sys.executable, "-c", f"{heed}; from gsae_ray.cli.main import main; main()"]
    command = [*program, "rate", "small", "--endpoint", server.url, "--model", "judge", "--yes", "--threads", "2"]
    command += ["--price-in", "2", "--price-out", "10"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 120
        while server.at_once < 2 and time.monotonic() < until:
            time.sleep(0.01)
        assert process.stderr is not None
        process.send_signal(signal.SIGINT)
        while "waiting for 2 answers that are on their way" not in (line := process.stderr.readline()):
            assert line, "it has ended without a word"
        process.send_signal(signal.SIGINT)
        kept = "what was answered is kept, and the same command goes on from there"
        assert process.wait(30) == 75
        assert process.stderr.read().strip() == f"gsae-ray: interrupted; 0 is spent by these prices; {kept}"


@pytest.mark.usefixtures("recorder")
def test_what_it_costs_is_said_and_kept_to(server: RaterServer, monkeypatch: pytest.MonkeyPatch) -> None:
    prices = ["--price-in", 2, "--price-out", 10]
    result = invoke(server, *prices, answer="n\n")
    assert result.exit_code == 1 and "which cost about 0.0" in result.stderr and not server.bodies
    said = refused(server, *prices, "--budget", 0.001, "--yes")
    assert "--budget: 0.001 is less than the 0.0" in said and not server.bodies
    said = refused(server)  # without a terminal, as with </dev/null
    assert "12 features of 3 SAEs" in said and not server.bodies
    assert said.splitlines()[-1].startswith("gsae-ray: --yes: nobody answers whether to start; give --yes")
    assert "give --price-in and --price-out" in refused(server, "--budget", 1)
    assert "give both, or neither" in refused(server, "--price-in", 1)
    said = refused(server, "--api-key-env", "abc123secret")
    assert "give the NAME of one that has the key, not the key itself" in said and "abc123secret" not in said
    for wrong in ("[1]", "{", '{"a": NaN}'):
        assert "is no JSON object; give one" in refused(server, "--parameters", wrong)
    unlimited = invoke(server, *prices, "--parameters", '{"max_tokens": null}', answer="n\n")
    assert "at most" in result.stderr and "at most" not in unlimited.stderr
    for bad in ("sk-secret\nsk-other", "sk-secr\u20act", "sk-sécret"):
        monkeypatch.setenv("RATER_KEY", bad)
        said = refused(server, "--api-key-env", "RATER_KEY")
        assert said.startswith("gsae-ray: --api-key-env: what RATER_KEY holds cannot be sent") and "sk-" not in said
    monkeypatch.setenv("RATER_KEY", "sk-secret")
    server.key = "sk-secret"
    result = invoke(server, *prices, "--yes", "--api-key-env", "RATER_KEY", "--site", SITE)
    asked = len(server.bodies)
    assert result.exit_code == 0 and f"{(200 * asked + 100 * asked) / 1e6:.4g} by these prices" in result.stderr
    written = [path.read_bytes() for path in Path.cwd().rglob("*") if path.is_file()]
    assert not any(b"sk-secret" in data for data in written) and "sk-secret" not in result.output


def test_what_cannot_be_rated_is_one_line(recorder: Recorder, server: RaterServer) -> None:
    for trial in GATED[:2]:
        path = recorder.folder / "small" / NEWER / trial.directory_name / "features"
        (path / "about.json").unlink()
    none = refused(server, "--site", SITE)
    assert f"no SAE of 'small' at {SITE} has tables of features on the held-out text of launch {NEWER}; " in none
    assert "; have them made: gsae-ray features small (or evaluation.features" in none
    few = invoke(server, "--yes", "--features", 100)
    assert few.exit_code == 0 and "11 of the 100 features that were asked for fire and have enough pieces" in few.stderr
    path = recorder.folder / "small" / NEWER / GATED[2].directory_name / "features"
    tables = word_tables(contexts=4)
    tables.about["sae"], tables.about["heldout"] = content_hash(path.parent / "sae"), FINGERPRINT
    tables.write(path)
    assert "no feature of 'small' fires and has enough pieces of text" in refused(server)


@pytest.mark.usefixtures("recorder")
def test_ratings_with_most_answers_missing_replace_no_others(server: RaterServer) -> None:
    def detections() -> list[float]:
        return [*gsae_ray.frontier("small", SITE, storage="gsae_runs")["detection"]]

    rated(server, "--site", SITE)
    asked = len(server.bodies)
    server.rule = nonsense
    result = invoke(server, "--yes", "--site", SITE, "--model", "another")
    assert (
        result.exit_code == 0 and result.stderr.count("most answers are missing, and its ratings of before stay") == 2
    )
    assert detections() == [1, 1]
    server.refuses = lambda body: 400 if "Decide for each" in body["messages"][0]["content"] else None
    result = invoke(server, "--yes", "--site", SITE, "--model", "third")
    refused_now = asked - 2 * FEATURES
    assert f"{refused_now} requests have no answer: the endpoint answers 400 (not now" in result.stderr
    assert result.stderr.count("the endpoint answers 400") == 1 and detections() == [1, 1]
    assert gsae_ray.frontier("small", SITE)["rater"].tolist() == ["judge", "judge"], "in MLflow, too"
    server.rule, before = perfect, len(server.bodies)
    server.refuses = lambda _: 402 if len(server.bodies) > before + 4 else None
    said = refused(server, "--yes", "--site", SITE, "--model", "fourth")
    assert "answers 402 (not now" in said and "the same command goes on from there" in said and detections() == [1, 1]


def test_tables_of_other_held_out_text_are_not_asked_about(recorder: Recorder, server: RaterServer) -> None:
    """As after a change of evaluation.tokens: the next launch has the same trials, with the tables of before."""
    newer = f"{NEWER}-changed"
    launches = recorder.folder / "gsae_runs" / "small" / "launches"
    shutil.copytree(launches / NEWER, launches / newer)
    other = "evaluated elsewhere"
    launch_directory.EVALUATED.write(launches / newer / "evaluation.json", {"fingerprint": other, "encoders": [None]})
    for trial in GATED:
        directory = TrialDirectory(launches.parent / "trials" / trial.directory_name)
        directory.save_evaluation(other, trial.training.tokens, evaluation(l0=30.0, loss_recovered=0.9))
    said = refused(server, "--yes")
    assert f"no SAE of 'small' has tables of features on the held-out text of launch {newer}; " in said
    assert "have them made: gsae-ray features small" in said and not server.bodies
    path = launches.parent / "trials" / GATED[1].directory_name / "features"
    tables = read(path)
    assert tables is not None
    tables.about["heldout"] = other
    tables.write(path)
    result = invoke(server, "--yes")
    assert result.exit_code == 0 and f"{FEATURES} features of 1 SAEs" in result.stderr
    assert f"{GATED[0].name} is left out: its tables of features are of before; have" in result.stderr
    stored = gsae_ray.frontier("small", storage="gsae_runs").set_index("trial")["detection"]
    assert stored[GATED[1].name] == 1 and stored.isna().sum() == 3
    assert not (path.parents[1] / GATED[0].directory_name / "ratings.json").exists()


def test_ratings_are_kept_where_mlflow_is_away(recorder: Recorder, server: RaterServer) -> None:
    result = invoke(server, "--yes", "--site", SITE, "--tracking-uri", "sqlite:////nowhere/mlflow.db")
    assert result.exit_code == 0 and result.stderr.count("MLflow does not have these ratings (") == 1
    assert gsae_ray.frontier("small", SITE, storage="gsae_runs")["detection"].tolist() == [1, 1]
    assert "detection" not in gsae_ray.frontier("small", SITE)
    asked = len(server.bodies)
    assert invoke(server, "--site", SITE).exit_code == 0 and len(server.bodies) == asked
    assert gsae_ray.frontier("small", SITE, tracking_uri=recorder.uri)["detection"].tolist() == [1, 1]
