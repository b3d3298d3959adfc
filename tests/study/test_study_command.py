"""`gsae-ray study` from recorded sweeps to what it prints, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from mlflow.tracking import MlflowClient
from random_feature_tables import log_tables, random_tables
from recorder import NEWER, Recorder, ends
from servers import free_ports
from studies import rate
from trials import FINGERPRINT, expand

from gsae_ray.cli.main import main
from gsae_ray.results.frontier import frontier
from gsae_ray.saes.folder import content_hash
from gsae_ray.storage import launch_directory
from gsae_ray.study.answers import raters

GATED = expand("gated", layers=(1, 2), l1_coefficient=[1.0, 2.0])
STANDARD = expand("standard", layers=(1, 2), l1_coefficient=[0.5])


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorder]:
    """Two sites, each with two gated SAEs and a standard one; of `bare` there are no tables, of `alone` no standard."""
    recorder = Recorder(tmp_path_factory.mktemp("recorded"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(recorder.folder)  # MLflow puts the artifacts of an SQLite store into the working directory
        patch.setenv("MLFLOW_TRACKING_URI", recorder.uri)
        gated = [*zip(GATED, ends((40, 0.96), (20, 0.90), (41, 0.96), (19, 0.91)), strict=True)]
        standard = [*zip(STANDARD, ends((22, 0.88), (21, 0.87)), strict=True)]
        recorder.record("small", NEWER, [*gated, *standard])
        recorder.record("bare", NEWER, [*gated, *standard])
        recorder.record("alone", NEWER, gated)
        client = MlflowClient(recorder.uri)
        for experiment in ("small", "alone"):
            for number, run_id in enumerate(frontier(experiment)["run_id"]):
                tables = random_tables(40, contexts=24, seed=number)
                log_tables(client, run_id, tables, recorder.folder / f"{experiment}-{number}")
        yield recorder


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["study", *map(str, arguments)])


def refused(*arguments: object) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 2 and "Traceback" not in result.output, result.output
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


@pytest.mark.usefixtures("recorder")
def test_a_study_is_created_rated_and_analysed(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    created = invoke("create", "small", "--pairs", 3, "--raters", 2, "--seed", 1, "--out", path)
    assert created.exit_code == 0, created.output
    assert f"written to {path}: 12 features for each of 2 raters" in created.output
    assert created.output.count("L0 20") == 1 and "L0 19" in created.output and "L0 40" not in created.output, "matched"
    assert "of 40 features" in created.output
    links = re.findall(r"rater \d: http://127.0.0.1:8765/r/([\w-]+)/", created.output)
    assert links == [rater.token for rater in raters(path)] and len(links) == 2
    for rater, upto in ((1, 12), (2, 9)):
        for place in range(1, upto + 1):
            rate(path, rater, place, label=place % 3)
    picture = tmp_path / "study.svg"
    analysed = invoke("analyse", path, "--out", picture)
    assert analysed.exit_code == 0, analysed.output
    assert "21 of 24 features are rated" in analysed.output and "took 2 s or less" in analysed.output
    for told in (
        "gated",
        "standard",
        "Maybe",
        "mean difference",
        "90 % interval",
        "Friedman",
        "pairs rated so far: 9, and it takes 10",
    ):
        assert told in analysed.output
    assert "– is Mann-Whitney between models: not enough groups: 1" in analysed.output
    assert "– is Page rising with the layer, small: not enough groups: 2" in analysed.output
    assert "gated − standard" in picture.read_text()
    found = json.loads(invoke("analyse", path, "--json").output)
    assert found["rated"] == 21 and found["all_pairs"] == 12 and found["groups"][0]["by"] == "all"


def test_the_same_is_read_from_storage(recorder: Recorder, tmp_path: Path) -> None:
    """Trials' directories lie in the storage of a sweep, with the tables of their features inside."""
    storage = tmp_path / "runs"
    launch = storage / "small" / "launches" / NEWER
    launch.mkdir(parents=True)
    trials = [*GATED, *STANDARD]
    (storage / "small" / "trials").symlink_to(recorder.folder / "small" / NEWER)
    identities = {trial.name: trial.identity for trial in trials}
    sweep = {"name": "small", "experiment": "small", "model": {"name": "builtin"}}
    launch_directory.LAUNCH.write(launch / "launch.json", {"sweep": sweep, "trials": identities})
    launch_directory.EVALUATED.write(launch / "evaluation.json", {"fingerprint": FINGERPRINT, "encoders": [None]})
    for number, trial in enumerate(trials):
        directory = storage / "small" / "trials" / trial.directory_name
        tables = random_tables(40, contexts=24, seed=number)
        tables.about["sae"], tables.about["heldout"] = content_hash(directory / "sae"), FINGERPRINT
        tables.write(directory / "features")
    path = tmp_path / "study.db"
    where = ["--storage", storage, "--match", "loss_recovered", "--out", path]
    created = invoke("create", "small", "--pairs", 1, "--raters", 1, "--seed", 1, *where)
    assert created.exit_code == 0, created.output
    assert "builtin blocks.1.hook_resid_post: " in created.output
    nearest = storage / "small" / "trials" / GATED[1].directory_name / "features"
    nearest.rename(tmp_path / "aside")
    less = ["--storage", storage, "--out", tmp_path / "less.db"]
    told = invoke("create", "small", "--pairs", 1, "--raters", 1, "--seed", 1, *less)
    assert told.exit_code == 0, told.output
    assert "(L0 20 and 22, loss recovered 0.9000 and 0.8800) are nearer than the two that are compared" in told.stderr
    assert "the two are far apart (L0 40 and 22" in told.stderr and told.stderr.count("\n") == 2
    (tmp_path / "aside").rename(nearest)
    for trial in STANDARD:  # of SAEs that were there before
        random_tables(40).write(storage / "small" / "trials" / trial.directory_name / "features")
    again = ["--storage", storage, "--out", tmp_path / "other.db"]
    assert "standard" in refused("create", "small", "--pairs", 1, "--raters", 1, "--seed", 1, *again)


@pytest.mark.usefixtures("recorder")
def test_a_study_is_served_until_ctrl_c_and_then_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    assert invoke("create", "small", "--pairs", 1, "--raters", 1, "--seed", 1, "--out", path).exit_code == 0
    rate(path, 1, 1, label=2)
    # A shell's background job ignores Ctrl-C, and so would this one.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = [sys.executable, "-c", f"{heed}; from gsae_ray.cli.main import main; main()"]
    (port,) = free_ports(1)
    command = [*program, "study", "serve", str(path), "--port", str(port)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    ) as served:
        assert served.stdout is not None
        line = served.stdout.readline()
        assert line.startswith(f"rater 1: 1 of 4 rated, http://127.0.0.1:{port}/r/"), line
        assert "Ctrl-C ends it" in served.stdout.readline()
        with urllib.request.urlopen(f"{line.split()[-1]}item", timeout=10) as reply:
            assert json.load(reply)["next"] == 2
        served.send_signal(signal.SIGINT)
        assert "what was answered is saved" in served.stdout.read()
    assert served.returncode == 0


@pytest.mark.usefixtures("recorder")
def test_what_cannot_be_a_study_is_one_line_with_a_remedy(tmp_path: Path) -> None:
    asked = ["--raters", 2, "--seed", 0, "--out", tmp_path / "study.db"]
    bare = refused("create", "bare", "--pairs", 1, *asked)
    assert "has tables of features; have them made: evaluation.features: {saes: all} in the sweep file" in bare
    assert "no site has SAEs of both gated and standard" in refused("create", "alone", "--pairs", 1, *asked)
    one = ["--architectures", "gated", "gated"]
    assert "--architectures: both are 'gated'" in refused("create", "small", "--pairs", 1, *asked, *one)
    assert "--pairs: 2 raters with 20 pairs each take 40 features" in refused("create", "small", "--pairs", 20, *asked)
    assert not (tmp_path / "study.db").exists()
    (tmp_path / "study.db").touch()
    assert "is there already" in refused("create", "small", "--pairs", 1, *asked)
    assert "is no study" in refused("serve", tmp_path / "study.db")
    assert "create EXPERIMENT --pairs 10 --raters 2 --seed 0 --out" in refused("analyse", tmp_path / "missing.db")
    assert "different texts, the tables have at most " in refused(
        "create", "small", "--pairs", 1, "--texts", 40, "--raters", 2, "--seed", 0, "--out", tmp_path / "texts.db"
    )
    assert "ends in none of .png" in refused("analyse", tmp_path / "study.db", "--out", "study.gif")


@pytest.mark.usefixtures("recorder")
def test_studies_are_analysed_together_where_they_compare_the_same(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.db" for name in "abc"]
    for path, more in zip(paths, [[], [], ["--architectures", "standard", "gated"]], strict=True):
        asked = ["--pairs", 1, "--raters", 1, "--seed", 0, "--out", path, *more]
        assert invoke("create", "small", *asked).exit_code == 0
        for place in range(1, 5):
            rate(path, 1, place, label=place % 3)
    found = json.loads(invoke("analyse", *paths[:2], "--json").output)
    assert found["rated"] == 8 and found["pairs"] == 4
    copy = tmp_path / "copy.db"
    shutil.copy(paths[0], copy)
    assert f"{paths[0]} and {copy} are one study" in refused("analyse", *paths[:2], copy)
    assert f"{paths[0]} is given twice" in refused("analyse", paths[0], paths[0])
    assert "compare different architectures" in refused("analyse", *paths)
    with sqlite3.connect(paths[0]) as database:
        assert database.execute("SELECT better, base, matched FROM study").fetchone() == ("gated", "standard", "l0")
