"""Checkpoints in TransformerLens' format compute what TransformerLens computes, or are refused by what they have."""

from __future__ import annotations

import http.server
import json
import pickle
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import torch.nn.functional as F
from checkpoints import complaint, random_weights, save_transformer_lens
from environments import run_in
from producers import tokens_of
from safetensors.torch import load_file
from servers import serving
from torch import Tensor
from trials import random_sae

from gsae_ray.activations.producer import Producer
from gsae_ray.config.sections import ModelSettings
from gsae_ray.config.site import POINTS, Site
from gsae_ray.config.sweep import Sweep
from gsae_ray.driver.prepare import prepare, producer_spec
from gsae_ray.evaluation.task import Evaluate
from gsae_ray.language_model.hooks import capture, site_widths
from gsae_ray.language_model.hub import explained
from gsae_ray.language_model.loading import (
    load_config,
    load_model,
    load_skeleton,
    load_tokenizer,
    model_fingerprint,
    pinned,
)
from gsae_ray.saes import to_bytes

D, HEADS, D_HEAD, MLP, CONTEXT, VOCABULARY, LAYERS = 32, 4, 8, 96, 64, 4096, 2
TOKENS = torch.arange(40).reshape(2, 20) * 97 % VOCABULARY


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_transformer_lens(tmp_path_factory.mktemp("models") / "gelu")


@pytest.fixture
def directory(saved: Path, tmp_path: Path) -> Path:
    """A copy to change at will."""
    return Path(shutil.copytree(saved, tmp_path / "gelu"))


def settings(name: str | Path, context_size: int = 32, **fields: Any) -> ModelSettings:
    return ModelSettings(name=str(name), context_size=context_size, **fields)


def configure(directory: Path, *without: str, **fields: Any) -> ModelSettings:
    """With fields of its `config.json` changed or gone."""
    values = {**json.loads((directory / "config.json").read_text()), **fields}
    (directory / "config.json").write_text(json.dumps({k: v for k, v in values.items() if k not in without}))
    return settings(directory)


def edit_weights(directory: Path, edit: Callable[[dict[str, Tensor]], object]) -> ModelSettings:
    weights = torch.load(directory / "model_final.pth", weights_only=True)
    edit(weights)
    torch.save(weights, directory / "model_final.pth")
    return settings(directory)


def by_hand(w: dict[str, Tensor], tokens_BT: Tensor) -> dict[str, Tensor]:
    """The forward pass, head by head, in TransformerLens' layout and names."""
    length = tokens_BT.shape[1]
    cache: dict[str, Tensor] = {}
    x = w["embed.W_E"][tokens_BT] + w["pos_embed.W_pos"][:length]
    for layer in range(LAYERS):
        p = {name.removeprefix(f"blocks.{layer}."): tensor for name, tensor in w.items()}
        here = {"hook_resid_pre": x}
        normed = F.layer_norm(x, (D,), p["ln1.w"], p["ln1.b"])
        heads = []
        for h in range(HEADS):
            q, k, v = (normed @ p[f"attn.W_{c}"][h] + p[f"attn.b_{c}"][h] for c in "QKV")
            scores = q @ k.transpose(-1, -2) / D_HEAD**0.5
            scores = scores.masked_fill(~p["attn.mask"][:length, :length], p["attn.IGNORE"])
            heads.append(scores.softmax(-1) @ v)
        here["attn.hook_z"] = torch.cat(heads, -1)
        here["hook_attn_out"] = sum(z @ p["attn.W_O"][h] for h, z in enumerate(heads)) + p["attn.b_O"]
        x = x + here["hook_attn_out"]
        here["mlp.hook_in"] = F.layer_norm(x, (D,), p["ln2.w"], p["ln2.b"])
        pre = here["mlp.hook_in"] @ p["mlp.W_in"] + p["mlp.b_in"]
        here["mlp.hook_post"] = pre * (1 + torch.erf(pre / 2**0.5)) / 2
        here["hook_mlp_out"] = here["mlp.hook_post"] @ p["mlp.W_out"] + p["mlp.b_out"]
        x = here["hook_resid_post"] = x + here["hook_mlp_out"]
        cache |= {f"blocks.{layer}.{name}": value for name, value in here.items()}
    cache["logits"] = F.layer_norm(x, (D,), w["ln_final.w"], w["ln_final.b"]) @ w["unembed.W_U"] + w["unembed.b_U"]
    return cache


def assert_same(model: ModelSettings, reference: dict[str, Tensor], atol: float) -> None:
    tokens = reference["tokens"]
    loaded = load_model(model)
    with torch.no_grad():
        logits = loaded(tokens, use_cache=False).logits
    torch.testing.assert_close(logits, reference["logits"], rtol=0, atol=atol)
    sites = [Site(name) for name in reference if name.startswith("blocks.")]
    assert {site.point for site in sites} == set(POINTS)
    for site, activations in capture(loaded, tokens, sites).items():
        torch.testing.assert_close(activations, reference[site.name], rtol=0, atol=atol)
    assert site_widths(load_skeleton(model), sites) == {site: reference[site.name].shape[-1] for site in sites}


# ---- the same function ----------------------------------------------------------------------------------------------


@pytest.mark.slow  # makes an environment
@pytest.mark.timeout(1200)
def test_logits_and_activations_are_transformer_lens_own(tmp_path: Path, neighbours_python: Path) -> None:
    """Measured with transformer-lens 3.9.0, at most: logits 2.5e-6, activations 2.3e-6 (of std 0.05 to 1)."""
    run_in(neighbours_python, Path(__file__).with_name("transformer_lens_reference.py"), tmp_path / "made")
    for name in ("small", "gelu_1l"):
        reference = load_file(tmp_path / "made" / name / "reference.safetensors")
        assert_same(settings(tmp_path / "made" / name), reference, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_and_activations_are_those_of_a_forward_pass_by_hand(attention: str, saved: Path) -> None:
    reference = {**by_hand(random_weights(), TOKENS), "tokens": TOKENS}
    assert reference["logits"].std() > 0.5
    assert_same(settings(saved, attn_implementation=attention), reference, atol=1e-4)


def test_weights_are_read_in_the_dtype_asked_for(saved: Path) -> None:
    model = load_model(settings(saved, dtype="bfloat16"))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert torch.equal(model.lm_head.bias, random_weights()["unembed.b_U"].bfloat16())
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_the_skeleton_needs_no_weights(directory: Path) -> None:
    expected = {name: tensor.shape for name, tensor in load_model(settings(directory)).state_dict().items()}
    (directory / "model_final.pth").unlink()
    skeleton = load_skeleton(settings(directory))
    assert {name: tensor.shape for name, tensor in skeleton.state_dict().items()} == expected
    assert all(parameter.is_meta for parameter in skeleton.parameters())


@pytest.mark.parametrize("key", ["eps", "ln_eps"])
def test_the_configurations_own_epsilon_counts(key: str, directory: Path) -> None:
    assert load_config(settings(directory)).layer_norm_epsilon == 1e-5
    assert load_config(configure(directory, **{key: 0.1})).layer_norm_epsilon == 0.1


def test_a_context_longer_than_the_models_positions_is_refused(saved: Path) -> None:
    assert "64 positions" in complaint(load_config, settings(saved, context_size=65))


# ---- which checkpoint it is -----------------------------------------------------------------------------------------


def test_a_fingerprint_differs_by_one_number_of_one_weight(saved: Path, directory: Path) -> None:
    before = model_fingerprint(settings(directory))
    assert before == model_fingerprint(settings(saved))
    assert model_fingerprint(edit_weights(directory, lambda w: w["unembed.b_U"][3].add_(1e-6))) != before


def test_the_checkpoints_of_its_training_are_neither_read_nor_hashed(saved: Path, directory: Path) -> None:
    (directory / "checkpoint_10.pth").write_bytes(b"not read")
    assert model_fingerprint(settings(directory)) == model_fingerprint(settings(saved))
    load_model(settings(directory))


def test_a_cached_checkpoint_of_the_hub_needs_no_network(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository, commit = tmp_path / "models--lab--gelu", "a" * 40
    shutil.copytree(saved, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    model = pinned(settings("lab/gelu"))
    assert model.revision == commit
    assert model_fingerprint(model) == model_fingerprint(settings("lab/gelu"))
    assert torch.equal(load_model(model).lm_head.bias, random_weights()["unembed.b_U"])


def test_the_files_of_a_checkpoint_that_the_hub_cannot_be_asked_for_are_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def list_files(model: ModelSettings) -> None:
        with explained(model.name, "weights"):
            huggingface_hub.HfApi().list_repo_files(model.name)

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)  # the hub's client tries again and again
    assert complaint(list_files, settings("lab/gelu")).endswith("cannot be reached")


@pytest.fixture
def hub(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The files of `directory`, and one of its training, as the hub serves them; what was fetched."""
    commit = "c" * 40
    (directory / "checkpoints").mkdir()
    (directory / "checkpoints" / "old_final.pth").write_bytes(b"of training")
    fetched: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            if "/tree/" in self.path:
                paths = [str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()]
                self.answer(json.dumps([{"type": "file", "path": p, "size": 1, "oid": "0"} for p in paths]).encode())
            elif (path := directory / self.path.partition(f"/resolve/{commit}/")[2]).is_file():
                self.answer(path.read_bytes(), ETag=f'"{path.name}"', **{"X-Repo-Commit": commit})
                fetched.append(path.name)
            else:
                self.send_error(404)

        def answer(self, data: bytes, **headers: str) -> None:
            self.send_response(200)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def log_message(self, *_: Any) -> None: ...

    with serving(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
        yield fetched


def test_the_weights_of_a_checkpoint_on_the_hub_are_found_by_their_name(hub: list[str]) -> None:
    model = load_model(settings("lab/gelu", revision="c" * 40))
    assert torch.equal(model.lm_head.bias, random_weights()["unembed.b_U"])
    assert set(hub) == {"config.json", "model_final.pth"}


# ---- tokenizers -----------------------------------------------------------------------------------------------------


def test_the_tokenizer_is_the_one_that_the_checkpoint_names_or_the_sweep_file(directory: Path, tmp_path: Path) -> None:
    builtin = load_tokenizer(settings("builtin"))
    assert load_tokenizer(settings(directory)).get_vocab() == builtin.get_vocab()
    builtin.save_pretrained(tmp_path / "own")
    model = configure(directory, tokenizer_name="lab/no-such-tokenizer")
    own = model.model_copy(update={"tokenizer": str(tmp_path / "own")})
    assert load_tokenizer(own).get_vocab() == builtin.get_vocab()
    message = complaint(load_tokenizer, model)
    assert message.startswith("model.tokenizer: ") and "'lab/no-such-tokenizer'" in message


def test_a_checkpoint_that_names_no_tokenizer_needs_one(directory: Path) -> None:
    model = configure(directory, "tokenizer_name")
    assert complaint(load_tokenizer, model).startswith("model.tokenizer: missing")
    assert load_tokenizer(model.model_copy(update={"tokenizer": "builtin"})).bos_token_id == 0


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(directory: Path) -> None:
    message = complaint(load_tokenizer, configure(directory, d_vocab=4095))
    assert message.startswith("model.tokenizer: 'builtin' has 4096 tokens") and "4095" in message


def test_a_sweep_over_such_a_checkpoint_begins_each_context_with_bos(saved: Path, tmp_path: Path) -> None:
    """From the sweep file to activations and an evaluation; these models were trained with a BOS."""
    sweep = Sweep.model_validate(
        {
            "name": "gelu",
            "model": {"name": str(saved), "tokenizer": "builtin", "context_size": 32},
            "dataset": {"name": "builtin", "prepend_bos": True},
            "sites": {"layers": [0, 1], "points": ["mlp_post"]},
            "saes": [{"architecture": "gated", "widths": [16], "l1_coefficient": 1.0}],
            "training": {"tokens": 512, "batch_size": 64, "lr": 1e-3},
            "evaluation": {"tokens": 256},
        }
    )
    plan = prepare(sweep, tmp_path)
    site = Site.of_point(0, "mlp_post")
    assert plan.layout.widths == {site.name: MLP, "blocks.1.mlp.hook_post": MLP}
    for tokens_BT in (tokens_of(plan).block(0), tokens_of(plan).heldout()):
        assert (tokens_BT[:, 0] == 0).all() and not tokens_of(plan).kept(tokens_BT)[:, 0].any()
    producer = Producer(producer_spec(plan))
    statistics, chunks = producer.produce(0, [site.name])
    assert chunks[0].shape == (plan.layout.rows[0], MLP)
    tokens_BT = tokens_of(plan).block(0)
    rows_Rn = by_hand(random_weights(), tokens_BT)[site.name][tokens_of(plan).kept(tokens_BT)]
    torch.testing.assert_close(torch.from_numpy(statistics[site.name].mean), rows_Rn.mean(0), rtol=0, atol=1e-5)
    found = producer.run(Evaluate(site.name, *to_bytes(random_sae(plan.trials[0])))).metrics
    assert {"l0", "loss_recovered", "fvu", "kl", "ce_zero"} <= found.keys()


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("normalization", "LNPre"),
        ("normalization_type", "RMS"),
        ("act_fn", "solu_ln"),
        ("attn_only", True),
        ("shortformer_pos", True),
        ("positional_embedding_type", "rotary"),
        ("use_attn_scale", False),
        ("attn_scale", 1.0),
        ("n_key_value_heads", 2),
        ("gated_mlp", True),
        ("parallel_attn_mlp", True),
        ("final_rms", True),
        ("d_head", 16),
        ("d_vocab_out", 10),
    ],
)
def test_what_gpt_2_does_not_compute_is_refused_by_name(key: str, value: Any, directory: Path) -> None:
    model = configure(directory, **{key: value})
    for load in (load_config, load_skeleton, load_model):
        message = complaint(load, model)
        assert message.startswith("model.name: ") and key in message and "supported: " in message


@pytest.mark.parametrize("key", ["n_layers", "n_heads", "d_head", "d_mlp", "d_vocab", "act_fn", "normalization"])
def test_a_key_that_is_missing_is_named(key: str, directory: Path) -> None:
    assert f"'{key}'".replace("normalization", "normalization_type") in complaint(
        load_config, configure(directory, key)
    )


def test_a_weight_that_is_missing_or_of_another_shape_or_left_over_is_named(directory: Path) -> None:
    key = "blocks.1.mlp.W_in"
    assert f"{key} is missing" in complaint(load_model, edit_weights(directory, lambda w: w.pop(key)))
    wrong = complaint(load_model, edit_weights(directory, lambda w: w.update({key: torch.zeros(MLP, D)})))
    assert key in wrong and f"[{MLP}, {D}], not [{D}, {MLP}]" in wrong
    right_and_more = {key: torch.zeros(D, MLP), "blocks.1.mlp.ln.w": torch.ones(MLP)}  # SoLU's extra norm
    assert "blocks.1.mlp.ln.w" in complaint(load_model, edit_weights(directory, lambda w: w.update(right_and_more)))


def test_code_in_a_checkpoint_is_never_run(directory: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({**random_weights(), "bomb": Bomb()}, directory / "model_final.pth")
    assert "tensors only" in complaint(load_model, settings(directory))
    (directory / "model_final.pth").write_bytes(pickle.dumps(Bomb()))
    assert "tensors only" in complaint(load_model, settings(directory))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"no pickle", b"PK\x03\x04 cut short"])
def test_a_broken_file_of_weights_is_one_line(content: bytes, directory: Path) -> None:
    (directory / "model_final.pth").write_bytes(content)
    assert "model_final.pth" in complaint(load_model, settings(directory))


def test_one_file_of_weights_is_expected(directory: Path) -> None:
    shutil.copy(directory / "model_final.pth", directory / "other_final.pth")
    assert "model_final.pth, other_final.pth" in complaint(load_model, settings(directory))
    for path in directory.glob("*.pth"):
        path.unlink()
    assert complaint(load_model, settings(directory)).endswith("found: none")
