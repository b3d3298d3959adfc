"""A frontier on the hub: what is pushed to a server that speaks its protocol, by the hub's own client, comes back."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from environments import run_in
from hub_server import OTHER_TOKEN, OWNER_TOKEN, Done, Hub, commands, refusal
from recorder import NEWER, Recorder, assert_same_weights
from servers import serving
from trials import FINGERPRINT, SITE_1, SITE_2, begin, expand, random_sae

from gsae_ray.config.trial import TrialSpec
from gsae_ray.evaluation.metrics import Evaluation
from gsae_ray.results.push import folder_names
from gsae_ray.saes import SAE, load
from gsae_ray.saes.serialise import weight_bytes
from gsae_ray.storage.evaluations import EvaluationRequest
from gsae_ray.storage.trial_directory import Trial
from gsae_ray.tracking.mirror import Mirror

REPO = "owner/small-saes"
CONTEXTS = 40
COMMIT = "0123456789abcdef0123456789abcdef01234567"
GATED = expand("gated", layers=(1, 2), l1_coefficient=[1.0, 2.0])
STANDARD = expand("standard", l1_coefficient=[0.5])


def sums(l0: float, loss_recovered: float, seed: int) -> Evaluation:
    """An evaluation whose sums differ from context to context."""
    rows = 10.0 + np.arange(CONTEXTS) % 3
    noise = 1 + 0.1 * np.random.default_rng(seed).normal(size=CONTEXTS)
    found = {"rows": rows, "active": rows * l0 * noise * rows.sum() / (rows * noise).sum(), "positions": rows}
    found |= {"x_sq": rows * 8, "x_hat_sq": rows * 6, "x_hat_x": rows * 6, "error_sq": rows * 2, "centred_sq": rows * 8}
    found |= {"nll_clean": rows * 3, "nll_spliced": rows * (3 + 4 * (1 - loss_recovered)), "nll_zero": rows * 7}
    return Evaluation.of({name: list(values) for name, values in found.items()} | {"kl": list(rows)}, 0.75)


def record(folder: Path, experiment: str, ends: list[tuple[TrialSpec, Evaluation]], **metadata: Any) -> str:
    """Records finished trials whose SAEs carry metadata, as sweeps save them. Returns MLflow's address."""
    uri = Recorder(folder).uri
    mirror = Mirror(uri, experiment, NEWER, EvaluationRequest(FINGERPRINT, (None,)))
    mirror.open_launch("small", {})
    pairs = []
    for trial, evaluation in ends:
        directory = begin(folder / experiment, trial)
        directory.finish(saved(trial, **metadata))
        directory.save_evaluation(FINGERPRINT, trial.training.tokens, evaluation)
        pairs.append(Trial(trial, directory))
    mirror.sync(pairs)
    mirror.close("FINISHED")
    return uri


def saved(trial: TrialSpec, **metadata: Any) -> SAE:
    sae = random_sae(trial, seed=round(trial.hyperparameters["l1_coefficient"]))
    training = {**trial.to_json()["training"], "recipe": trial.recipe}
    sae.cfg = sae.cfg.model_copy(update={"metadata": {**metadata, "training": training}})
    return sae


class Pushed(NamedTuple):
    """What became of a few pushes of one sweep, and of what cannot be pushed."""

    hub: Hub
    folder: Path
    done: dict[str, Done]
    """By what they are called in `pushes`, or by the arguments of a refused one."""


BLOCK = """
import re, pathlib, torch
(block,) = re.findall(r"```python\\n(import gsae_ray\\n.*?)```", pathlib.Path("dry/README.md").read_text(), re.DOTALL)
names = {"activations": torch.ones(2, 8)}
exec(block, names)
assert names["features"].shape == (2, 16)
names["sae"].save("came")
"""
"""Runs the lines of the model card that load an SAE with gsae-ray, and saves it as `came`."""

MISTAKES: list[tuple[str | None, list[str], str]] = [
    (None, ["swept", "--tokens", "1024"], "--repo: the hub wants a token that may write; set HF_TOKEN, or"),
    (OTHER_TOKEN, ["swept"], "--repo: cannot push to owner/no: the hub refuses it with status 403 (You don't have"),
    (OTHER_TOKEN, ["swept", "--site", SITE_2], "; see that HF_TOKEN is of an account that may have it"),
    (OWNER_TOKEN, ["swept", "--private", "--repo", REPO], f"--private: {REPO} is there already, and public; "),
    (OWNER_TOKEN, ["swept", "--repo", "small"], "--repo: 'small' is no repository of the hub; give owner/name"),
    (OWNER_TOKEN, ["swept", "--repo", "owner/a/b"], "--repo: 'owner/a/b' is no repository of the hub"),
    (OWNER_TOKEN, ["swept", "--repo", "owner/a--b"], "--repo: Cannot have -- or .. in repo_id: 'owner/a--b'"),
    (OWNER_TOKEN, ["swepd"], "experiment: no 'swepd'"),
    (OWNER_TOKEN, ["swept", "--site", "blocks.3"], "site: no 'blocks.3' in 'swept'"),
    (OWNER_TOKEN, ["dead"], f"push: no SAE of 'dead' is on a frontier; {GATED[0].name} is left out: L0 = 0"),
    (OWNER_TOKEN, ["local"], "--base-model: the sweep's language model was 'models/mine', a folder; give its name"),
    (None, ["swept", "--dry-run", "full"], "--dry-run: full has files; give a new or empty folder"),
    (None, ["swept", "--dry-run", "full/file"], "--dry-run: full/file is a file; give a folder"),
]


def shared(trial: TrialSpec) -> str:
    """The folder of an SAE at site 2, of which two have the same L0 when it is rounded."""
    return f"{SITE_2}/width_16/l0_7_{hashlib.sha256(weight_bytes(saved(trial))).hexdigest()[:8]}"


FRONTIER = {
    f"{SITE_1}/width_16/l0_12": GATED[0],
    f"{SITE_1}/width_16/l0_31": GATED[1],
    shared(GATED[2]): GATED[2],
    shared(GATED[3]): GATED[3],
}
"""Folder in the repository -> the trial whose SAE it holds."""


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pushed]:
    """A sweep of five SAEs, four on the frontier, and others that cannot be pushed; all in one process of a client."""
    folder = tmp_path_factory.mktemp("push")
    (folder / "full").mkdir()
    (folder / "full/file").touch()
    model = {"name": "some/model", "context_size": 128, "revision": COMMIT}
    dataset = {"name": "texts/corpus.jsonl", "prepend_bos": True, "revision": None}  # a path, as seen from elsewhere
    versions = {"gsae-ray": "0.0.9"}
    ends = [
        (GATED[0], sums(12.4, 0.95, 0)),
        (GATED[1], sums(31.2, 0.99, 1)),
        (STANDARD[0], sums(35.0, 0.97, 2)),
        (GATED[2], sums(7.0, 0.9, 3)),
        (GATED[3], sums(7.3, 0.91, 4)),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # MLflow puts the artifacts of an SQLite store into the working directory
        uri = record(folder, "swept", ends, model=model, dataset=dataset, versions=versions)
        record(folder, "local", ends[:1], model={"name": "models/mine", "revision": None})
        record(folder, "dead", [(GATED[0], sums(0.0, 0.5, 0))])
    push, on = ["swept", "--license", "mit", "--repo", REPO], ["--tracking-uri", uri]
    pushes: dict[str, tuple[str | None, list[str] | str]] = {
        "dry": (None, ["push", *push, "--dry-run", "dry", *on]),
        "once": (OWNER_TOKEN, ["push", *push, *on]),
        "twice": (OWNER_TOKEN, ["push", *push, *on]),
        "private": (OWNER_TOKEN, ["push", "swept", "--site", SITE_2, "--repo", "owner/own", "--private", *on]),
        "named": (OWNER_TOKEN, ["push", "local", "--base-model", "some/named", "--repo", "owner/named", *on]),
        "loaded": (None, BLOCK),
        **{" ".join(words): (token, ["push", "--repo", "owner/no", *on, *words]) for token, words, _ in MISTAKES},
    }
    assert len(pushes) == 6 + len(MISTAKES)
    with serving(Hub()) as hub:
        yield Pushed(hub, folder, dict(zip(pushes, commands(hub.uri, folder, *pushes.values()), strict=True)))


@pytest.mark.slow
def test_a_frontier_goes_to_the_hub_in_one_commit_and_again_changes_nothing(pushed: Pushed) -> None:
    hub, folder, done = pushed
    assert done["dry"] == Done(0, "written to dry; nothing was uploaded\n", "", "None")
    assert done["once"] == done["twice"] == Done(0, f"pushed to {hub.uri}/{REPO}\n", "", "None")
    created, commit = hub.repositories[REPO].commits
    assert commit.message.startswith("4 SAEs of swept, by gsae-ray ") and not created.files
    written = {path.relative_to(folder / "dry").as_posix(): path for path in (folder / "dry").rglob("*")}
    assert {name: path.read_bytes() for name, path in written.items() if path.is_file()} == commit.files
    files = {f"{name}/{file}" for name in FRONTIER for file in ("cfg.json", "sae_weights.safetensors")}
    assert commit.files.keys() == files | {"README.md", "frontier.png"}
    assert commit.files["frontier.png"].startswith(b"\x89PNG")
    check_card(commit.files["README.md"].decode())


@pytest.mark.slow
def test_what_was_pushed_comes_back_by_its_hub_id_without_paths_of_this_machine(pushed: Pushed) -> None:
    assert pushed.done["loaded"] == Done(0, "", "", "None")
    came = load(pushed.folder / "came")
    assert_same_weights(came, saved(GATED[0]))
    for name, trial in FRONTIER.items():
        sae = load(pushed.folder / "dry" / name)
        assert_same_weights(sae, saved(trial))
        assert sae.cfg.metadata["dataset"] == {"name": "corpus.jsonl", "prepend_bos": True, "revision": None}
        assert sae.cfg.metadata["training"]["lr"] == 1e-3
        assert sae.cfg == came.cfg or trial != GATED[0]


@pytest.mark.slow
def test_a_repository_may_be_private_and_a_model_that_was_a_folder_named(pushed: Pushed) -> None:
    assert pushed.done["private"].exit_code == pushed.done["named"].exit_code == 0
    assert pushed.hub.repositories["owner/own"].private and not pushed.hub.repositories[REPO].private
    card = pushed.hub.repositories["owner/named"].commits[-1].files["README.md"].decode()
    assert yaml.safe_load(card.split("---\n")[1])["base_model"] == ["some/named"] and "models/" not in card


@pytest.mark.slow
def test_what_cannot_be_pushed_is_one_line(pushed: Pushed) -> None:
    for _, words, expected in MISTAKES:
        assert expected in refusal(pushed.done[" ".join(words)]), words
    assert pushed.hub.repositories.keys() == {REPO, "owner/own", "owner/named"}


def check_card(card: str) -> None:
    """Front matter, tables with intervals that are computed here once more, and the recipe."""
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "saelens",
        "tags": ["sparse-autoencoder", "mechanistic-interpretability", "gsae-ray"],
        "license": "mit",
        "base_model": ["some/model"],
    }
    assert body.startswith("\n# small-saes\n") and "![" in body and "(frontier.png)" in body
    assert f'SAE.from_pretrained("{REPO}", "{SITE_1}/width_16/l0_12")' in body
    rows = {cells[1].strip("` "): cells[2:-1] for line in body.splitlines() if len(cells := line.split("|")) > 3}
    head, lines = rows.pop("folder"), {name: cells for name, cells in rows.items() if name in FRONTIER}
    assert list(lines) == list(FRONTIER)
    assert [cell.strip() for cell in head][:5] == ["architecture", "d sae", "sparsity", "l0", "loss recovered"]
    l0, loss_recovered = lines[f"{SITE_1}/width_16/l0_31"][3:5]
    value, low, high = map(float, re.findall(r"[\d.]+", l0))
    found = sums(31.2, 0.99, 1).sequences
    draws = np.random.RandomState(0).multinomial(CONTEXTS, np.full(CONTEXTS, 1 / CONTEXTS), size=1000)
    drawn = draws @ np.array(found["active"]) / (draws @ np.array(found["rows"]))
    assert value == 31.2 and [low, high] == pytest.approx(np.percentile(drawn, [2.5, 97.5]), rel=1e-3)
    assert low < 31.2 < high and loss_recovered.strip() == "0.99 [0.99, 0.99]"
    assert f"95 % bootstrap intervals over the {CONTEXTS} held-out contexts" in body
    recipe = yaml.safe_load(body.partition("```yaml\n")[2].partition("```")[0])
    assert recipe["model"] == {"name": "some/model", "context_size": 128, "revision": COMMIT}
    assert recipe["dataset"]["name"] == "corpus.jsonl" and "texts/" not in card
    assert "that no other of their site beats in both L0 and loss recovered. Trained with gsae-ray 0.0.9." in body
    assert recipe["training"]["tokens"] == 1024 and recipe["training"]["recipe"] == GATED[0].recipe
    assert recipe["hyperparameters"] == {"l1_coefficient": "1 or 2", "tied": True, "learn_r_mag": True}


@pytest.mark.slow
@pytest.mark.timeout(1200)  # makes an environment
def test_sae_lens_loads_what_was_pushed_by_the_lines_of_the_card(
    pushed: Pushed, neighbours_python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = (pushed.folder / "dry/README.md").read_text()
    (block,) = re.findall(r"```python\n(from sae_lens import .*?)```", card, re.DOTALL)
    script, found = tmp_path / "script.py", tmp_path / "features.pt"
    script.write_text(f"import torch\nactivations = torch.ones(2, 8)\n{block}\ntorch.save(features, {str(found)!r})\n")
    for name, value in {"HF_ENDPOINT": pushed.hub.uri, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}.items():
        monkeypatch.setenv(name, value)
    run_in(neighbours_python, script)
    expected = saved(GATED[0]).encode(torch.ones(2, 8))
    torch.testing.assert_close(torch.load(found), expected, rtol=0, atol=1e-5)
    assert (expected > 0).any()


def test_folders_are_named_by_site_width_and_rounded_l0() -> None:
    rows = pd.DataFrame(
        [(SITE_1, 16, 38.4), (SITE_1, 32, 37.6), ("model.mlp:output", 16, 0.2)], columns=["site", "d_sae", "l0"]
    )
    names = ["width_16/l0_38", "width_32/l0_38", "model.mlp=3Aoutput/width_16/l0_0"]
    assert folder_names(rows) == [f"{SITE_1}/{names[0]}", f"{SITE_1}/{names[1]}", names[2]]
