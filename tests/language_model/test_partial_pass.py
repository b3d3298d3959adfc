"""Passes that begin in the middle of a model give the logits of whole ones, bit for bit, in every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import LAYERS, TOKENS, D, family, model_of, sites_of
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Gemma3nTextConfig, LlamaConfig, MambaConfig

from gsae_ray.config.site import Site
from gsae_ray.language_model.hooks import edited
from gsae_ray.language_model.partial_pass import PartialPasses, layers_before, shares_keys

SLICES = [TOKENS, TOKENS.flip(1)]
SHARED_KV = {"gemma4_text"}
"""Families whose last layer here takes keys and values from the one before it."""


def halve(x: Tensor) -> Tensor:
    return x / 2


def whole(model: nn.Module, tokens_BT: Tensor, site: Site | None) -> Tensor:
    with torch.no_grad(), edited(model, {site: halve} if site else {}):
        return model(tokens_BT, use_cache=False).logits


def hooks(model: nn.Module) -> list[tuple[int, bool]]:
    return [(len(module._forward_hooks), "forward" in module.__dict__) for module in model.modules()]


class Calls:
    """Counts how often the layers of a model compute."""

    def __init__(self, layers: nn.ModuleList) -> None:
        self.count = 0
        # A part of each layer: a layer that is left out is called too, and does not compute.
        parts = [next(iter(layer.children())) for layer in layers]
        self.handles = [part.register_forward_hook(self._called) for part in parts]

    def _called(self, *_: Any) -> None:
        self.count += 1

    def of_a_pass(self, passes: PartialPasses, index: int, skip: int) -> int:
        before = self.count
        passes.logits(index, skip, {})
        return self.count - before


@family
def test_logits_equal_those_of_whole_passes_at_every_site(name: str) -> None:
    model = model_of(name)
    before = hooks(model)
    passes = PartialPasses(model, SLICES, 2**20)
    clean = [whole(model, tokens_BT, None) for tokens_BT in SLICES]
    for site in sites_of(name):
        skip = layers_before(model, site)
        assert site.layer is not None
        assert skip == site.layer + (site.point == "resid_post")
        if skip != 2:
            continue
        for index, tokens_BT in enumerate(SLICES):
            edited_BTV = whole(model, tokens_BT, site)
            for _ in range(2):  # the first pass leaves what the second one begins with
                assert torch.equal(passes.logits(index, skip, {site: halve}), edited_BTV)
                assert torch.equal(passes.logits(index, skip, {}), clean[index])
    assert hooks(model) == before, "the model is left as it was"


@family
def test_layers_before_a_site_do_not_compute_again(name: str) -> None:
    model = model_of(name)
    passes = PartialPasses(model, SLICES, 2**20)
    calls = Calls(passes.layers)
    try:
        for skip in range(LAYERS + 1):
            for index in range(len(SLICES)):
                passes.logits(index, skip, {})
            left_out = 0 if name in SHARED_KV and skip == LAYERS - 1 else skip
            assert calls.of_a_pass(passes, 1, skip) == LAYERS - left_out, skip
    finally:
        for handle in calls.handles:
            handle.remove()


@family
def test_where_passes_begin_is_known_from_the_configuration_and_told_where_they_do_not(name: str) -> None:
    model = model_of(name)
    passes = PartialPasses(model, SLICES, 2**20)
    for skip in range(LAYERS + 1):
        passes.logits(0, skip, {})
    whole_ones = [skip for skip in range(LAYERS + 1) if shares_keys(model.config, skip)]
    assert whole_ones == ([LAYERS - 1] if name in SHARED_KV else [])
    assert passes.notices() == [
        f"evaluations after layer {skip - 1} run all {LAYERS} layers of the model, not only those that follow: "
        "passes of this model that begin there give other logits"
        for skip in whole_ones
    ]


def test_several_last_layers_take_keys_and_values_from_those_before_them() -> None:
    torch.manual_seed(0)
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    sizes = {"vocab_size": 64, "hidden_size": D, "intermediate_size": D, "num_hidden_layers": 5, "head_dim": 16}
    sizes |= {"vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 8, "laurel_rank": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 4, "pad_token_id": 0}
    config = Gemma3nTextConfig(
        **sizes, **heads, layer_types=kinds, num_kv_shared_layers=2, activation_sparsity_pattern=[0.0] * 5
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    passes = PartialPasses(model, SLICES, 2**20)
    for skip in range(1, 6):
        assert torch.equal(passes.logits(0, skip, {}), whole(model, SLICES[0], None))
        assert any(f"after layer {skip - 1} " in line for line in passes.notices()) == shares_keys(config, skip)
    assert [skip for skip in range(6) if shares_keys(config, skip)] == [2, 3, 4]


def test_what_is_kept_stays_within_its_bytes() -> None:
    model = model_of("llama")
    a_slice = TOKENS.numel() * D * 4
    passes = PartialPasses(model, SLICES, a_slice + a_slice // 2)
    calls = Calls(passes.layers)
    try:
        for _ in range(2):
            for index, tokens_BT in enumerate(SLICES):
                assert torch.equal(passes.logits(index, 2, {}), whole(model, tokens_BT, None))
        assert [calls.of_a_pass(passes, index, 2) for index in (0, 1)] == [LAYERS - 2, LAYERS]
        nothing = PartialPasses(model, SLICES, 0)
        nothing.logits(0, 2, {})
        assert calls.of_a_pass(nothing, 0, 2) == LAYERS
    finally:
        for handle in calls.handles:
            handle.remove()


def test_sites_outside_of_layers_need_the_whole_pass() -> None:
    model = model_of("gpt_neox")
    assert layers_before(model, Site.of_module("gpt_neox.embed_in", "output")) == 0
    assert layers_before(model, Site.of_module("gpt_neox.layers.2.mlp", "output")) == 2
    assert layers_before(model, Site.of_module("gpt_neox.layers.1", "input")) == 1


class InTurn(nn.Module):
    """The same layer under several numbers, as in models that loop."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        return self.layer(hidden_states, **kwargs)


def llama() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=D, intermediate_size=D, num_hidden_layers=LAYERS, num_attention_heads=4
    )
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("skip", [1, 2, LAYERS])
def test_a_layer_that_is_called_more_than_once_is_not_left_out(skip: int) -> None:
    model = llama()
    model.model.layers = nn.ModuleList([InTurn(model.model.layers[0])] * LAYERS)
    passes = PartialPasses(model, SLICES, 2**20)
    for _ in range(2):
        assert torch.equal(passes.logits(1, skip, {}), whole(model, SLICES[1], None))


class Leaving(nn.Module):
    """A layer that leaves something on itself, as some models hand on keys and values."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.left = torch.zeros(())

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        self.left = hidden_states.square()
        return self.layer(hidden_states, **kwargs)


class Taking(nn.Module):
    """A layer that takes what another one has left."""

    def __init__(self, layer: nn.Module, source: Leaving) -> None:
        super().__init__()
        self.layer = layer
        self.sources = (source,)  # no submodule

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        return self.layer(hidden_states + self.sources[0].left, **kwargs)


def test_layers_that_hand_each_other_more_by_way_of_modules_are_not_left_out() -> None:
    model = llama()
    leaving = Leaving(model.model.layers[0])
    taking = Taking(model.model.layers[2], leaving)
    model.model.layers = nn.ModuleList([leaving, model.model.layers[1], taking])
    passes = PartialPasses(model, SLICES, 2**20)
    for _ in range(2):
        for index, tokens_BT in enumerate(SLICES):
            assert torch.equal(passes.logits(index, 2, {}), whole(model, tokens_BT, None))


def test_what_spares_more_layers_takes_the_place_of_what_spares_fewer() -> None:
    model = model_of("llama")
    passes = PartialPasses(model, SLICES, 3 * TOKENS.numel() * D * 4)
    calls = Calls(passes.layers)
    try:
        for skip in (1, LAYERS, 1):
            for index, tokens_BT in enumerate(SLICES):
                assert torch.equal(passes.logits(index, skip, {}), whole(model, tokens_BT, None))
        assert [calls.of_a_pass(passes, index, LAYERS) for index in (0, 1)] == [0, 0]
        assert sorted(calls.of_a_pass(passes, index, 1) for index in (0, 1)) == [LAYERS - 1, LAYERS]
    finally:
        for handle in calls.handles:
            handle.remove()


def test_numbers_that_are_not_finite_are_the_same_too() -> None:
    model = llama()
    with torch.no_grad():
        model.lm_head.weight[3] = torch.nan
    passes = PartialPasses(model, SLICES, 2**20)
    passes.logits(0, 2, {})
    assert Calls(passes.layers).of_a_pass(passes, 0, 2) == LAYERS - 2


def test_an_edit_that_fails_leaves_the_model_as_it_was() -> None:
    model, site = model_of("llama"), Site.of_point(1, "mlp_out")
    before = hooks(model)
    passes = PartialPasses(model, SLICES, 2**20)

    def fail(_: Tensor) -> None:
        raise ArithmeticError

    for _ in range(2):  # a pass that is to leave what layers give, and one that begins with it
        with pytest.raises(ArithmeticError):
            passes.logits(0, 1, {site: fail})
        assert hooks(model) == before
        assert torch.equal(passes.logits(0, 1, {}), whole(model, SLICES[0], None))


def test_a_family_that_is_in_no_table_and_has_no_attention() -> None:
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=64, hidden_size=D, num_hidden_layers=LAYERS, state_size=8)
    model = AutoModelForCausalLM.from_config(config).eval()
    passes = PartialPasses(model, SLICES, 2**20)
    site = Site.of_module("backbone.layers.1.mixer", "output")
    skip = layers_before(model, site)
    assert skip == 1
    for _ in range(2):
        assert torch.equal(passes.logits(0, skip, {site: halve}), whole(model, SLICES[0], site))
    calls = Calls(passes.layers)
    assert calls.of_a_pass(passes, 0, skip) == LAYERS - 1
