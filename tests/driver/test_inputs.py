"""What MLflow is told that the runs of a launch were made from."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import prepared
import synthetic_sweeps

from gsae_ray.driver.inputs import inputs_of
from gsae_ray.driver.prepare import prepare


def test_text_is_named_by_where_it_is_and_the_model_by_what_it_is(tmp_path: Path) -> None:
    file = prepared.write_jsonl(tmp_path / "text.jsonl", prepared.DOCUMENTS)
    found = prepare(prepared.sweep(file), tmp_path / "storage")
    inputs = inputs_of(found)
    train, heldout = inputs.data
    assert (train.name, train.source_type, train.source) == (str(file), "local", {"uri": file.as_uri()})
    assert (train.fingerprint, train.rows) == (found.source.provenance["tokens"], sum(found.layout.rows))
    assert (heldout.name, heldout.context) == (f"{file} (held out)", "evaluation")
    assert (heldout.fingerprint, heldout.rows) == (found.evaluation.fingerprint, found.source.heldout_rows)
    assert inputs.model is not None
    assert (inputs.model.name, inputs.model.fingerprint) == ("builtin", found.source.provenance["model"])
    assert inputs.model.params == {"name": "builtin", "dtype": "float32", "context_size": "16"}

    text = found.sweep.text.model_copy(update={"name": "owner/text", "revision": "abc", "subset": "en"})
    on_hub = inputs_of(dataclasses.replace(found, sweep=found.sweep.model_copy(update={"dataset": text})))
    expected = {"path": "owner/text", "config_name": "en", "split": "train", "revision": "abc"}
    assert (on_hub.data[0].source_type, on_hub.data[0].source) == ("hugging_face", expected)


def test_synthetic_rows_have_no_language_model(tmp_path: Path) -> None:
    inputs = inputs_of(prepare(synthetic_sweeps.sweep(), tmp_path))
    assert inputs.model is None
    assert [(data.name, data.source_type) for data in inputs.data] == [
        ("synthetic", "local"),
        ("synthetic (held out)", "local"),
    ]
    assert inputs.data[0].fingerprint != inputs.data[1].fingerprint
