"""Sparse probing of an SAE on the activations of a tiny model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from slow_evaluation import CONTEXTS, LENGTH, SPECIAL, N, kept, make_sae
from torch import Tensor

from gsae_ray.config.site import Site
from gsae_ray.data.probe_set import NO_PART, ProbeSet, ProbeSets
from gsae_ray.evaluation import probing
from gsae_ray.evaluation.metrics import METRICS
from gsae_ray.evaluation.probing import Prober
from gsae_ray.language_model import hooks
from gsae_ray.language_model.source import HeldOutContexts
from gsae_ray.saes import SAE

SITE = Site("blocks.0.hook_resid_post")
DOCUMENTS = CONTEXTS // 2
NAMES = {name for name, metric in METRICS.items() if metric.takes == "probes"}


def probe_set(tokens_ET: Tensor, label: Callable[[Tensor], Tensor], pooled: bool = False) -> ProbeSet:
    """Documents of two contexts, or of one where they are pooled; `label` of token ids gives 0 and 1."""
    kept_CT = kept(tokens_ET)
    labels = label(tokens_ET).numpy().astype(np.int8)
    document_C = np.arange(CONTEXTS) if pooled else np.arange(CONTEXTS) // 2
    return ProbeSet(
        name="p",
        tokens_CT=tokens_ET.numpy().astype(np.int32),
        kept_CT=kept_CT.numpy(),
        document_C=document_C.astype(np.int32),
        fitted_M=np.arange(document_C.max() + 1) % 2 == 0,
        tasks=("p.a",),
        labels=(labels if pooled else np.where(kept_CT.numpy(), labels, NO_PART).astype(np.int8))[None],
        pooled=pooled,
    )


def prober(model: Any, *sets: ProbeSet, batch: int = 4, max_norm: float | None = None) -> Prober:
    heldout = HeldOutContexts(model, torch.zeros(1, LENGTH).long(), kept, batch)
    return Prober(heldout, max_norm, ProbeSets.of(sets, 1), torch.device("cpu"))


class Telling(torch.nn.Module):
    """In an SAE's place: feature 7 is 1 where a linear function of the row is above a bound, others are noise."""

    def __init__(self, direction_D: Tensor, bound: float) -> None:
        super().__init__()
        self.direction_D, self.bound = direction_D, bound
        self.cfg = make_sae().cfg
        self.noise_DF = torch.randn(N, self.cfg.d_sae, generator=torch.Generator().manual_seed(3))

    def encode(self, x_RD: Tensor) -> Tensor:
        acts_RF = torch.relu(x_RD @ self.noise_DF) / 100
        acts_RF[:, 7] = (x_RD @ self.direction_D > self.bound).float()
        return acts_RF


def rows_of(model: Any, tokens_ET: Tensor) -> Tensor:
    """The activations at the site [E, T, N]."""
    with torch.no_grad():
        return model(tokens_ET, output_hidden_states=True, use_cache=False).hidden_states[1]


def test_a_feature_that_is_the_label_has_an_auc_of_one(model: Any, tokens_ET: Tensor) -> None:
    direction_D = torch.randn(N, generator=torch.Generator().manual_seed(5))
    value_ET = rows_of(model, tokens_ET) @ direction_D
    bound = float(value_ET.median())
    one = probe_set(tokens_ET, lambda _: value_ET > bound)
    sae: Any = Telling(direction_D, bound)
    found = prober(model, one).measure(SITE, sae)
    own = {name: found.metrics[name] for name in ("probe_auc", "probe_auc_1", "probe_f1", "probe_f1_1")}
    assert own == dict.fromkeys(own, 1.0)
    assert [found.ends["probe_auc_1_low"], found.ends["probe_auc_1_high"]] == [1, 1]
    assert found.metrics["probe_auc_raw"] > 0.9, "a bound on a linear function is near to one"
    assert found.metrics["probe_auc_raw_1"] < 0.99
    assert found.metrics["probe_f1_raw"] > 0.8 > found.metrics["probe_f1_raw_1"], "the same probes, by their F1"
    assert found.metrics["probe_f1_raw_1"] <= found.metrics["probe_f1_raw_5"] < found.metrics["probe_f1_raw"]
    assert found.metrics.keys() == NAMES | {f"{name}/p.a" for name in NAMES} and found.sequences == {}
    assert found.ends.keys() == {f"{name}{end}" for name in NAMES for end in ("_low", "_high")}


@pytest.mark.parametrize("pooled", [False, True])
def test_numbers_do_not_depend_on_batches_and_are_the_same_again(model: Any, tokens_ET: Tensor, pooled: bool) -> None:
    def label(tokens: Tensor) -> Tensor:
        return tokens.sum(1) % 2 if pooled else tokens % 3 == 0

    one, sae = probe_set(tokens_ET, label, pooled), make_sae("gated", d_sae=40, seed=2)
    first = prober(model, one)
    found = first.measure(SITE, sae)
    assert found == first.measure(SITE, sae) == prober(model, one).measure(SITE, sae)
    other = prober(model, one, batch=3).measure(SITE, sae)
    assert other.metrics == pytest.approx(found.metrics, abs=1e-3)
    assert all(0 <= value <= 1 for value in found.metrics.values())


def test_a_pooled_document_is_the_mean_of_its_rows(model: Any, tokens_ET: Tensor) -> None:
    seen: list[Tensor] = []
    one = probe_set(tokens_ET, lambda tokens: tokens.sum(1) % 2, pooled=True)
    found = prober(model, one, batch=5)
    rows = found._run(SITE, one)  # what is kept of a site
    for _, values in found._batches(one, rows, lambda x_RD: x_RD):
        seen.append(values)
    x_ETD, kept_ET = rows_of(model, tokens_ET), kept(tokens_ET)
    expected = torch.stack([x_TD[kept_T].mean(0) for x_TD, kept_T in zip(x_ETD, kept_ET, strict=True)])
    torch.testing.assert_close(torch.cat(seen), expected)


def test_the_model_runs_once_a_site_while_there_is_room(
    model: Any, tokens_ET: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[str] = []
    capture = hooks.capture

    def counted(model: Any, tokens: Tensor, sites: Any, kept: Any) -> Any:
        runs.append(sites[0].name)
        return capture(model, tokens, sites, kept)

    monkeypatch.setattr(probing, "capture", counted)
    one, sae = probe_set(tokens_ET, lambda tokens: tokens % 3 == 0), make_sae()
    sites = [SITE, Site("blocks.1.hook_resid_post")]
    found = prober(model, one, batch=CONTEXTS)
    for site in (*sites, *sites):
        found.measure(site, sae)
    assert runs == [site.name for site in sites]
    monkeypatch.setattr(probing, "KEPT_BYTES", 1)
    for site in (sites[0], sites[1], sites[1], sites[0]):  # the first one is there still
        found.measure(site, sae)
    again = [sites[1].name, sites[0].name]
    assert runs == [*(site.name for site in sites), *again], "without room only the newest site is kept"


def test_rows_of_massive_norm_take_no_part(model: Any, tokens_ET: Tensor) -> None:
    one = probe_set(tokens_ET, lambda tokens: tokens % 3 == 0)
    norms_ET = rows_of(model, tokens_ET).norm(dim=-1)
    limit = float(norms_ET[kept(tokens_ET)].median())
    rows = prober(model, one, max_norm=1.05)._run(SITE, one)
    part_ET = kept(tokens_ET) & (norms_ET <= 1.05 * limit)
    assert 0 < len(rows.x_RD) == int(part_ET.sum()) < int(kept(tokens_ET).sum())
    assert rows.labels.tolist() == [(tokens_ET[part_ET] % 3 == 0).int().tolist()]
    assert SPECIAL not in tokens_ET[kept(tokens_ET)]


def test_what_a_task_leaves_out_is_neither_class(model: Any, tokens_ET: Tensor) -> None:
    """Labels that are wrong where a task leaves rows out change nothing."""
    direction_D = torch.randn(N, generator=torch.Generator().manual_seed(5))
    value_ET = rows_of(model, tokens_ET) @ direction_D
    bound = float(value_ET.median())
    one = probe_set(tokens_ET, lambda _: value_ET > bound)
    left_out = (tokens_ET.numpy() % 2 == 0)[None]
    one = ProbeSet(**{**vars(one), "labels": np.where(left_out, NO_PART, one.labels).astype(np.int8)})
    sae: SAE | Any = Telling(direction_D, bound)
    assert prober(model, one).measure(SITE, sae).metrics["probe_auc_1"] == 1
