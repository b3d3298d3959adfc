"""The model registry's promise: an SAE is there once, and an alias names the best of those that can be compared."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner
from mirrors import LAUNCH_ID, Server, fail_in_call, pair
from mlflow.exceptions import MlflowException
from servers import serving
from trials import FINGERPRINT, REQUEST, SITE_1, begin, evaluation, expand, finish

import gsae_ray
from gsae_ray.cli.main import main
from gsae_ray.config.trial import TrialSpec
from gsae_ray.errors import UserError
from gsae_ray.saes.folder import holds
from gsae_ray.storage.references import Reference, add_reference, save_evaluation
from gsae_ray.storage.trial_directory import Trial
from gsae_ray.tracking.connection import quick_failure
from gsae_ray.tracking.mirror import Mirror
from gsae_ray.tracking.registry_names import ALIASES, MAX_NAME, model_name
from gsae_ray.tracking.tags import CONTENT, EVALUATION, RUN

SPARSE, MIDDLE, DENSE, WORSE = expand(l1_coefficient=[1.0, 2.0, 4.0, 8.0])
ALL = (SPARSE, MIDDLE, DENSE, WORSE)
End = tuple[float, float]
"""L0 and loss recovered."""
ENDS: dict[str, End] = {SPARSE.name: (6, 0.8), MIDDLE.name: (20, 0.9), DENSE.name: (90, 0.95), WORSE.name: (95, 0.85)}
NEWER, NEWEST = "20260102-000000-abcd", "20260103-000000-abcd"
OTHER_TOKENS = "e" * 64


class Sweep:
    """An experiment whose launches enter their SAEs, as drivers do."""

    def __init__(self, server: Server, root: Path) -> None:
        self.server, self.root, self.name = server, root, model_name(server.experiment, SITE_1)

    def launch(
        self,
        trials: Iterable[TrialSpec],
        launch_id: str = LAUNCH_ID,
        fingerprint: str = FINGERPRINT,
        on_frontier: Iterable[TrialSpec] = (SPARSE, MIDDLE, DENSE),
        ends: dict[str, End] = ENDS,
    ) -> Mirror:
        """A launch that ends: its trials are trained, unless they were in an earlier one, and evaluated."""
        mirror = Mirror(self.server.uri, self.server.experiment, launch_id, REQUEST._replace(fingerprint=fingerprint))
        mirror.open_launch("small", {})
        pairs = []
        for trial in trials:
            directory = begin(self.root / "trials", trial)
            l0, recovered = (ENDS | ends)[trial.name]
            if not directory.done:
                finish(directory, trial, fingerprint, l0=l0, loss_recovered=recovered)
            directory.save_evaluation(fingerprint, 1024, evaluation(l0=l0, loss_recovered=recovered))
            pairs.append(Trial(trial, directory))
        mirror.sync(pairs)
        self.enter(mirror, on_frontier)
        return mirror

    def enter(self, mirror: Mirror, on_frontier: Iterable[TrialSpec] = (SPARSE, MIDDLE, DENSE)) -> list[str]:
        names = {trial.name for trial in on_frontier}
        runs = {run.info.run_id for run in self.server.runs() if run.data.tags["gsae.trial"] in names}
        return mirror.register(runs, self.folder(mirror.launch_id))

    def folder(self, launch_id: str) -> Path:
        return self.root / "small" / "launches" / launch_id

    def aliases(self) -> dict[str, str]:
        """Alias -> the trial whose SAE it names, by its coefficient."""
        client = self.server.client
        found = client.get_registered_model(self.name).aliases
        return {alias: client.get_model_version(self.name, number).tags["sparsity"] for alias, number in found.items()}

    def versions(self) -> list[str]:
        return sorted(v.tags["sparsity"] for v in self.server.client.search_model_versions(f"name = '{self.name}'"))


@pytest.fixture
def sweep(server: Server, tmp_path: Path) -> Sweep:
    return Sweep(server, tmp_path)


def test_frontier_saes_are_entered_once_and_aliases_name_the_best_within_their_l0(sweep: Sweep) -> None:
    mirror = sweep.launch(ALL)
    expected = {"best-l0-8": "1.0", "best-l0-16": "1.0", "best-l0-32": "2.0", "best-l0-64": "2.0"}
    expected |= {"best-l0-128": "4.0", "best-l0-256": "4.0"}
    assert sweep.aliases() == expected and expected.keys() == ALIASES.keys()
    assert sweep.versions() == ["1.0", "2.0", "4.0"], "the one that is not on the frontier is not there"
    assert sweep.enter(mirror) == [sweep.name] and mirror.notices == []
    sweep.launch(ALL)  # resumed by another driver
    assert sweep.versions() == ["1.0", "2.0", "4.0"] and sweep.aliases() == expected


def test_a_version_points_to_the_artifacts_of_its_run_and_says_what_it_is(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep.launch([MIDDLE])
    run = sweep.server.run()
    (version,) = sweep.server.client.search_model_versions(f"name = '{sweep.name}'")
    assert (version.run_id, version.source) == (run.info.run_id, f"{run.info.artifact_uri}/sae")
    expected = {"l0": "20.0", "loss_recovered": "0.9", "explained_variance": "0.9", "architecture": "gated"}
    expected |= {"recipe": "norm_weighted/modern", "width": "16", "tokens": "1024", "sparsity": "2.0"}
    expected |= {EVALUATION: FINGERPRINT, RUN: run.info.run_id, CONTENT: run.data.tags[CONTENT]}
    assert expected.items() <= version.tags.items()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sweep.server.uri)
    with tempfile.TemporaryDirectory() as folder:
        uri = f"models:/{sweep.name}@best-l0-32"
        fetched = mlflow.artifacts.download_artifacts(uri, dst_path=folder, tracking_uri=sweep.server.uri)
        assert holds(Path(fetched), version.tags[CONTENT])


def test_a_later_launch_enters_only_what_is_new_and_moves_aliases_to_what_is_better(sweep: Sweep) -> None:
    sweep.launch([SPARSE, MIDDLE], on_frontier=[SPARSE, MIDDLE])
    better = {DENSE.name: (30.0, 0.94)}
    sweep.launch([SPARSE, MIDDLE, DENSE], NEWER, ends=better)
    assert sweep.versions() == ["1.0", "2.0", "4.0"]
    assert sweep.aliases()["best-l0-32"] == "4.0" and sweep.aliases()["best-l0-16"] == "1.0"
    sweep.launch([WORSE], NEWEST, on_frontier=[WORSE], ends={WORSE.name: (30, 0.5)})
    assert sweep.aliases()["best-l0-32"] == "4.0", "that of an earlier launch is still the best"


def test_on_other_tokens_an_alias_stays_until_its_holder_is_evaluated_there(sweep: Sweep) -> None:
    first = sweep.launch([MIDDLE])
    holder = sweep.server.run().info.run_id
    mirror = sweep.launch([DENSE], NEWER, OTHER_TOKENS, ends={DENSE.name: (25, 0.99)})
    assert set(sweep.aliases().values()) == {"2.0"}
    (notice,) = mirror.notices
    assert notice.startswith(f"{sweep.name} keeps best-l0-32, best-l0-64, best-l0-128, best-l0-256 where they are: ")
    assert notice.endswith(f"run again with --resume: {{source: {holder}, site: {SITE_1}}}")
    reference = Reference(  # what the line says is done
        source=holder, origin=holder, site=SITE_1, trained_at=SITE_1, architecture="gated", d_in=8, d_sae=16, sae="s"
    )
    add_reference(sweep.folder(NEWER), reference)
    save_evaluation(sweep.root, reference, OTHER_TOKENS, evaluation(l0=28, loss_recovered=0.7))
    sweep.enter(mirror)
    assert set(sweep.aliases().values()) == {"4.0"} and len(mirror.notices) == 1
    assert first.notices == []


def test_a_holder_that_is_evaluated_again_by_the_launch_itself_may_keep_or_lose_its_alias(sweep: Sweep) -> None:
    sweep.launch([MIDDLE])
    ends = {MIDDLE.name: (21.0, 0.7), DENSE.name: (25.0, 0.99)}
    mirror = sweep.launch([MIDDLE, DENSE], NEWER, OTHER_TOKENS, on_frontier=[DENSE], ends=ends)
    assert mirror.notices == [] and set(sweep.aliases().values()) == {"4.0"}
    assert sweep.versions() == ["2.0", "4.0"]


def test_an_sae_that_has_not_arrived_is_not_entered(sweep: Sweep) -> None:
    mirror = sweep.server.mirror()
    trial, directory = pair(sweep.root, 2, MIDDLE)
    finish(directory, trial, l0=20, loss_recovered=0.9)
    mirror.client.set_terminated = fail_in_call(mirror.client.set_terminated, 1)  # all is sent, which is not yet said
    with pytest.raises(ConnectionError):
        mirror.sync([Trial(trial, directory)])
    assert sweep.enter(mirror) == []
    assert sweep.name not in [model.name for model in sweep.server.client.search_registered_models()]
    mirror.sync([Trial(trial, directory)])
    assert sweep.enter(mirror) == [sweep.name]
    assert sweep.versions() == ["2.0"]


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("call", ["create_registered_model", "create_model_version", "set_registered_model_alias"])
def test_the_registry_is_whole_after_a_failure_in_any_call(sweep: Sweep, call: str, number: int) -> None:
    mirror = sweep.launch([SPARSE, MIDDLE], on_frontier=[])
    function = getattr(mirror.client, call)
    setattr(mirror.client, call, fail_in_call(function, number))
    if (call, number) != ("create_registered_model", 2):  # there is one site
        with pytest.raises(ConnectionError):
            sweep.enter(mirror)
    setattr(mirror.client, call, function)
    sweep.enter(mirror)
    assert sweep.versions() == ["1.0", "2.0"]
    assert sweep.aliases() == {alias: "1.0" if most < 20 else "2.0" for alias, most in ALIASES.items()}


def test_an_sae_whose_run_was_deleted_gives_its_alias_to_one_that_is_there(sweep: Sweep) -> None:
    sweep.launch([MIDDLE])
    sweep.server.client.delete_run(sweep.server.run().info.run_id)
    sweep.launch([SPARSE], NEWER, on_frontier=[SPARSE])
    assert set(sweep.aliases().values()) == {"1.0"}
    sweep.launch([MIDDLE], NEWEST)  # the same SAE, with a run that is there
    assert sweep.versions() == ["1.0", "2.0", "2.0"]
    assert sweep.aliases()["best-l0-32"] == "2.0"


def test_without_a_language_model_explained_variance_decides(sweep: Sweep) -> None:
    pairs = []
    for trial, l0, fvu in ((SPARSE, 10, 0.3), (MIDDLE, 12, 0.1)):
        directory = begin(sweep.root, trial)
        finish(directory, trial, l0=l0, fvu=fvu, loss_recovered=float("nan"))
        pairs.append(Trial(trial, directory))
    mirror = sweep.server.mirror()
    mirror.sync(pairs)
    sweep.enter(mirror)
    assert sweep.aliases()["best-l0-16"] == "2.0" and "best-l0-8" not in sweep.aliases()


def test_a_server_without_a_registry_is_one_line_and_a_launch_goes_on(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler)) as without:
        monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"http://127.0.0.1:{without.server_address[1]}")
        with quick_failure():
            mirror = sweep.launch([MIDDLE])
    (line,) = mirror.notices
    assert line.startswith("SAEs are not entered in MLflow's model registry (API request to endpoint ")
    assert "404" in line and "tracking.registry: false" in line
    mirror.close("FINISHED")
    assert sweep.server.runs("launch")[0].info.status == "FINISHED"


def test_a_registry_that_is_away_is_tried_again_as_the_rest_of_mlflow_is(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://127.0.0.1:1")
    with quick_failure(), pytest.raises(MlflowException, match="Max retries exceeded"):
        sweep.launch([MIDDLE])


@pytest.mark.parametrize(
    ("experiment", "site"),
    [
        ("quickstart", SITE_1),
        ("a/b: c", "model.layers.3.mlp"),
        ("läuft", "blocks.2.mlp.hook_in:hook_mlp_out"),
        ("..", "x"),
    ],
)
def test_names_are_those_that_mlflow_takes_and_of_no_other_experiment(
    server: Server, experiment: str, site: str
) -> None:
    name = model_name(experiment, site)
    server.client.create_registered_model(name)
    assert len(name) <= MAX_NAME and server.client.get_registered_model(name).name == name
    others = [(experiment + "~", site), (f"{experiment}~{site}", "x"), (experiment.replace("/", "=2F"), site + "0")]
    assert name not in [model_name(*other) for other in others]


def test_long_names_differ_where_their_ends_do(server: Server) -> None:
    one, other = (model_name("x" * 250, f"model.layers.{layer}.{'deep.' * 30}mlp") for layer in (3, 4))
    assert one != other and len(one) == MAX_NAME
    server.client.create_registered_model(one)


# ---- best by alias -------------------------------------------------------------------------------------


def test_best_by_alias_is_the_sae_that_holds_it(sweep: Sweep, tmp_path: Path) -> None:
    sweep.launch(ALL)
    experiment, uri = sweep.server.experiment, sweep.server.uri
    sae = gsae_ray.best(experiment, alias="best-l0-32", tracking_uri=uri)
    assert sae.cfg.metadata["frontier"]["l0"] == 20 and sae.cfg.hyperparameters["l1_coefficient"] == 2
    assert sae.cfg.metadata["choice"].startswith("best-l0-32 is version ")
    assert sae.cfg.metadata["choice"].endswith(f" of {sweep.name}, L0 20, loss recovered 0.9")
    out = tmp_path / "out"
    options = ["best", experiment, "--site", SITE_1, "--alias", "best-l0-32", "--tracking-uri", uri, "--out", str(out)]
    done = CliRunner().invoke(main, options)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[0] == f"{MIDDLE.name}: L0 20.00, loss recovered 0.9000, written to {out}"
    assert gsae_ray.load(out).cfg.metadata["choice"] == sae.cfg.metadata["choice"]


def test_what_has_no_alias_is_one_line(sweep: Sweep) -> None:
    experiment, uri = sweep.server.experiment, sweep.server.uri
    mirror = sweep.server.mirror()
    mirror.close("FINISHED")
    nothing = f"^alias: no SAE of '{experiment}' is in the model registry at sqlite.*running the sweep again .*"
    with pytest.raises(UserError, match=f"{nothing} in the alias's place$"):
        gsae_ray.best(experiment, alias="best-l0-32", tracking_uri=uri)
    with pytest.raises(UserError, match=f"{nothing}; the aliases that a launch gives: did you mean 'best-l0-32'"):
        gsae_ray.best(experiment, alias="best-l0-33", tracking_uri=uri)
    sweep.launch(ALL)
    with pytest.raises(
        UserError, match="^alias: no 'best-l0-33' in the registered model .*; did you mean 'best-l0-32'"
    ):
        gsae_ray.best(experiment, alias="best-l0-33", tracking_uri=uri)
    with pytest.raises(UserError, match=f"^site: no 'blocks.9' of '{experiment}' is in the model registry"):
        gsae_ray.best(experiment, site="blocks.9", alias="best-l0-32", tracking_uri=uri)


@pytest.mark.parametrize(
    "beside",
    [{"max_l0": 40}, {"min_loss_recovered": 0.9}, {"knee": True}, {"by": "kl"}, {"launch": "all"}, {"tokens": 1024}]
    + [{"storage": "here"}, {"with_references": True}],
    ids=lambda beside: next(iter(beside)),
)
def test_an_alias_excludes_what_would_choose(beside: dict[str, object]) -> None:
    with pytest.raises(
        UserError, match=f"^alias: best-l0-32 names one SAE of a site, so leave {next(iter(beside))} out"
    ):
        gsae_ray.best("experiment", alias="best-l0-32", **beside)  # type: ignore[arg-type]
