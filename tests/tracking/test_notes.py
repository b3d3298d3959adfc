"""What people read of a launch in MLflow: its note, its table, and what its runs were made from."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from mirrors import LAUNCH_ID, Server, pair
from mlflow.utils.validation import MAX_TAG_VAL_LENGTH
from trials import FINGERPRINT, REQUEST, expand

from gsae_ray.tracking.inputs import Data, Inputs, LanguageModel
from gsae_ray.tracking.mirror import Mirror
from gsae_ray.tracking.note import MAX_NOTE, compose, merged, plain, room_beside
from gsae_ray.tracking.pages import experiment_pages, run_page, trials_page

NOTE = "mlflow.note.content"
SENTENCES = [
    "gated needs 0.5× [0.4, 0.6] the active features of standard at equal loss recovered, blocks.1.hook_mlp_out"
]
TABLE = [["architecture", "l0"], ["gated | tied=false", "12.5"], ["standard", "30"]]
FILES = ["frontier.csv", "frontier.png"]
WHERE = "7", LAUNCH_ID, "run"


def test_a_note_has_sentence_picture_table_and_links() -> None:
    lines = compose(*WHERE, SENTENCES, TABLE, FILES, ["small~blocks.1.hook_mlp_out"]).splitlines()
    assert lines[0] == "<!-- gsae-ray -->" and lines[-1] == "<!-- /gsae-ray -->"
    assert lines[2].startswith(r"gated needs 0.5× \[0.4, 0.6\] the active") and lines[2].endswith(r"hook\_mlp\_out")
    assert lines[4] == "![frontier.png](get-artifact?path=frontier.png&run_id=run)"
    assert lines[6:10] == [
        "| architecture | l0 |",
        "| --- | --- |",
        r"| gated \| tied=false | 12.5 |",
        "| standard | 30 |",
    ]
    assert f"[the trials]({trials_page('', '7', LAUNCH_ID)})" in lines[11]
    assert "[frontier.csv](#/experiments/7/runs/run/artifacts/frontier.csv?workflowType=machine_learning)" in lines[11]
    assert lines[13].startswith(r"In the model registry: [small\~blocks.1.hook\_mlp\_out](#/models/small~blocks.1.hook")


def test_a_note_is_never_longer_than_mlflow_takes() -> None:
    assert MAX_NOTE == MAX_TAG_VAL_LENGTH
    long = [TABLE[0], *([f"gated {number}", "1" * 50] for number in range(400))]
    note = compose(*WHERE, SENTENCES, long, FILES)
    assert MAX_NOTE - 100 < len(note) <= MAX_NOTE
    shown = sum(line.startswith("| gated") for line in note.splitlines())
    assert f"… and {400 - shown} more" in note and note.endswith("<!-- /gsae-ray -->")
    many = compose(*WHERE, SENTENCES * 100, long, FILES, [f"model {number}" for number in range(300)])
    assert len(many) <= MAX_NOTE and "… and 92 more: gsae-ray compare prints them" in many
    for room in (0, 10, 60, 300, 1000):
        assert len(compose(*WHERE, SENTENCES, TABLE, FILES, room=room)) <= room


@pytest.mark.parametrize("before", ["", "mine", "mine\n\n" * 100])
def test_what_people_wrote_stays_and_ours_is_replaced(before: str) -> None:
    first = merged(before, compose(*WHERE, SENTENCES, [], FILES, room=room_beside(before)))
    second = merged(first, compose(*WHERE, [], TABLE, FILES, room=room_beside(first)))
    assert before in first and before in second and second.count("<!-- gsae-ray -->") == 1
    assert SENTENCES[0][:10] in first and SENTENCES[0][:10] not in second
    assert len(merged(before, "x" * room_beside(before))) <= MAX_NOTE


def test_text_is_shown_as_it_is() -> None:
    assert plain("a_b *c* <d> & [e]") == r"a\_b \*c\* &lt;d&gt; &amp; \[e\]"


def test_links_open_the_pages_of_training() -> None:
    for page in (trials_page("http://u:p@host/", "7"), run_page("http://host", "7", "run")):
        assert page.startswith("http://") and "u:p" not in page and "?workflowType=machine_learning" in page
    lines = experiment_pages("http://host", {str(number): str(number) for number in range(7)})
    assert len(lines) == 6 and lines[-1] == "and 2 more" and lines[0] == f"0: {trials_page('http://host', '0')}"


def test_the_launchs_run_carries_note_and_table_once(server: Server, tmp_path: Path) -> None:
    table = tmp_path / "frontier.json"
    table.write_text(pd.DataFrame({"l0": [1.0, None]}).to_json(orient="split", index=False))
    for _ in range(2):
        mirror = server.mirror()
        mirror.log_launch({}, [table])
        mirror.describe(SENTENCES, TABLE, ["frontier.json"], ["frontier.json"])
    (run,) = server.runs("launch")
    assert run.data.tags[NOTE].count("| standard | 30 |") == 1
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [{"path": "frontier.json", "type": "table"}]
    server.client.set_tag(run.info.run_id, NOTE, f"seen by me\n\n{run.data.tags[NOTE]}")
    server.mirror().describe([], TABLE, [])
    assert server.runs("launch")[0].data.tags[NOTE].startswith("seen by me\n\n<!-- gsae-ray -->")


INPUTS = Inputs(
    (
        Data("owner/text", "training", "a" * 64, {"path": "owner/text", "split": "train"}, "hugging_face", 1024),
        Data("owner/text (held out)", "evaluation", FINGERPRINT, {"path": "owner/text"}, "hugging_face", 256),
    ),
    LanguageModel("EleutherAI/pythia-70m", "b" * 64, {"name": "EleutherAI/pythia-70m", "dtype": "float32"}),
)


def test_every_run_says_what_it_was_made_from_once(server: Server, tmp_path: Path) -> None:
    trials = [pair(tmp_path, 1, trial) for trial in expand(l1_coefficient=[1.0, 2.0])]
    for _ in range(2):
        mirror = Mirror(server.uri, server.experiment, LAUNCH_ID, REQUEST, inputs=INPUTS)
        mirror.open_launch("small", {})
        mirror.sync(trials)
    runs = [*server.runs("launch"), *server.runs()]
    assert len(runs) == 3 and mirror.notices == []
    for run in runs:
        found = {d.dataset.name: d for d in run.inputs.dataset_inputs}
        contexts = {name: d.tags[0].value for name, d in found.items()}
        assert contexts == {"owner/text": "training", "owner/text (held out)": "evaluation"}
        assert found["owner/text (held out)"].dataset.digest == FINGERPRINT[:36]
        (model,) = server.client.get_run(run.info.run_id).inputs.model_inputs
    (known,) = server.client.search_logged_models([mirror.experiment_id])
    assert (known.model_id, known.name, str(known.status)) == (model.model_id, "EleutherAI-pythia-70m", "READY")
    assert known.params == {"name": "EleutherAI/pythia-70m", "dtype": "float32"}
