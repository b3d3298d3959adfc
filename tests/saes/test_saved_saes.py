"""SAEs as files: what is saved is loaded bit for bit, and damage is one clear line."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import safetensors.torch
import torch
from random_saes import architectures, config, initialised, trained

from gsae_ray.errors import UserError
from gsae_ray.saes import REGISTRY, GatedSAE, build, from_bytes, load, to_bytes
from gsae_ray.saes.base import CONFIG_FILE, WEIGHTS_FILE


@architectures
def test_saving_and_loading_gives_the_same_sae_bit_for_bit(architecture: str, tmp_path: Path) -> None:
    sae = trained(architecture)
    sae.save(tmp_path / "deep" / "sae")
    loaded = load(tmp_path / "deep" / "sae")
    assert type(loaded) is type(sae)
    assert loaded.cfg == sae.cfg
    assert to_bytes(loaded) == to_bytes(sae)
    for name, parameter in sae.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter), name
    x_BD = torch.randn(7, 6)
    assert torch.equal(loaded(x_BD), sae(x_BD))
    assert not loaded.training


@architectures
def test_a_saved_sae_is_a_json_and_a_safetensors_file(architecture: str, tmp_path: Path) -> None:
    sae = trained(architecture)
    sae.save(str(tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cfg.json", "sae_weights.safetensors"]
    weights = safetensors.torch.load_file(tmp_path / "sae_weights.safetensors")
    assert set(weights) == {name for name, _ in sae.named_parameters()}
    assert weights["W_enc"].shape == (6, 10)
    assert weights["W_dec"].shape == (10, 6)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    trained("gated").save(tmp_path / "a")
    load(tmp_path / "a").save(tmp_path / "b")
    assert all(
        (tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in (CONFIG_FILE, WEIGHTS_FILE)
    )


@architectures
def test_an_sae_goes_over_the_wire_unchanged(architecture: str) -> None:
    sae = trained(architecture)
    assert to_bytes(from_bytes(*to_bytes(sae))) == to_bytes(sae)


def load_error(directory: Path) -> str:
    with pytest.raises(UserError) as caught:
        load(directory)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_missing_file_is_named_and_what_is_known(tmp_path: Path) -> None:
    trained("gated").save(tmp_path)
    (tmp_path / WEIGHTS_FILE).rename(tmp_path / "weights.bin")
    line = load_error(tmp_path)
    assert f"no SAE here ({WEIGHTS_FILE} is missing); known are folders of " in line
    assert f"gsae ({CONFIG_FILE} and {WEIGHTS_FILE}); saelens (" in line
    (tmp_path / CONFIG_FILE).unlink()
    assert "no SAE here, but weights.bin; known are" in load_error(tmp_path)
    (tmp_path / "weights.bin").unlink()
    assert "no SAE here, but nothing; known are" in load_error(tmp_path)
    (tmp_path / "sae").mkdir()
    assert f"as in a trial's directory; give {tmp_path}/sae" in load_error(tmp_path)
    assert str(tmp_path / "nowhere") in load_error(tmp_path / "nowhere")


def damaged_weights() -> Iterator[tuple[str, bytes]]:
    sae = trained("gated")
    good = to_bytes(sae)[1]
    state = sae.state_dict()
    yield "empty", b""
    yield "garbage", b"not safetensors at all"
    yield "truncated", good[:-10]
    yield "wrong shape", safetensors.torch.save({**state, "b_mag": torch.zeros(11)})
    for dtype in (torch.int32, torch.bool, torch.complex64, torch.float8_e5m2):
        yield "W_dec is " + str(dtype), safetensors.torch.save({**state, "W_dec": state["W_dec"].to(dtype)})
    eight_bit = safetensors.torch.save({**state, "W_dec": state["W_dec"].to(torch.float8_e5m2)})
    for value in (math.nan, math.inf, -math.inf):
        yield "r_mag is not finite", safetensors.torch.save({**state, "r_mag": torch.full((10,), value)})
    big = state["W_enc"].double() * 1e300
    yield "W_enc is not finite", safetensors.torch.save({**state, "W_enc": big})
    yield "a dtype that torch has not", eight_bit.replace(b'"F8_E5M2"', b'"F8_E8M0"', 1)
    yield "tensor missing", safetensors.torch.save({k: v for k, v in state.items() if k != "r_mag"})
    yield "tensor too many", safetensors.torch.save({**state, "threshold": torch.zeros(10)})
    yield "another architecture", to_bytes(trained("standard"))[1]


@pytest.mark.parametrize(("kind", "weights"), list(damaged_weights()))
def test_damaged_weights_are_one_clear_line(kind: str, weights: bytes, tmp_path: Path) -> None:
    trained("gated").save(tmp_path)
    (tmp_path / WEIGHTS_FILE).write_bytes(weights)
    message = load_error(tmp_path)
    assert str(tmp_path) in message
    assert "cannot be read" in message
    assert len(message) < 600
    if kind == "wrong shape":
        assert "b_mag is [11], not [10]" in message
    if " is " in kind:
        assert f"{WEIGHTS_FILE}: {kind}" in message


DAMAGE: list[tuple[dict[str, Any], str]] = [
    ({"d_in": -1}, "cfg.json.d_in: -1"),
    ({"d_sae": "ten"}, "d_sae"),
    ({"architecture": None}, "architecture"),
    ({"surprise": 1}, "surprise"),
    ({"format": "gsae-99"}, "cfg.json.format: 'gsae-99' is not gsae-"),
    ({"format": "gsae"}, "cfg.json.format: 'gsae' is not gsae-"),
    ({"d_in": 6.0}, "d_in"),
    ({"d_in": True}, "d_in"),
    ({"d_in": "6"}, "d_in"),
    ({"d_in": 10**400}, "d_in"),
    ({"hyperparameters": {"l1_coefficient": 2.5, "tied": "false"}}, "cfg.json.hyperparameters.tied: 'false'"),
    ({"hyperparameters": {"l1_coefficient": 2.5, "ties": True}}, "cfg.json.hyperparameters.ties"),
    ({"hyperparameters": {"l1_coefficient": True}}, "cfg.json.hyperparameters.l1_coefficient"),
    ({"hyperparameters": {"l1_coefficient": math.nan}}, "cfg.json.hyperparameters.l1_coefficient"),
    ({"hyperparameters": {}}, "cfg.json.hyperparameters.l1_coefficient"),
    ({"surprise": "x" * 10**6}, "surprise"),
    ({"x" * 10**6: 1}, "xxx"),
    ({"architecture": "x" * 10**6}, "architecture"),
]


@pytest.mark.parametrize("first_format", [True, False])
@pytest.mark.parametrize(("change", "named"), DAMAGE, ids=range(len(DAMAGE)))
def test_a_damaged_configuration_names_the_key(
    change: dict[str, Any], named: str, first_format: bool, tmp_path: Path
) -> None:
    trained("gated").save(tmp_path)
    cfg = json.loads((tmp_path / CONFIG_FILE).read_text("utf-8"))
    sizes = {key: value for key, value in {**cfg, **change}.items() if key in ("d_in", "d_sae")}
    own = {**cfg["gsae"], **{key: value for key, value in change.items() if key not in sizes}}
    if first_format:
        cfg = {**own, **sizes, "format": own["format"].replace("gsae-2", "gsae-1") if own["format"] else None}
    else:
        cfg = {**cfg, **sizes, "gsae": own}
    (tmp_path / CONFIG_FILE).write_text(json.dumps(cfg))
    message = load_error(tmp_path)
    assert named in message
    assert len(message) < 800


def test_whatever_bytes_are_changed_one_clear_line_or_an_sae_is_the_answer(tmp_path: Path) -> None:
    sae, rng = trained("gated"), Random(0)
    for name in [CONFIG_FILE, WEIGHTS_FILE] * 150:
        sae.save(tmp_path)
        data = bytearray((tmp_path / name).read_bytes())
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(min(len(data), 600))] = rng.randrange(256)  # of weights the header, mostly
        (tmp_path / name).write_bytes(data)
        try:
            assert load(tmp_path).not_finite() is None
        except UserError as error:
            assert str(error).startswith(f"{tmp_path}: ")
            assert "\n" not in str(error)


def test_what_has_no_format_is_not_an_sae_of_ours(tmp_path: Path) -> None:
    trained("gated").save(tmp_path)
    cfg = json.loads((tmp_path / CONFIG_FILE).read_text("utf-8"))
    del cfg["gsae"]["format"]
    (tmp_path / CONFIG_FILE).write_text(json.dumps(cfg))
    assert "cfg.json: no format" in load_error(tmp_path)


def test_a_width_that_the_weights_do_not_have_allocates_nothing(tmp_path: Path) -> None:
    """What 2³⁰ × 2³⁰ would take, no machine has."""
    trained("gated").save(tmp_path)
    cfg = json.loads((tmp_path / CONFIG_FILE).read_text("utf-8"))
    for d_in, d_sae in ((2**30, 10), (2**30, 2**30), (2**31 - 1, 2**31 - 1)):
        (tmp_path / CONFIG_FILE).write_text(json.dumps({**cfg, "d_in": d_in, "d_sae": d_sae}))
        assert "cannot be read" in load_error(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_weights_of_another_precision_are_loaded_as_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    sae = trained("gated").to(dtype)
    sae.save(tmp_path)
    safetensors.torch.save_file(sae.state_dict(), tmp_path / WEIGHTS_FILE)
    for name, parameter in load(tmp_path).named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, sae.get_parameter(name).float()), name


def test_the_saes_of_every_architecture_and_form_are_loaded(tmp_path: Path) -> None:
    hyperparameters: dict[str, list[dict[str, Any]]] = {
        "standard": [{"l1_coefficient": 1}],
        "gated": [{"l1_coefficient": 0.5, "tied": False, "auxiliary": "none"}, {"l1_coefficient": 2.0}],
        "rescale_shift": [{"l1_coefficient": 1.0, "parent": None}, {"l1_coefficient": 1.0, "parent": "abc"}],
        "jumprelu": [{}, {"subtract_b_dec": False}],
        "topk": [{"k": 3}],
        "batchtopk": [{"k": 3}],
        "matryoshka_batchtopk": [{"k": 3}, {"k": 3, "prefix_widths": [2, 10]}],
        "p_anneal": [{"l1_coefficient": 1.0}],
    }
    assert set(hyperparameters) == set(REGISTRY)
    for architecture, several in hyperparameters.items():
        for values in several:
            sae = build(config(architecture, hyperparameters=values))
            sae.initialise(torch.Generator(), torch.zeros(6))
            sae.save(tmp_path)
            assert load(tmp_path).cfg == sae.cfg
    gated = initialised("gated")
    assert isinstance(gated, GatedSAE)
    gated.to_jumprelu().save(tmp_path)
    assert load(tmp_path).cfg.metadata["gated"] == gated.cfg.hyperparameters


def test_a_save_that_fails_halfway_leaves_no_new_weights_beside_an_old_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    initialised("gated").save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    writes = iter(range(2))

    def full(_file: int) -> None:
        if next(writes) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(os, "fsync", full)
        trained("standard").save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe\x00"])
def test_a_configuration_that_is_not_json_is_one_clear_line(text: bytes, tmp_path: Path) -> None:
    trained("gated").save(tmp_path)
    (tmp_path / CONFIG_FILE).write_bytes(text)
    assert "cannot be read" in load_error(tmp_path)


def test_an_unknown_architecture_is_an_error_that_names_the_nearest(tmp_path: Path) -> None:
    trained("gated").save(tmp_path)
    path = tmp_path / CONFIG_FILE
    path.write_text(path.read_text("utf-8").replace('"gated"', '"gatd"'), encoding="utf-8")
    message = load_error(tmp_path)
    assert "'gatd'" in message
    assert "did you mean 'gated'?" in message
