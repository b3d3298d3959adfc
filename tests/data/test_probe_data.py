"""Labelled text to probe sets: labels come to tokens by characters, documents to halves, and mistakes are one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest

from gsae_ray.config.explain import explain
from gsae_ray.config.sweep import Sweep
from gsae_ray.data.probe_data import LEAST_DOCUMENTS, probe_sets
from gsae_ray.data.probe_set import NO_PART, ProbeSet, ProbeSets
from gsae_ray.data.tokens import PADDING
from gsae_ray.errors import UserError
from gsae_ray.language_model.loading import load_tokenizer

SWEEP: dict[str, Any] = {
    "name": "s",
    "model": {"name": "builtin", "context_size": 32},
    "dataset": {"name": "builtin"},
    "sites": {"layers": [1], "points": ["resid_post"]},
    "saes": [{"architecture": "gated", "widths": [16], "l1_coefficient": 1}],
    "training": {"tokens": 1024, "batch_size": 64},
}
TEXT = "def function(argument):\n    return argument + 1\n"


def sweep(probes: Any, **sections: Any) -> Sweep:
    return Sweep.model_validate({**SWEEP, "evaluation": {"probes": probes}, **sections})


def sets_of(tmp_path: Path, lines: list[Any], tokens: int = 2000) -> ProbeSets:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = probe_sets(sweep([{"name": "own", "data": str(path), "tokens": tokens}]))
    assert found is not None
    return found


def set_of(tmp_path: Path, lines: list[Any], tokens: int = 2000) -> ProbeSet:
    (one,) = sets_of(tmp_path, lines, tokens).sets
    return one


def labelled(classes: int, documents: int) -> list[dict[str, Any]]:
    return [{"text": f"{TEXT}# {index}\n", "label": f"class {index % classes}"} for index in range(documents)]


def test_no_probes_are_asked_for_by_default() -> None:
    assert probe_sets(sweep(None)) is None and Sweep.model_validate(SWEEP) == sweep(None)


def test_the_built_in_tasks_are_token_labels_of_whole_documents() -> None:
    found = probe_sets(sweep("builtin"))
    assert found is not None
    (one,) = found.sets
    names = ("in_string", "in_comment", "in_brackets", "in_nested_brackets", "before_keyword", "definition")
    assert {f"python.{name}" for name in names} <= set(one.tasks) and not one.pooled
    assert 18_000 < one.rows < 20_200
    assert (one.labels[:, ~one.kept_CT] == NO_PART).all() and (one.labels[0][one.kept_CT] != NO_PART).all()
    for labels_CT in one.labels:
        for label in (0, 1):
            documents = np.unique(one.document_C[(labels_CT == label).any(1)])
            assert min(one.fitted_M[documents].sum(), (~one.fitted_M[documents]).sum()) >= LEAST_DOCUMENTS
    tokenizer = load_tokenizer(sweep("builtin").language_model)
    begun = []
    for tokens_T, labels_T in zip(one.tokens_CT, one.labels[one.tasks.index("python.in_comment")], strict=True):
        first = np.flatnonzero((labels_T[:-1] == 0) & (labels_T[1:] == 1)) + 1
        begun += [tokenizer.decode([token]).strip()[:1] for token in tokens_T[first]]
    assert len(begun) > 50 and set(begun) == {"#"}


def test_spans_label_the_tokens_whose_first_visible_character_they_hold(tmp_path: Path) -> None:
    start = TEXT.index("argument")
    again = TEXT.index("argument", start + 1)
    assert TEXT[28:34] == "return"
    spans = [[start, start + 8, "name"], [again, again + 8, "name"], [28, 34, "keyword"]]
    one = set_of(tmp_path, [{"text": f"{TEXT}# {index}\n", "spans": spans} for index in range(8)])
    assert one.tasks == ("own.keyword", "own.name") and not one.pooled and len(one.fitted_M) == 8
    tokenizer = load_tokenizer(sweep(None).language_model)
    for tokens_T, labels_KT in zip(one.tokens_CT, one.labels.transpose(1, 0, 2), strict=True):
        named = [tokenizer.decode([t]) for t, label in zip(tokens_T, labels_KT[1], strict=True) if label == 1]
        assert "".join(named).replace(" ", "") == "argumentargument"
        assert (labels_KT[:, 0] == NO_PART).all(), "the first position is no row"
        assert (labels_KT[:, tokens_T == PADDING] == NO_PART).all()


def test_a_label_is_of_a_document_and_halves_have_each_class_alike(tmp_path: Path) -> None:
    one = set_of(tmp_path, labelled(3, 27))
    assert one.pooled and one.tasks == ("own.class_0", "own.class_1", "own.class_2")
    assert one.labels.shape == (3, 27) and (one.labels.sum(0) == 1).all()
    for labels_M in one.labels:
        assert sorted([(labels_M[one.fitted_M] == 1).sum(), (labels_M[~one.fitted_M] == 1).sum()]) == [4, 5]
    two = set_of(tmp_path, labelled(2, 20))
    assert two.tasks == ("own",) and two.labels.sum() == 10, "of two classes one is a task"


def test_so_many_rows_are_taken_in_an_order_that_a_sorted_file_does_not_decide(tmp_path: Path) -> None:
    lines = sorted(labelled(2, 400), key=lambda line: line["label"])
    one = set_of(tmp_path, lines, tokens=1000)
    assert 1000 <= one.rows < 1040 and 15 < one.labels.sum() < one.labels.shape[1] - 15


def test_the_fingerprint_is_of_all_that_is_taken(tmp_path: Path) -> None:
    lines = labelled(2, 20)
    same = sets_of(tmp_path, lines).fingerprint
    assert same == sets_of(tmp_path, lines).fingerprint
    others = [[*lines[1:], lines[0]], [{**lines[0], "label": "class 1"}, *lines[1:]], lines[:-1]]
    assert len({same, *(sets_of(tmp_path, other).fingerprint for other in others)}) == 4


MISTAKES: list[tuple[list[Any], str]] = [
    ([], "there is no document in"),
    ([{"text": "a"}], "data.jsonl, line 1: it has neither label nor spans"),
    (
        [{"text": "a", "label": 1}, {"text": "b", "label": 1, "spans": []}],
        "line 2: it has both label and spans; give one",
    ),
    ([{"label": 1}], "line 1: no text; a line is"),
    (["a"], "line 1: no text; a line is"),
    ([{"text": "a", "label": None}], "line 1: label is no text and no integer"),
    ([{"text": "a", "spans": [[0, 1]]}], r"line 1: the span \[0, 1\] is not \[start, end, label\]"),
    ([{"text": "a", "spans": [[0, 2, "x"]]}], r"the span \[0, 2, 'x'\] is not of characters of its text, 0 to 1"),
    ([{"text": "a", "spans": []}], "no document has a span"),
    ([{"text": "a", "label": 1}, {"text": "b", "spans": []}], "some documents have a label, and others spans"),
    (labelled(1, 20), "every document has the label 'class 0'; a probe takes two or more"),
    (
        labelled(2, 10),
        "of the 10 documents that are taken 3 with label 'class 1' are fitted, and 2 scored; a probe takes 4 of each",
    ),
    (labelled(40, 80), "40 different labels; at most 32"),
]


@pytest.mark.parametrize(("lines", "said"), MISTAKES)
def test_a_mistake_in_the_data_is_one_line(tmp_path: Path, lines: list[Any], said: str) -> None:
    with pytest.raises(UserError, match=rf"^evaluation\.probes\.0: .*{said}") as error:
        sets_of(tmp_path, lines)
    assert "\n" not in str(error.value)


def test_what_is_no_json_and_what_is_not_there_is_said(tmp_path: Path) -> None:
    own = sweep([{"name": "own", "data": str(tmp_path / "bad.jsonl")}])
    for wrong, reason in (('{"text": ', "Expecting value, at character 11"), ("[" * 100_000, ".*recursion.*")):
        (tmp_path / "bad.jsonl").write_text('{"text": "a", "label": 1}\n' + wrong + "\n")
        with pytest.raises(UserError, match=rf"^evaluation\.probes\.0: bad\.jsonl, line 2: no JSON \({reason}\)$"):
            probe_sets(own)
    (tmp_path / "bad.jsonl").write_bytes(b"\xff\n")
    with pytest.raises(UserError, match=r"^evaluation\.probes\.0: data: bad\.jsonl cannot be read: 'utf-8' codec"):
        probe_sets(own)
    with pytest.raises(UserError, match=r"^evaluation\.probes\.0: data: no file 'nowhere\.jsonl'"):
        probe_sets(sweep([{"name": "own", "data": "nowhere.jsonl"}]))


@pytest.mark.parametrize(
    ("probes", "said"),
    [
        ("builtins", "evaluation.probes: 'builtins'; give builtin, or a list of labelled data sets"),
        ([], "evaluation.probes: an empty list"),
        ([{"name": "a", "data": "x"}] * 2, "evaluation.probes: two of the data sets have the name 'a'"),
        ([{"name": "a"}], "evaluation.probes.0.data: missing"),
        ([{"name": "a", "data": "x", "token": 1}], "evaluation.probes.0.token: unknown key"),
    ],
)
def test_a_mistake_in_the_sweep_file_is_one_line(probes: Any, said: str) -> None:
    with pytest.raises(pydantic.ValidationError) as error:
        sweep(probes)
    assert explain(error.value, Sweep).startswith(said)


def test_sources_without_a_language_model_refuse_probes(tmp_path: Path) -> None:
    drawn = {key: SWEEP[key] for key in ("name", "saes", "training")}
    model = {"name": "synthetic", "d_in": 8, "features": 16, "active": 2}
    files = {**drawn, "sites": SWEEP["sites"], "activations": {"path": str(tmp_path)}}
    for sections in ({**drawn, "model": model}, files):
        with pytest.raises(pydantic.ValidationError) as error:
            Sweep.model_validate({**sections, "evaluation": {"probes": "builtin"}})
        assert "evaluation.probes: " in explain(error.value, Sweep)


def test_of_a_long_document_the_contexts_are_taken_that_hold_what_is_rare(tmp_path: Path) -> None:
    """Twenty documents of some thirty contexts, of which one alone has a span, at another place in each."""
    lines = []
    for index in range(20):
        start = (5 + index) * len(TEXT) + TEXT.index("argument")
        lines.append({"text": TEXT * 60, "spans": [[start, start + 8, "rare"]]})
    one = set_of(tmp_path, lines, tokens=600)
    assert len(one.fitted_M) == len(one.tokens_CT) == 20
    found = (one.labels[0] == 1).any(1)
    assert found.sum() >= 18, "but where it is at a first position, which is no row"
