"""The command line: what a user sees when something is wrong, and the real command from start to end."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from trials import FINGERPRINT, begin, expand, finish

from gsae_ray.cli.main import main
from gsae_ray.driver.launch import SweepResult
from gsae_ray.errors import ProductionError, ReplacedError, StopAskedError, StorageFullError, UserError
from gsae_ray.storage import launch_directory
from gsae_ray.tracking.connection import connect

QUICKSTART = Path(__file__).parents[2] / "sweeps/quickstart.yaml"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def error_line(result: Result) -> str:
    """The one line of an error, after what has been printed of the progress."""
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    lines = [
        line for line in result.stderr.splitlines() if not line.startswith(("checking ", "tokenising", "held-out"))
    ]
    assert len(lines) == 1, result.stderr
    return lines[0]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.batchsize=4", ["training.batchsize", "unknown key", "'batch_size'"]),
        ("nothing.here=4", ["nothing", "unknown key"]),
        ("training.lr=fast", ["training.lr", "'fast'", "number"]),
        ("training.tokens=-5", ["training.tokens", "-5", "greater than 0"]),
        ("saes.0.widths=[0]", ["saes.0.widths", "0", "greater than 0"]),
        ("saes.0.architecture=gatde", ["saes.0", "'gatde'", "'gated'"]),
        ("saes.7.widths=[8]", ["saes", "list of 2", "0 to 1"]),
        ("sites.points=[resid_pots]", ["sites.points", "'resid_pots'", "'resid_post'"]),
        ("sites.layers=[1,9]", ["sites.layers", "9", "0 to 3"]),
        ("model.name=no/such-model", ["model.name", "'no/such-model'", "builtin"]),
        ("model.name=./nowhere", ["model.name", "'./nowhere'"]),
        ("model.context_size=100000", ["model.context_size", "100000", "512"]),
        ("dataset.name=./nowhere.jsonl", ["dataset.name", "./nowhere.jsonl"]),
        ("dataset.split=tarin", ["dataset.split", "'tarin'", "'train'"]),
        pytest.param(  # all of the text is tokenised
            "training.tokens=50_000_000", ["training.tokens", "50000000", "dataset.repeat"], marks=pytest.mark.slow
        ),
        ("evaluation.tokens=5_000_000", ["evaluation.tokens", "5000000"]),
        ("sites={modules: [{module: gpt_neox.layers.1.mpl}]}", ["sites.modules", "mpl", "'gpt_neox.layers.1.mlp'"]),
        ("evaluation.pursuit_l0=[4,4096]", ["evaluation.pursuit_l0", "4096", "w512", "512"]),
        ("evaluation.pursuit_l0=[4,0]", ["evaluation.pursuit_l0", "0", "greater than 0"]),
        ("producers.gpus=1.5", ["producers.gpus", "1.5", "whole number"]),
        ("dataset.shuffle_tokens", ["--set", "path.to.key=value"]),
    ],
)
def test_a_mistake_is_one_line_that_names_key_value_and_remedy(here: Path, override: str, expected: list[str]) -> None:
    check_mistake(here, override, expected)


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(
    ("override", "expected"),
    [("trials.cpus=4000", ["trials", "4000"]), ("producers.gpus=1000", ["producers", "gpus: 1000"])],
)
def test_more_than_the_cluster_has_is_one_line_that_names_key_and_value(
    here: Path, override: str, expected: list[str]
) -> None:
    check_mistake(here, override, expected)


def check_mistake(here: Path, override: str, expected: list[str]) -> None:
    line = error_line(invoke("run", QUICKSTART, "--set", override))
    for part in expected:
        assert part in line
    # Tokens that were prepared before the mistake came up are whole, and of use to the next run.
    assert [p for p in here.rglob("*") if p.is_file() and "/tokens/" not in str(p)] == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "nowhere.yaml"], ["nowhere.yaml", "No such file"]),
        (["frontier", "nothing"], ["--tracking-uri", "nothing has been recorded"]),
        (["best", "nothing", "--max-l0", "4", "--out", "x", "--format", "gase"], ["--format", "'gase'", "'gsae'"]),
        (["ui"], ["--tracking-uri", "nothing has been recorded"]),
    ],
)
def test_other_commands_say_what_is_missing(here: Path, arguments: list[str], expected: list[str]) -> None:
    line = error_line(invoke(*arguments))
    for part in expected:
        assert part in line
    assert list(here.iterdir()) == []


def test_an_unreachable_tracking_server_is_known_before_anything_starts(here: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{taken.getsockname()[1]}"
        line = error_line(invoke("run", QUICKSTART, "--tracking-uri", uri))
    assert "--tracking-uri" in line and uri in line
    assert list(here.iterdir()) == []


def test_ui_on_a_port_that_is_taken_does_not_name_somebody_elses_server(here: Path) -> None:
    connect(f"sqlite:///{here}/mlflow.db")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = invoke("ui", "--port", port)
    assert f"--port: {port} cannot be had on this machine (Address already in use)" in error_line(result)
    assert "http://" not in result.output


@pytest.mark.usefixtures("here")
def test_a_storage_that_cannot_be_written_is_one_line() -> None:
    Path("file").write_text("")
    assert "file" in error_line(invoke("run", QUICKSTART, "--storage", "file"))


@pytest.mark.usefixtures("here")
def test_help_teaches_the_sweep_file() -> None:
    text = invoke("run", "--help").output
    for word in ("l1_coefficient", "shuffle_tokens", "log_range", "resid_post", "--set", "--resume", "evaluation:"):
        assert word in text
    assert "split: [auto]" in text and "[auto]: leave it out, or null" in text  # no split is called auto


@pytest.mark.usefixtures("here")
def test_help_tells_the_exit_codes() -> None:
    text = invoke("run", "--help").output
    assert all(re.search(rf"^ +{code} +\S", text, re.MULTILINE) for code in (0, 2, 3, 75)), text


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        ({}, 0),
        (UserError("a key"), 2),
        ({"a": "the loss is not finite"}, 3),
        (StopAskedError("asked"), 75),
        (StorageFullError("full"), 75),
        (ProductionError("no producer"), 75),
        (ReplacedError("another driver"), 75),
        (KeyboardInterrupt(), 75),
    ],
)
def test_the_exit_code_tells_what_starts_the_command_again(
    here: Path, monkeypatch: pytest.MonkeyPatch, outcome: dict[str, str] | BaseException, code: int
) -> None:
    def run(*_: object, **__: object) -> SweepResult:
        if isinstance(outcome, BaseException):
            raise outcome
        where = {"experiment": "quickstart", "launch_id": "id", "tracking_uri": "sqlite:///mlflow.db", "storage": here}
        numbers = {"forward_ratio": 1.0, "repeated_rows": 0, "seconds": 1.0}
        return SweepResult(**where, **numbers, mirrored=True, picture=None, failures=outcome)  # type: ignore[arg-type]

    monkeypatch.setattr("gsae_ray.driver.launch.run", run)
    result = invoke("run", QUICKSTART, "--resume", "auto")
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output


def test_mlflow_that_goes_when_all_is_done_takes_neither_table_nor_exit_code(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Storage has the table; whatever starts the command again would take 2 for a sweep that was refused."""
    (trial,) = expand("gated", l1_coefficient=[1.0])
    finish(begin(here / "runs/swept/trials", trial, steps=2), trial, FINGERPRINT)
    launch = here / "runs/swept/launches/20260101-000000-beef"
    launch.mkdir(parents=True)
    identities = {trial.name: trial.identity}
    launch_directory.LAUNCH.write(launch / "launch.json", {"sweep": {"name": "swept"}, "trials": identities})
    launch_directory.EVALUATED.write(launch / "evaluation.json", {"fingerprint": FINGERPRINT, "encoders": [None]})
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{listener.getsockname()[1]}"
    where = {"experiment": "swept", "launch_id": launch.name, "tracking_uri": nowhere, "storage": here / "runs"}
    numbers = {"forward_ratio": 1.0, "repeated_rows": 0, "seconds": 1.0}
    what = {"mirrored": True, "picture": here / "a.png", "failures": {"b": "NaN"}}
    end = SweepResult(**where, **numbers, **what)  # type: ignore[arg-type]
    monkeypatch.setattr("gsae_ray.driver.launch.run", lambda *_, **__: end)
    result = invoke("run", QUICKSTART)
    assert result.exit_code == 3, result.output
    assert "(* on the frontier)" in result.stdout
    assert f"again:     gsae-ray frontier swept --storage {here}" in result.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["SWEEP"], False),
        (["SWEEP", "--resume"], True),
        (["--resume", "SWEEP"], True),
        (["SWEEP", "--resume", "auto"], "auto"),
        (["--resume", "auto", "SWEEP"], "auto"),
        (["--resume=auto", "SWEEP"], "auto"),
        (["SWEEP", "--resume", "--set", "name=a"], True),
    ],
)
@pytest.mark.usefixtures("here")
def test_resume_stands_alone_or_with_auto(monkeypatch: pytest.MonkeyPatch, words: list[str], expected: object) -> None:
    given: list[object] = []

    def run(*_: object, resume: object, **__: object) -> None:
        given.append(resume)
        raise UserError("that is all")

    monkeypatch.setattr("gsae_ray.driver.launch.run", run)
    assert (
        error_line(invoke("run", *[str(QUICKSTART) if w == "SWEEP" else w for w in words])) == "gsae-ray: that is all"
    )
    assert given == [expected]


def command(*arguments: str, **options: object) -> subprocess.Popen[str]:
    # A shell's background job ignores Ctrl-C, and so would this test's, were it one.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = [sys.executable, "-c", f"{heed}; from gsae_ray.cli.main import main; main()", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    return subprocess.Popen(program, **pipes, **options)  # type: ignore[call-overload]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ctrl_c_stops_cleanly_and_resume_goes_on(here: Path) -> None:
    """The real command: stopped in the middle, resumed, and its best SAE fetched in a new process."""
    sweep = yaml.safe_load(QUICKSTART.read_text())
    sweep |= {"name": "short", "sites": {"layers": [1], "points": ["resid_post"]}}
    sweep["saes"] = [{"architecture": "gated", "widths": [128], "l1_coefficient": [2, 4, 8]}]
    sweep["training"] |= {"tokens": 150_000, "checkpoint_every_tokens": 20_000}
    sweep["evaluation"] = {"tokens": 4096}
    Path("short.yaml").write_text(yaml.safe_dump(sweep))

    running = command("run", "short.yaml")
    deadline = time.monotonic() + 120
    while not list(here.glob("gsae_runs/short/trials/*/checkpoints/*/manifest.json")):
        assert time.monotonic() < deadline and running.poll() is None
        time.sleep(0.2)
    os.kill(running.pid, signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 75, errors
    assert "--resume" in errors and "Traceback" not in errors

    resumed = command("run", "short.yaml", "--resume")
    output, errors = resumed.communicate(timeout=200)
    assert resumed.returncode == 0, errors
    assert "Traceback" not in errors and "forward ratio" in output and "gated" in output
    assert len(list(here.glob("gsae_runs/short/launches/*"))) == 1
    assert len(list(here.glob("gsae_runs/short/trials/*/DONE"))) == 3

    fetched = command("best", "short", "--max-l0", "1000", "--out", "best_sae")
    output, errors = fetched.communicate(timeout=60)
    assert fetched.returncode == 0, errors
    assert sorted(p.name for p in Path("best_sae").iterdir()) == ["cfg.json", "sae_weights.safetensors"]
    line = error_line(invoke("best", "short", "--max-l0", "0.001", "--out", "other"))
    assert "max_l0" in line and "lowest" in line
    assert not Path("other").exists()
