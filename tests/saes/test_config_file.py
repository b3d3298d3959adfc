"""`cfg.json`: a configuration of SAELens with all that is ours under `gsae`, and the format before it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from random_saes import config, trained

from gsae_ray.errors import UserError
from gsae_ray.saes import SAE, GatedSAE, build, load, to_bytes
from gsae_ray.saes.base import CONFIG_FILE

METADATA: dict[str, Any] = {
    "sweep": "s",
    "model": {"name": "gpt2", "context_size": 128, "dtype": "float32"},
    "dataset": {"name": "some/text", "prepend_bos": True, "skip_positions": 1, "skip_special_tokens": True},
}
"""What a sweep records, in part."""


def saved(sae: SAE) -> dict[str, Any]:
    return json.loads(to_bytes(sae)[0])


def of(architecture: str, site: str = "blocks.8.hook_resid_post", **fields: Any) -> SAE:
    fields = {"hyperparameters": {"l1_coefficient": 2.5}, **fields}
    return build(config(architecture, site=site, **fields))


# ---- the text -------------------------------------------------------------------------------------------------------


def test_the_whole_file() -> None:
    assert saved(of("gated", metadata=METADATA)) == {
        "architecture": "gated",
        "d_in": 6,
        "d_sae": 10,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": "6.54.12",
            "training_architecture": "gated",
            "model_name": "gpt2",
            "model_class_name": "HookedTransformer",
            "hook_name": "blocks.8.hook_resid_post",
            "context_size": 128,
            "dataset_path": "some/text",
            "prepend_bos": True,
            "exclude_special_tokens": True,
            "seqpos_slice": [1, None],
        },
        "gsae": {
            "format": "gsae-2",
            "architecture": "gated",
            "hyperparameters": {"l1_coefficient": 2.5},
            "site": "blocks.8.hook_resid_post",
            "metadata": METADATA,
        },
    }


@pytest.mark.parametrize(
    ("architecture", "hyperparameters", "theirs"),
    [
        ("standard", {"l1_coefficient": 1.0}, "standard"),
        ("gated", {"l1_coefficient": 1.0, "auxiliary": "none", "learn_r_mag": False}, "gated"),
        ("rescale_shift", {"l1_coefficient": 1.0}, "gated"),
        ("jumprelu", {}, "jumprelu"),
        ("topk", {"k": 3}, "topk"),
        (
            "gated",
            {"l1_coefficient": 1.0, "tied": False},
            "none: SAELens has no gated SAE with untied encoders (tied: false)",
        ),
    ],
)
def test_the_architecture_is_the_one_that_saelens_has_or_says_that_there_is_none(
    architecture: str, hyperparameters: dict[str, Any], theirs: str
) -> None:
    found = saved(of(architecture, hyperparameters=hyperparameters))
    assert (found["architecture"], found["gsae"]["architecture"]) == (theirs, architecture)
    assert found["gsae"]["hyperparameters"] == hyperparameters
    assert found["metadata"]["training_architecture"] == architecture


@pytest.mark.parametrize(
    ("site", "hook", "reshape"),
    [
        ("blocks.3.hook_mlp_out", ("HookedTransformer", "blocks.3.hook_mlp_out"), "none"),
        ("blocks.3.mlp.hook_post", ("HookedTransformer", "blocks.3.mlp.hook_post"), "none"),
        ("blocks.0.attn.hook_z", ("HookedTransformer", "blocks.0.attn.hook_z"), "hook_z"),
        ("model.layers.3.mlp:output", ("AutoModelForCausalLM", "model.layers.3.mlp"), "none"),
        ("model.layers.3.mlp:input", ("AutoModelForCausalLM", None), "none"),
        ("", (None, None), "none"),
    ],
)
def test_the_hook_of_each_kind_of_site(site: str, hook: tuple[str | None, str | None], reshape: str) -> None:
    found = saved(of("standard", site))
    assert (found["metadata"].get("model_class_name"), found["metadata"].get("hook_name")) == hook
    assert found["reshape_activations"] == reshape
    assert found["gsae"]["site"] == site


@pytest.mark.parametrize(
    ("model", "site", "module", "hook"),
    [
        ("gpt2", "blocks.3.hook_mlp_out", "transformer.h.3.mlp:output", ("HookedTransformer", "blocks.3.hook_mlp_out")),
        ("a/b", "blocks.3.hook_mlp_out", "model.layers.3.mlp:output", ("AutoModelForCausalLM", "model.layers.3.mlp")),
        ("a/b", "blocks.3.attn.hook_z", "m.o_proj:input", ("HookedTransformer", "blocks.3.attn.hook_z")),
        ("a/b", "blocks.3.hook_mlp_out", None, ("HookedTransformer", "blocks.3.hook_mlp_out")),
    ],
)
def test_a_model_that_transformer_lens_does_not_have_is_one_of_transformers(
    model: str, site: str, module: str | None, hook: tuple[str, str]
) -> None:
    """Where the site is a module's output: SAELens hooks no inputs. By name, and where the module is known."""
    metadata = {"model": {"name": model}, **({"module": module} if module else {})}
    found = saved(of("standard", site, metadata=metadata))["metadata"]
    assert (found["model_class_name"], found["hook_name"], found["model_name"]) == (*hook, model)


@pytest.mark.parametrize("metadata", [{}, {"model": "gpt2", "dataset": None}, {"dataset": {"prepend_bos": None}}])
def test_what_is_not_known_is_left_out(metadata: dict[str, Any]) -> None:
    found = saved(of("standard", "", metadata=metadata))["metadata"]
    assert found == {"sae_lens_version": "6.54.12", "training_architecture": "standard"}


def test_of_contexts_that_were_used_whole_and_with_special_tokens_that_is_said() -> None:
    dataset = {"prepend_bos": False, "skip_positions": 0, "skip_special_tokens": False}
    found = saved(of("standard", metadata={"dataset": dataset}))["metadata"]
    said = (found["prepend_bos"], found["seqpos_slice"], found["exclude_special_tokens"])
    assert said == (False, [None, None], False)


@pytest.mark.parametrize("architecture", ["standard", "gated"])
def test_a_jumprelu_form_names_the_architecture_that_was_trained(architecture: str) -> None:
    found = saved(trained(architecture).to_jumprelu())
    assert (found["architecture"], found["gsae"]["architecture"]) == ("jumprelu", "jumprelu")
    assert found["metadata"]["training_architecture"] == architecture
    assert found["gsae"]["metadata"][architecture] == {"l1_coefficient": 2.5}


@pytest.mark.parametrize("subtracts", [True, False])
@pytest.mark.parametrize(("architecture", "own"), [("topk", {"k": 3}), ("jumprelu", {})])
def test_whether_b_dec_is_subtracted_and_how_many_are_kept_is_said(
    architecture: str, own: dict[str, Any], subtracts: bool, tmp_path: Path
) -> None:
    sae = of(architecture, hyperparameters={**own, "subtract_b_dec": subtracts})
    found = saved(sae)
    assert found["apply_b_dec_to_input"] is subtracts
    assert [found.get(key) for key in ("k", "rescale_acts_by_decoder_norm")] == ([3, False] if own else [None, None])
    sae.save(tmp_path)
    assert load(tmp_path).cfg == sae.cfg
    (tmp_path / CONFIG_FILE).write_text(json.dumps({**found, "apply_b_dec_to_input": not subtracts}))
    with pytest.raises(UserError, match=f"apply_b_dec_to_input is {not subtracts}, but {subtracts} by what gsae says"):
        load(tmp_path)


def test_of_an_sae_of_saelens_what_its_folder_said_is_said_again() -> None:
    theirs = {
        "sae_lens_version": "6.1.0",
        "model_class_name": "AutoModelForCausalLM",
        "hook_name": "model.layers.3",
        "prepend_bos": True,
    }
    read = {"origin": "saelens", "model": {"name": "m"}, "settings": {"metadata": theirs}}
    found = saved(of("standard", "model.layers.3", metadata=read))["metadata"]
    own = {"sae_lens_version": "6.54.12", "training_architecture": "standard", "model_name": "m"}
    assert found == {**theirs, **own}


# ---- the format before ----------------------------------------------------------------------------------------------


def first_format(sae: SAE) -> dict[str, Any]:
    """The whole of `cfg.json`, as it was."""
    cfg = sae.cfg
    return {
        "format": "gsae-1",
        "architecture": cfg.architecture,
        "d_in": cfg.d_in,
        "d_sae": cfg.d_sae,
        "hyperparameters": cfg.hyperparameters,
        "site": cfg.site,
        "metadata": cfg.metadata,
    }


@pytest.mark.parametrize(
    ("architecture", "hyperparameters"),
    [
        ("standard", {"l1_coefficient": 1.0}),
        ("gated", {"l1_coefficient": 1.0}),
        ("gated", {"l1_coefficient": 1.0, "tied": False}),
        ("rescale_shift", {"l1_coefficient": 1.0, "parent": None}),
        ("jumprelu", {}),
    ],
)
def test_it_is_read_and_saved_anew_in_the_format_of_now(
    architecture: str, hyperparameters: dict[str, Any], tmp_path: Path
) -> None:
    sae = of(architecture, hyperparameters=hyperparameters, metadata=METADATA)
    sae.initialise(torch.Generator(), torch.ones(6))
    sae.save(tmp_path)
    now = (tmp_path / CONFIG_FILE).read_bytes()
    (tmp_path / CONFIG_FILE).write_text(json.dumps(first_format(sae)))
    loaded = load(tmp_path)
    assert loaded.cfg == sae.cfg
    assert all(torch.equal(tensor, sae.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    loaded.save(tmp_path)
    assert (tmp_path / CONFIG_FILE).read_bytes() == now


# ---- what does not fit ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"architecture": "standard"}, "cfg.json: architecture is 'standard', but 'gated' by what gsae says; mend it"),
        ({"normalize_activations": "expected_average_only_in"}, "cfg.json: normalize_activations is 'expected"),
        ({"apply_b_dec_to_input": False}, "cfg.json: apply_b_dec_to_input is False, but True by what gsae says"),
        ({"reshape_activations": "hook_z"}, "cfg.json: reshape_activations is 'hook_z', but 'none'"),
        ({"gsae": None}, "cfg.json: gsae is None, no JSON object"),
        ({"gsae": {}}, "cfg.json: no format; this is not an SAE of ours"),
        ({"gsae": {"format": "gsae-3"}}, "cfg.json.format: 'gsae-3' is not gsae-2; a newer gsae-ray may read it"),
        ({"gsae": {"format": "gsae-1"}}, "cfg.json.format: 'gsae-1' is not gsae-2"),
        ({"gsae": {"format": "gsae-2"}}, "cfg.json.architecture: "),
        ({"gsae": {"format": "gsae-2", "architecture": "standard"}}, "cfg.json.hyperparameters.l1_coefficient: "),
        ({"d_sae": 11}, "sae_weights.safetensors and cfg.json do not fit: "),
    ],
)
def test_keys_that_do_not_fit_together_are_named(change: dict[str, Any], line: str, tmp_path: Path) -> None:
    trained("gated").save(tmp_path)
    cfg = json.loads((tmp_path / CONFIG_FILE).read_text("utf-8"))
    (tmp_path / CONFIG_FILE).write_text(json.dumps({**cfg, **change}))
    with pytest.raises(UserError) as caught:
        load(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: this SAE cannot be read: ")
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("said", [True, False])
def test_without_what_is_ours_the_keys_of_saelens_count(said: bool, tmp_path: Path) -> None:
    sae = trained("gated")
    sae.save(tmp_path)
    cfg = json.loads((tmp_path / CONFIG_FILE).read_text("utf-8"))
    del cfg["gsae"]
    (tmp_path / CONFIG_FILE).write_text(json.dumps({**cfg, "apply_b_dec_to_input": said}))
    loaded, x_BD = load(tmp_path), torch.randn(50, 6)
    assert loaded.subtracts_b_dec is said and loaded.cfg.metadata["origin"] == "saelens"
    expected = sae.encode(x_BD if said else x_BD + sae.b_dec)
    torch.testing.assert_close(loaded.encode(x_BD), expected)


def test_another_architecture_of_ours_than_the_tensors_have_is_refused(tmp_path: Path) -> None:
    trained("gated").save(tmp_path)
    cfg = json.loads((tmp_path / CONFIG_FILE).read_text("utf-8"))
    cfg["gsae"]["architecture"] = cfg["architecture"] = "standard"
    (tmp_path / CONFIG_FILE).write_text(json.dumps(cfg))
    with pytest.raises(UserError, match="do not fit: b_enc, b_gate, b_mag, r_mag$"):
        load(tmp_path)


def test_a_file_of_an_sae_without_a_form_in_saelens_is_read_whatever_the_reason_was(tmp_path: Path) -> None:
    sae = of("gated", hyperparameters={"l1_coefficient": 1.0, "tied": False})
    sae.save(tmp_path)
    (tmp_path / CONFIG_FILE).write_text(json.dumps({**saved(sae), "architecture": "none: of another version"}))
    assert load(tmp_path).cfg == sae.cfg
    (tmp_path / CONFIG_FILE).write_text(json.dumps({**saved(sae), "architecture": "gated"}))
    with pytest.raises(UserError, match="architecture is 'gated', but 'none: SAELens has no gated SAE"):
        load(tmp_path)


def test_what_saelens_adds_to_its_keys_does_no_harm(tmp_path: Path) -> None:
    sae = trained("gated")
    sae.save(tmp_path)
    cfg = json.loads((tmp_path / CONFIG_FILE).read_text("utf-8"))
    cfg["neuronpedia_id"] = None
    cfg["metadata"]["model_from_pretrained_kwargs"] = {}
    (tmp_path / CONFIG_FILE).write_text(json.dumps(cfg))
    loaded = load(tmp_path)
    assert isinstance(loaded, GatedSAE)
    assert loaded.cfg == sae.cfg
