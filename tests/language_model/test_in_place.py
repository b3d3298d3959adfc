"""Models write to tensors that they have passed on: a site's activations are those that its module got or gave."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoTokenizer, FalconConfig, FalconForCausalLM

from gsae_ray.activations.producer import Producer
from gsae_ray.builtin import MODEL_DIR
from gsae_ray.config.site import Site
from gsae_ray.config.sweep import Sweep
from gsae_ray.driver.prepare import PreparedSweep, prepare, producer_spec
from gsae_ray.language_model.hooks import capture, edited

N = 4
TOKENS_BT = torch.arange(10).reshape(2, 5)
KEPT_BT = TOKENS_BT % 3 != 0


class Adds(nn.Module):
    """Adds to its input; in place, then it returns nothing."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.inner = nn.Linear(N, N)
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor | None:
        if not self.in_place:
            return x + self.inner(x)
        x += self.inner(x)
        return None


class Toy(nn.Module):
    """Layers that compute the same whether they write in place or not."""

    def __init__(self, kinds: list[str], in_place: bool) -> None:
        super().__init__()
        self.kinds, self.in_place = kinds, in_place
        self.embed = nn.Embedding(10, N)
        self.attn = nn.ModuleList(nn.Linear(N, N) for _ in kinds)
        self.mlp = nn.ModuleList(nn.Linear(N, N) for _ in kinds)
        self.adds = nn.ModuleList(Adds(in_place) for _ in kinds)
        self.same = nn.ModuleList(nn.Identity() for _ in kinds)

    def forward(self, tokens_BT: Tensor, use_cache: bool = False) -> Tensor:  # noqa: ARG002  (as every model's)
        h = self.embed(tokens_BT)
        for i, kind in enumerate(self.kinds):
            if kind == "sum of outputs":  # as Falcon
                a, y = self.attn[i](h), self.mlp[i](h)
                if self.in_place:
                    y += a
                    y += h
                h = y if self.in_place else (y + a) + h
            elif kind == "residual":
                a = self.attn[i](h)
                if self.in_place:
                    h += a
                else:
                    h = h + a
            elif kind == "input":
                given = self.adds[i](h)
                h = h if self.in_place else given
            else:  # the output is the input's own tensor
                h = self.same[i](h)
                h = h.mul_(2) if self.in_place else h * 2
        return h

    def sites(self) -> list[Site]:
        """Every place that carries activations in both."""
        used = {"sum of outputs": ["attn.{}", "mlp.{}"], "residual": ["attn.{}"], "input": ["adds.{}", "adds.{}.inner"]}
        paths = [path.format(i) for i, kind in enumerate(self.kinds) for path in used.get(kind, ["same.{}"])]
        giving = ["embed", *(path for path in paths if not isinstance(self.get_submodule(path), Adds))]
        return [Site.of_module(path, "input") for path in paths] + [Site.of_module(path, "output") for path in giving]


def change(x: Tensor) -> Tensor:
    return 1 - 2 * x


def by_hand(model: Toy, site: Site, edit: bool = False) -> tuple[Tensor, Tensor]:
    """(activations, the model's output) of a model that writes nothing in place, with one hook."""
    path, _, io = site.name.rpartition(":")
    module, seen = model.get_submodule(path), []

    def hook(_module: nn.Module, args: tuple[Tensor, ...], *output: Tensor) -> Tensor | None:
        seen.append(output[0] if output else args[0])
        return change(seen[0]) if edit else None

    handle = module.register_forward_hook(hook) if io == "output" else module.register_forward_pre_hook(hook)
    out = model(TOKENS_BT)
    handle.remove()
    return seen[0], out


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(["sum of outputs", "residual", "input", "same"]), min_size=1, max_size=5))
@torch.no_grad()
def test_writing_in_place_before_or_after_a_site_changes_neither_what_is_read_nor_what_is_spliced(
    kinds: list[str],
) -> None:
    torch.manual_seed(0)
    plain, in_place = Toy(kinds, in_place=False), Toy(kinds, in_place=True)
    in_place.load_state_dict(plain.state_dict())
    assert torch.equal(in_place(TOKENS_BT), plain(TOKENS_BT))
    sites = plain.sites()
    together, kept = capture(in_place, TOKENS_BT, sites), capture(in_place, TOKENS_BT, sites, KEPT_BT)
    for site in sites:
        expected, _ = by_hand(plain, site)
        assert torch.equal(together[site], expected), site
        assert torch.equal(kept[site], expected[KEPT_BT]), site
        assert torch.equal(capture(in_place, TOKENS_BT, [site])[site], expected), site
        with edited(in_place, {site: change}):
            assert torch.equal(in_place(TOKENS_BT), by_hand(plain, site, edit=True)[1]), site


# ---- Falcon, which adds the attention's output to the MLP's ---------------------------------------------------------

MODULES = [f"transformer.h.{layer}.mlp" for layer in (0, 1)]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> PreparedSweep:
    folder = tmp_path_factory.mktemp("falcon")
    config = FalconConfig(
        vocab_size=4096, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, parallel_attn=True
    )
    torch.manual_seed(0)
    FalconForCausalLM(config).save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(MODEL_DIR).save_pretrained(folder / "model")
    sweep = Sweep.model_validate(
        {
            "name": "falcon",
            "model": {"name": str(folder / "model"), "context_size": 32},
            "dataset": {"name": "builtin"},
            "sites": {"modules": [{"module": module} for module in MODULES]},
            "saes": [{"architecture": "gated", "widths": [16], "l1_coefficient": 1.0}],
            "training": {"tokens": 1024, "batch_size": 64, "lr": 1e-3},
            "evaluation": {"tokens": 256},
        }
    )
    return prepare(sweep, folder)


def test_a_site_that_is_written_to_later_has_the_same_rows_in_a_sweep_as_alone(plan: PreparedSweep) -> None:
    producer = Producer(producer_spec(plan))
    sites = [f"{module}:output" for module in MODULES]
    statistics, chunks = producer.produce(0, sites)
    for site, chunk in zip(sites, chunks, strict=True):
        alone, (chunk_alone,) = producer.produce(0, [site])
        assert np.array_equal(chunk, chunk_alone)
        assert statistics[site].mean_square_norm == alone[site].mean_square_norm
