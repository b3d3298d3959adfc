"""Transcoders on disk: in our own folder, in SAELens', sparsify's and circuit-tracer's, and what has no form there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from transcoders import HYPERPARAMETERS, ROWS, SITE, TARGET, M, N, rows, transcoder

from gsae_ray.errors import UserError
from gsae_ray.saes import SAE, SAEConfig, build, load
from gsae_ray.saes.export import export
from gsae_ray.saes.files import function_hash

every_architecture = pytest.mark.parametrize("architecture", HYPERPARAMETERS)
with_or_without_skip = pytest.mark.parametrize("skip", [False, True])


@torch.no_grad()
def assert_same(sae: SAE, other: SAE) -> None:
    x_BD = rows()
    acts_BF = sae.encode(x_BD)
    assert 0.02 < (acts_BF > 0).double().mean() < 0.98
    torch.testing.assert_close(other.encode(x_BD), acts_BF, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(other(x_BD), sae(x_BD), rtol=1e-4, atol=1e-4)
    assert (other.cfg.d_in, other.cfg.d_out, other.cfg.skip) == (sae.cfg.d_in, sae.cfg.d_out, sae.cfg.skip)
    assert other.cfg.place == sae.cfg.place


# ---- what it computes -----------------------------------------------------------------------------------------------


@with_or_without_skip
def test_it_computes_from_x_itself_and_adds_its_skip_connection(skip: bool) -> None:
    sae, x_BD = transcoder("standard", skip, d_out=9), rows()
    acts_BF = torch.relu(x_BD @ sae.W_enc + sae.get_parameter("b_enc"))
    y_hat_BD = acts_BF @ sae.W_dec + sae.b_dec + (x_BD @ sae.W_skip.T if skip else 0)
    torch.testing.assert_close(sae.encode(x_BD), acts_BF)
    torch.testing.assert_close(sae(x_BD), y_hat_BD)
    torch.testing.assert_close(sae.decode(acts_BF, x_BD), y_hat_BD)


def test_decoding_without_x_is_an_error_where_a_skip_connection_takes_it() -> None:
    acts_BF = transcoder("standard").encode(rows())
    assert transcoder("standard").decode(acts_BF).shape == (ROWS, N)
    with pytest.raises(TypeError, match=r"takes x: decode\(acts, x\)"):
        transcoder("standard", skip=True).decode(acts_BF)


@every_architecture
@with_or_without_skip
def test_both_scales_fold_into_the_weights(architecture: str, skip: bool) -> None:
    """Trained to compute t·y from s·x, it takes x and gives y; features are of y, and decoder rows stay."""
    s, t = 3.0, 0.2
    scaled, folded = (transcoder(architecture, skip, d_out=9).double() for _ in range(2))
    folded.fold_scale(s, t)
    x_BD = rows().double()
    torch.testing.assert_close(folded.encode(x_BD), scaled.encode(s * x_BD) / t)
    torch.testing.assert_close(folded(x_BD), scaled(s * x_BD) / t)
    assert torch.equal(folded.W_dec, scaled.W_dec)


@pytest.mark.parametrize("architecture", [name for name in HYPERPARAMETERS if name != "topk"])
def test_norms_fold_into_the_encoder(architecture: str) -> None:
    sae, folded = (transcoder(architecture, skip=True).double() for _ in range(2))
    folded.fold_norms()
    torch.testing.assert_close(folded.W_dec.norm(dim=1), torch.ones(M).double())
    torch.testing.assert_close(folded(rows()), sae(rows()))


@pytest.mark.parametrize("architecture", [name for name in HYPERPARAMETERS if name != "topk"])
@with_or_without_skip
def test_its_jumprelu_form_computes_the_same(architecture: str, skip: bool) -> None:
    sae = transcoder(architecture, skip)
    assert_same(sae, sae.to_jumprelu())


def test_b_dec_is_not_of_what_it_reads() -> None:
    with pytest.raises(UserError, match="a transcoder's b_dec is of what it computes"):
        transcoder("standard").subtracting_b_dec(True)


def test_a_skip_connection_without_a_width_of_its_output_is_no_configuration() -> None:
    with pytest.raises(ValueError, match="target and skip are of transcoders"):
        SAEConfig(architecture="standard", d_in=N, d_sae=M, skip=True)


# ---- our own folder -------------------------------------------------------------------------------------------------


@every_architecture
@with_or_without_skip
def test_a_saved_one_is_loaded_again(architecture: str, skip: bool, tmp_path: Path) -> None:
    sae = transcoder(architecture, skip, d_out=9)
    sae.save(tmp_path)
    again = load(tmp_path)
    assert_same(sae, again)
    assert function_hash(again) == function_hash(sae)
    assert again.cfg == sae.cfg


def test_of_an_sae_nothing_more_is_written(tmp_path: Path) -> None:
    sae = build(SAEConfig(architecture="standard", d_in=N, d_sae=M, hyperparameters={"l1_coefficient": 1.0}))
    sae.save(tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    assert not {"d_out", "target", "skip", "hook_name_out"} & {*cfg, *cfg["gsae"], *cfg["metadata"]}


SAELENS = {
    ("standard", False): "transcoder",
    ("standard", True): "skip_transcoder",
    ("p_anneal", False): "transcoder",
    ("jumprelu", False): "jumprelu_transcoder",
    ("jumprelu", True): "jumprelu_skip_transcoder",
    ("batchtopk", False): "jumprelu_transcoder",
    ("matryoshka_batchtopk", True): "jumprelu_skip_transcoder",
}


@pytest.mark.parametrize(("architecture", "skip"), SAELENS)
@pytest.mark.parametrize("format_", ["gsae", "saelens"])
def test_it_is_a_folder_of_saelens(architecture: str, skip: bool, format_: str, tmp_path: Path) -> None:
    sae = transcoder(architecture, skip, d_out=9)
    export(sae, tmp_path, format_)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    assert cfg["architecture"] == SAELENS[architecture, skip]
    assert (cfg["d_in"], cfg["d_out"], cfg["d_sae"], cfg["apply_b_dec_to_input"]) == (N, 9, M, False)
    assert (cfg["metadata"]["hook_name"], cfg["metadata"]["hook_name_out"]) == (SITE, TARGET)
    tensors = safetensors.torch.load_file(tmp_path / "sae_weights.safetensors")
    assert ("W_skip" in tensors) == skip
    if skip:
        assert tensors["W_skip"].shape == (9, N)
    assert_same(sae, load(tmp_path))


@pytest.mark.parametrize("architecture", ["gated", "topk"])
def test_what_saelens_has_not_says_so_in_its_file_and_is_refused_as_its_format(
    architecture: str, tmp_path: Path
) -> None:
    sae = transcoder(architecture)
    sae.save(tmp_path / "ours")
    said = json.loads((tmp_path / "ours" / "cfg.json").read_text())["architecture"]
    assert said.startswith(f"none: SAELens has no {architecture} transcoder, only those of ReLU and JumpReLU")
    with pytest.raises(UserError, match=f"SAELens has no {architecture} transcoder"):
        export(sae, tmp_path / "theirs", "saelens")
    assert not (tmp_path / "theirs").exists()


def test_a_gated_one_goes_to_saelens_as_jumprelu(tmp_path: Path) -> None:
    sae = transcoder("gated", skip=True)
    export(sae, tmp_path, "jumprelu")
    assert json.loads((tmp_path / "cfg.json").read_text())["architecture"] == "jumprelu_skip_transcoder"
    assert_same(sae, load(tmp_path))


def test_attentions_heads_have_no_transcoder_there(tmp_path: Path) -> None:
    sae = transcoder("standard")
    sae.cfg = sae.cfg.model_copy(update={"target": "blocks.2.attn.hook_z"})
    with pytest.raises(UserError, match="SAELens has no transcoder of attention's heads"):
        export(sae, tmp_path / "out", "saelens")


# ---- sparsify -------------------------------------------------------------------------------------------------------


@with_or_without_skip
def test_sparsify_has_topk_ones(skip: bool, tmp_path: Path) -> None:
    sae = transcoder("topk", skip)
    export(sae, tmp_path, "sparsify")
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    assert (cfg["transcode"], cfg["skip_connection"]) == (True, skip)
    again = load(tmp_path)
    again.cfg = again.cfg.model_copy(update={"site": SITE, "target": TARGET})  # which their files do not say
    assert_same(sae, again)


def test_what_has_no_form_elsewhere_is_one_line(tmp_path: Path) -> None:
    for sae, format_, line in (
        (transcoder("topk", d_out=9), "sparsify", "from 6 to 9 coordinates has no form there"),
        (transcoder("standard"), "dictionary_learning", "transcoders have no form there"),
        (transcoder("topk"), "circuit-tracer", "a TopK SAE has no thresholds"),
        (transcoder("standard", d_out=9), "circuit-tracer", "from 6 to 9 coordinates has no form there"),
    ):
        with pytest.raises(UserError, match=line) as caught:
            export(sae, tmp_path / "out", format_)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()


# ---- circuit-tracer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["standard", "gated", "batchtopk", "jumprelu"])
@with_or_without_skip
def test_a_set_is_written_layer_by_layer(architecture: str, skip: bool, tmp_path: Path) -> None:
    saes = [transcoder(architecture, skip, layer=layer, seed=layer) for layer in range(3)]
    for sae in saes:
        export(sae, tmp_path / "set", "circuit-tracer")
    assert yaml.safe_load((tmp_path / "set" / "config.yaml").read_text()) == {
        "model_kind": "transcoder_set",
        "model_name": "gpt2",
        "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "hook_mlp_out",
        "scan": "gpt2",
    }
    names = {"config.yaml", *(f"layer_{layer}.safetensors" for layer in range(3))}
    assert {path.name for path in (tmp_path / "set").iterdir()} == names
    tensors = safetensors.torch.load_file(tmp_path / "set" / "layer_1.safetensors")
    expected = {"W_enc", "b_enc", "W_dec", "b_dec", *(["W_skip"] if skip else [])}
    assert set(tensors) == expected | (set() if architecture == "standard" else {"activation_function.threshold"})
    assert tensors["W_enc"].shape == tensors["W_dec"].shape == (M, N)
    for layer, sae in enumerate(saes):
        assert_same(sae, load(tmp_path / "set" / f"layer_{layer}.safetensors"))


def test_what_does_not_belong_to_a_set_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    export(transcoder("standard"), folder, "circuit-tracer")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    wider = build(transcoder("standard", layer=3).cfg.model_copy(update={"d_sae": M + 1}))
    other_model = transcoder("standard", layer=3)
    other_model.cfg = other_model.cfg.model_copy(update={"metadata": {"model": {"name": "gpt2-xl"}}})
    other_target = transcoder("standard", layer=3)
    other_target.cfg = other_target.cfg.model_copy(update={"target": "blocks.3.hook_resid_post"})
    unknown = transcoder("standard", layer=3)
    unknown.cfg = unknown.cfg.model_copy(update={"target": ""})
    for sae, line in (
        (transcoder("standard"), "has a layer_2.safetensors already; nothing is overwritten"),
        (transcoder("standard", skip=True, layer=3), "layer_2.safetensors has another skip connection"),
        (wider, "layer_2.safetensors has another width"),
        (other_model, "has model_name 'gpt2', and this transcoder 'gpt2-xl'"),
        (other_target, "has feature_output_hook 'hook_mlp_out', and this transcoder 'hook_resid_post'"),
        (unknown, "from one point of a layer to another, and this one is of 'blocks.3.mlp.hook_in'"),
    ):
        with pytest.raises(UserError, match=line) as caught:
            export(sae, folder, "circuit-tracer")
        assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"has other files \(notes.txt\)"):
        export(transcoder("standard", layer=3), folder, "circuit-tracer")


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        ({"config.yaml": b"model_kind: cross_layer_transcoder"}, "model_kind is 'cross_layer_transcoder', not transc"),
        ({"config.yaml": b"{"}, "config.yaml: while parsing a flow"),
        ({"config.yaml": b"a list"}, "model_kind is None"),
        ({"layer_2.safetensors": b"none"}, "layer_2.safetensors cannot be read"),
        ({"layer_2.safetensors": {"W_enc": torch.zeros(M, N)}}, "layer_2.safetensors: b_enc is missing"),
    ],
)
def test_a_damaged_set_is_one_line(damage: dict[str, Any], line: str, tmp_path: Path) -> None:
    export(transcoder("standard"), tmp_path / "set", "circuit-tracer")
    for name, data in damage.items():
        (tmp_path / "set" / name).write_bytes(data if isinstance(data, bytes) else safetensors.torch.save(data))
    with pytest.raises(UserError, match=line) as caught:
        load(tmp_path / "set" / "layer_2.safetensors")
    assert "\n" not in str(caught.value)
