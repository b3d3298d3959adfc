"""Reading a sweep file: numbers, defaults, overrides, and files that are no sweep."""

from __future__ import annotations

from pathlib import Path

import pytest
from sweep_texts import ONE_TRIAL, TEXT, error_of, expand, load_text

from gsae_ray.config.load import load_sweep

# ---- reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.e-3", "1.0e-3", ".1e-2", "0.001", "+1e-3", "1_0e-4"])
def test_1e_minus_3_is_a_number(path: Path, text: str) -> None:
    assert load_sweep(path, [f"training.lr={text}"]).training.lr == (0.001,)


@pytest.mark.parametrize("text", ["1e4", "10_000", "10000.0", "1e+4"])
def test_a_count_may_be_written_as_a_float(path: Path, text: str) -> None:
    tokens = load_sweep(path, [f"training.tokens={text}"]).training.tokens
    assert tokens == 10_000
    assert type(tokens) is int


def test_a_scalar_may_stand_for_a_list_of_one(path: Path) -> None:
    sweep = load_sweep(path, ["sites={layers: 1, points: resid_post}", "saes.0.widths=32", "saes.1.sites=null"])
    assert [site.name for site in sweep.used_sites] == ["blocks.1.hook_resid_post"]


def test_what_is_left_out_has_a_default(tmp_path: Path) -> None:
    sweep = load_text(tmp_path, ONE_TRIAL)
    assert sweep.experiment_name == "one"
    assert sweep.shuffle_tokens == 2500  # a quarter of the tokens
    assert load_text(tmp_path, ONE_TRIAL, "training.tokens=1e9").shuffle_tokens == 1_000_000
    assert load_text(tmp_path, ONE_TRIAL, "dataset.shuffle_tokens=64").shuffle_tokens == 64
    training = expand(sweep)[0].training
    assert (training.log_every_tokens, training.checkpoint_every_tokens) == (200, 2000)


@pytest.mark.parametrize("date", ["2024-05-01", "2024-13-45"])
def test_a_sweep_may_be_named_by_a_date(path: Path, date: str) -> None:
    assert load_sweep(path, [f"name={date}"]).name == date


def test_merge_keys_of_yaml_work(tmp_path: Path) -> None:
    entry = "  - &gated {architecture: gated, widths: [32], l1_coefficient: [1]}\n"
    merged = entry + "  - {<<: *gated, l1_coefficient: [2]}\n"
    text = ONE_TRIAL.replace("  - {architecture: gated, widths: [32], l1_coefficient: [1]}\n", merged)
    assert text != ONE_TRIAL
    trials = expand(load_text(tmp_path, text))
    assert [trial.hyperparameters["l1_coefficient"] for trial in trials] == [1, 2]


# ---- overrides ------------------------------------------------------------------------------------------------------


def test_set_overrides_any_key(path: Path) -> None:
    overrides = [
        "name=other",
        "model.context_size=64",
        "producers.count=3",  # of a section that the file leaves out
        "saes.0.l1_coefficient=[3, 4]",
        "saes.1.widths=[9]",
        "training.lr=[1e-4]",
        "sites.layers.1=0",
    ]
    sweep = load_sweep(path, overrides)
    assert (sweep.name, sweep.language_model.context_size, sweep.producers.count) == ("other", 64, 3)
    assert sweep.sites.layers == (1, 0)
    trials = expand(sweep)
    assert {t.hyperparameters["l1_coefficient"] for t in trials if t.architecture == "gated"} == {3, 4}
    assert {t.d_sae for t in trials if t.architecture == "standard"} == {9}
    assert {t.training.lr for t in trials if t.architecture == "gated"} == {1e-4}


def test_the_last_override_wins(path: Path) -> None:
    assert load_sweep(path, ["name=a", "name=b"]).name == "b"


def test_an_override_may_fill_an_empty_section(tmp_path: Path) -> None:
    assert load_text(tmp_path, ONE_TRIAL + "producers:\n", "producers.count=2").producers.count == 2


def test_an_override_may_hold_an_equals_sign(path: Path) -> None:
    assert load_sweep(path, ["model.name=a=b"]).language_model.name == "a=b"


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("name", ["--set name", "path.to.key=value"]),
        ("=3", ["--set =3", "path.to.key=value"]),
        ("saes.2.widths=3", ["--set saes.2.widths", "list of 2", "'2'", "0 to 1"]),
        ("saes.x.widths=3", ["--set saes.x.widths", "list of 2", "'x'"]),
        ("saes.-1.widths=3", ["--set saes.-1.widths", "'-1'"]),
        ("saes.2=3", ["--set saes.2", "'2'", "0 to 1"]),
        ("training.tokens.x=3", ["--set training.tokens.x", "training.tokens is 10000"]),
        ("training.lr=[1,", ["--set training.lr", "not valid YAML"]),
        ("training.token=3", ["training.token", "did you mean 'tokens'?"]),
        ("trainin.tokens=3", ["trainin", "did you mean 'training'?"]),
    ],
)
def test_a_wrong_override_is_one_line_that_names_it(path: Path, override: str, parts: list[str]) -> None:
    message = error_of(path, override)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (TEXT + "name: again\n", ["line 9", "'name' stands twice"]),
        (TEXT.replace("{tokens: 10_000,", "{tokens: 10_000, tokens: 5,"), ["line 8", "'tokens' stands twice"]),
        (TEXT.replace("lr: 1e-3}", "lr: 1e-3"), ["line", "not valid YAML"]),
        ("name: x\nmodel: {name: [}\n", ["line 2", "not valid YAML"]),
        ("name: x\n\tmodel: y\n", ["line 2", "not valid YAML"]),
        ("a: \0", ["not valid YAML"]),
        ("x: !!python/object/apply:os.getcwd []\n", ["line 1: x: the tag", "not taken"]),
        ("x: !!int y\n", ["line 1: x: the tag", "not taken"]),
        ("? [1]\n: 2\n", ["line 1", "a key that is no plain text"]),
        ("", ["a sweep file is a mapping of name, experiment, activations, model"]),
        ("- 1\n- 2\n", ["a sweep file is a mapping"]),
        ("just text", ["a sweep file is a mapping"]),
        (TEXT.replace("name: test\n", ""), ["name: missing"]),
        (TEXT + "7: x\n", ["7"]),
    ],
)
def test_a_file_that_is_not_a_sweep_is_one_line(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = tmp_path / "text.yaml"
    path.write_text(text)
    message = error_of(path)
    assert str(path) in message
    assert all(part in message for part in parts), message
    assert "should be Keys" not in message


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x80")
    for path, reason in (
        (tmp_path / "none.yaml", "No such file"),
        (tmp_path, "directory"),
        (binary, "not a text file"),
    ):
        message = error_of(path)
        assert str(path) in message
        assert reason in message
