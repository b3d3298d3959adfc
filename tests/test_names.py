"""Names that users choose, where they become paths or stand in a command: below their folder, quoted, or refused."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.tracking import MlflowClient

import gsae_ray
from gsae_ray.cli.main import main
from gsae_ray.config.load import load_sweep
from gsae_ray.config.site import Site
from gsae_ray.config.sweep import Sweep
from gsae_ray.errors import UserError
from gsae_ray.names import check_run_id, folder_name, local_path, own_command
from gsae_ray.storage.evaluations import EvaluationRequest
from gsae_ray.tracking.mirror import Mirror

QUICKSTART = Path(__file__).parents[1] / "sweeps/quickstart.yaml"
CASES = settings(max_examples=200, deadline=None, database=None)
EVIL = [
    "../../x",
    "/Shared/team/sae",
    "..",
    ".",
    "/",
    "~",
    "~root",
    "a/../../b",
    "\\x",
    "C:\\x",
    "a\0b",
    "ä ö",
    "%2e",
    "-rf",
]
ANY = st.text(max_size=300) | st.sampled_from(EVIL) | st.lists(st.sampled_from(EVIL), max_size=5).map("/".join)


def is_one_component(name: str, folder: Path) -> bool:
    path = folder / name
    return (
        path.parent == folder
        and path.resolve().parent == folder.resolve()
        and len(name.encode()) <= 200
        and not name.startswith((".", "~"))
        and name.isascii()
    )


@CASES
@given(ANY)
def test_any_name_becomes_one_path_component_below_its_folder(name: str) -> None:
    assert is_one_component(folder_name(name), Path("/folder/of/others"))
    Path(folder_name(name)).absolute().as_uri().encode()


@CASES
@given(ANY, ANY)
def test_different_names_become_different_folders(one: str, other: str) -> None:
    assert (folder_name(one) == folder_name(other)) == (one == other)
    assert (folder_name(one + "x" * 300) == folder_name(other + "x" * 300)) == (one == other)


@pytest.mark.parametrize("name", ["quickstart", "a.b-c_D9", "x" * 200])
def test_a_plain_name_is_its_folder(name: str) -> None:
    assert folder_name(name) == name


@CASES
@given(ANY)
def test_names_of_a_sweep_file_that_become_folders_stay_below_theirs_or_are_refused(name: str) -> None:
    """Sweep names, parents, module paths."""
    values = {
        "name": "test",
        "model": {"name": "builtin"},
        "dataset": {"name": "builtin"},
        "sites": {"layers": [0], "points": ["resid_post"]},
        "saes": [{"architecture": "gated", "widths": 8, "l1_coefficient": 1}],
        "training": {"tokens": 1000, "batch_size": 100},
    }
    child = {"architecture": "rescale_shift", "widths": 8, "parent": name}
    for changed in ({"name": name}, {"saes": [child]}):
        try:
            sweep = Sweep.model_validate(values | changed)
        except ValueError:
            continue
        assert is_one_component(sweep.name, Path("/storage"))
        for values_ in sweep.saes[0].hyperparameters():
            assert is_one_component(values_.get("parent", "-"), Path("/storage/parents"))
    sweep = Sweep.model_validate(values | {"sites": {"modules": [{"module": name}]}})
    (trial,) = sweep.expand({Site.of_module(name, "output"): 4}, {})
    assert is_one_component(trial.name, Path("/storage/trials"))
    assert is_one_component(trial.directory_name[-200:], Path("/storage/trials"))


def refused(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_sweep(QUICKSTART, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["../../x", "/x", "..", ".hidden", "a/b", "a b", "-x", "ä", "x" * 201])
def test_a_sweeps_name_is_that_of_a_folder(name: str) -> None:
    line = refused(f"name='{name}'")
    assert ": name: " in line and "letters, digits, _, . and -" in line


@pytest.mark.parametrize("parent", ["../../x", "/etc", "..", "", "a.b", "a/b", "0" * 65])
def test_a_parent_is_a_runs_id_and_no_path(tmp_path: Path, parent: str) -> None:
    entry = f"saes=[{{architecture: rescale_shift, widths: 512, parent: '{parent}'}}]"
    line = refused(entry)
    assert "saes.0.parent: " in line and "run" in line
    result = CliRunner().invoke(main, ["plan", str(QUICKSTART), "--set", entry, "--storage", str(tmp_path / "runs")])
    assert result.exit_code == 2
    assert list(tmp_path.iterdir()) == []
    assert check_run_id("0123456789abcdef0123456789abcdef")


def test_an_experiments_artifacts_stay_beside_the_database(tmp_path: Path) -> None:
    home = tmp_path / "deep/in/home"
    home.mkdir(parents=True)
    uri = f"sqlite:///{home / 'mlflow.db'}"
    (tmp_path / "note.txt").write_text("here")
    experiments = ["/Shared/team/sae", "../../outside", "a b", "..", "ä/ö?x=1#y", "%2Fb", "plain"]
    for experiment in experiments:
        mirror = Mirror(uri, experiment, "20260101-000000-abcd", EvaluationRequest("fingerprint", (None,)))
        mirror.open_launch("sweep", {})
        mirror.log_launch({}, [tmp_path / "note.txt"])
        assert len(list((home / "mlruns" / folder_name(experiment)).glob("*/artifacts/note.txt"))) == 1
        fetched = MlflowClient(uri).download_artifacts(mirror.parent_id, "note.txt", str(tmp_path / "deep"))
        assert Path(fetched).read_text() == "here"
    assert len(list(tmp_path.rglob("artifacts/note.txt"))) == len(experiments)
    assert len(list((home / "mlruns").iterdir())) == len(experiments)
    assert (home / "mlruns/plain").is_dir()


@pytest.mark.parametrize(
    "storage",
    ["s3://bucket/x", "gs://bucket", "file:///x", "S3:/bucket/x", "", "a\0b"],
)
def test_a_storage_that_is_no_folder_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    server = ["--tracking-uri", "http://127.0.0.1:9", "--address", "http://127.0.0.1:9"]
    for command in (["run"], ["plan"], ["submit", *server]):
        result = CliRunner().invoke(main, [*command, str(QUICKSTART), "--storage", storage])
        assert result.exit_code == 2, result.output
        (line,) = [line for line in result.stderr.splitlines() if not line.startswith("checking ")]
        assert line.startswith("gsae-ray: --storage: ") and "give a folder" in line
    with pytest.raises(UserError, match="--storage: .*give a folder"):
        gsae_ray.run(QUICKSTART, storage=storage)
    if "\0" not in storage and storage:
        with pytest.raises(UserError, match="--storage: .*give a folder"):
            gsae_ray.run(QUICKSTART, storage=Path(storage))
    assert list(tmp_path.iterdir()) == []


def test_an_sae_is_not_written_to_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["best", "x", "--max-l0", "4", "--out", "s3://bucket/sae"])
    assert result.exit_code == 2
    assert "--out: " in result.stderr and "give a folder" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_local_path_may_begin_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somebody")
    with pytest.raises(UserError, match="--storage: '~no-such-user/x': there is no such home"):
        local_path("~no-such-user/x", "--storage")
    assert local_path("~/runs", "--storage") == Path("/somebody/runs")
    assert local_path("a:b/c", "--storage") == Path("a:b/c")


@CASES
@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), max_size=4))
def test_a_printed_command_is_read_by_a_shell_as_it_was_meant(words: list[str]) -> None:
    assert shlex.split(own_command("best", *words)) == ["gsae-ray", "best", *words]
