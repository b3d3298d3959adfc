"""Tables of features, against a computation that has all activations of a tiny model and SAE in memory."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from slow_evaluation import CONTEXTS, LENGTH, VOCABULARY, N, kept, make_sae
from torch import Tensor

from gsae_ray.config.features import FeatureSettings
from gsae_ray.config.sections import ModelSettings
from gsae_ray.config.site import Site
from gsae_ray.data.tokens import PADDING, model_input
from gsae_ray.errors import NumericError
from gsae_ray.evaluation import feature_statistics, feature_windows
from gsae_ray.evaluation.feature_directions import logit_effects, neighbours
from gsae_ray.evaluation.feature_firings import EDGES
from gsae_ray.evaluation.feature_statistics import FeatureStatistics, Looked
from gsae_ray.evaluation.task import Evaluate
from gsae_ray.feature_tables import FeatureTables, read
from gsae_ray.language_model import hooks
from gsae_ray.language_model.source import HeldOutContexts
from gsae_ray.language_model.unembedding import unembedding_of
from gsae_ray.saes import SAE, to_bytes

SITE = Site("blocks.0.hook_resid_post")
SETTINGS = FeatureSettings(contexts=6, window=5)
BUILTIN = ModelSettings(name="builtin")


class Source:
    """A producer's source on held-out contexts."""

    device = torch.device("cpu")

    def __init__(self, model: Any, tokens_ET: Tensor, batch: int = 4, max_norm: float | None = None) -> None:
        self.max_norm = max_norm
        self.contexts = HeldOutContexts(model, tokens_ET, kept, batch)

    def heldout(self) -> HeldOutContexts:
        return self.contexts


def sae_of(architecture: str = "gated", d_sae: int = 24, seed: int = 3) -> SAE:
    """Some of its features never fire, some rarely."""
    sae = make_sae(architecture, d_sae, seed)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            if name in ("b_enc", "b_gate", "b_mag"):
                parameter.sub_(torch.linspace(0, 12, d_sae))
    return sae


def looked_at(folder: Path, site: Site, sae: SAE, label: str = "a") -> Looked:
    coordinates = sae.cfg.d_in + sae.cfg.width_out
    return Looked(site.name, folder / "sae", folder / "features", "0" * 64, label, sae.cfg.d_sae, coordinates)


def tables_of(
    folder: Path, source: Any, saes: dict[str, tuple[Site, SAE]], settings: FeatureSettings = SETTINGS
) -> dict[str, FeatureTables]:
    looked = []
    for name, (site, sae) in saes.items():
        sae.save(folder / name / "sae")
        looked.append(looked_at(folder / name, site, sae, name))
    task = FeatureStatistics(tuple(looked), settings, BUILTIN, "1" * 64)
    said: list[str] = []
    assert task.run(source, {}, said.append) == len(saes)
    found = {one.label: read(one.target) for one in looked}
    return {name: tables for name, tables in found.items() if tables is not None}


@pytest.fixture(scope="module")
def dense(model: Any, tokens_ET: Tensor) -> tuple[np.ndarray, Tensor]:
    """All activations [E, T, F] of `sae_of`, 0 where a position is no row, and which positions are rows."""
    with torch.no_grad():
        x_ETD = model(tokens_ET, output_hidden_states=True, use_cache=False).hidden_states[1]
        acts_ETF = sae_of().encode(x_ETD) * kept(tokens_ET)[..., None]
    return acts_ETF.numpy(), kept(tokens_ET)


@pytest.fixture(scope="module")
def tables(model: Any, tokens_ET: Tensor, tmp_path_factory: pytest.TempPathFactory) -> FeatureTables:
    return tables_of(tmp_path_factory.mktemp("tables"), Source(model, tokens_ET), {"a": (SITE, sae_of())})["a"]


def test_counts_and_histograms_are_those_of_all_activations(
    tables: FeatureTables, dense: tuple[np.ndarray, Tensor]
) -> None:
    acts_RF, rows = dense[0][dense[1].numpy()], int(dense[1].sum())
    found = tables.features.to_pandas()
    assert found["feature"].tolist() == list(range(acts_RF.shape[1])) and tables.about["rows"] == rows
    assert found["fired"].tolist() == (acts_RF > 0).sum(0).tolist()
    assert (found["fired"] == 0).any() and (found["fired"] > 30).any() and found["fired"].between(1, 3).any()
    np.testing.assert_allclose(found["density"], (acts_RF > 0).mean(0))
    np.testing.assert_allclose(found["max_activation"], acts_RF.max(0), rtol=1e-5)
    means = [column[column > 0].mean() if (column > 0).any() else 0 for column in acts_RF.T]
    np.testing.assert_allclose(found["mean_activation"], means, rtol=1e-5)
    for column, histogram in zip(acts_RF.T, found["histogram"], strict=True):
        expected, _ = np.histogram(column[column > 0].clip(EDGES[0], EDGES[-1]), EDGES)
        assert histogram.tolist() == expected.tolist()
    assert tables.about["histogram_edges"] == EDGES.tolist()
    contexts, positions, features = dense[0].shape
    edges = tables.about["position_edges"]
    assert (tables.about["contexts"], edges[0], edges[-1], len(edges)) == (contexts, 0, positions, 17)
    fires_TF = (dense[0] > 0).sum(0)
    for feature in range(features):
        counts = [int(fires_TF[low:high, feature].sum()) for low, high in zip(edges, edges[1:], strict=False)]
        assert found["positions"][feature].tolist() == counts


def expected_top(acts_ET: np.ndarray, number: int) -> list[tuple[int, int]]:
    """(context, position) of the largest activations, each of another context."""
    best = [(float(acts_T.max()), -context, int(acts_T.argmax())) for context, acts_T in enumerate(acts_ET)]
    return [(-context, position) for value, context, position in sorted(best, reverse=True) if value > 0][:number]


def test_shown_pieces_are_the_largest_of_each_context_and_quantiles_of_the_rest(
    tables: FeatureTables, dense: tuple[np.ndarray, Tensor]
) -> None:
    acts_ETF, shown = dense[0], tables.contexts.to_pandas()
    for feature in range(acts_ETF.shape[2]):
        acts_ET = acts_ETF[..., feature]
        own = shown[shown["feature"] == feature]
        top, quantile = (own[own["kind"] == kind] for kind in ("top", "quantile"))
        places = list(zip(top["context"], top["position"], strict=True))
        assert places == expected_top(acts_ET, 3) and top["quantile"].isna().all()
        values = np.sort(acts_ET[acts_ET > 0])
        assert len(quantile) == min(3, len(values) - len(top))
        at = [
            acts_ET[context, position]
            for context, position in zip(quantile["context"], quantile["position"], strict=True)
        ]
        assert sorted(at, reverse=True) == at and not set(
            zip(quantile["context"], quantile["position"], strict=True)
        ) & {*places}
        if len(values) <= 64:  # the sample has all of them
            np.testing.assert_allclose(quantile["quantile"], [(values < value).mean() for value in at], atol=1e-6)
        if len(values) > 40:
            contexts = [*top["context"], *quantile["context"]]
            assert len({*contexts}) == len(contexts), "there are contexts enough"
            wanted = np.array([5, 3, 1]) / 6
            assert np.abs(quantile["quantile"].to_numpy() - wanted).max() < 0.2
        for kind in (top, quantile):
            assert kind["rank"].tolist() == list(range(len(kind)))
    order = list(zip(shown["feature"], shown["kind"] == "quantile", shown["rank"], strict=True))
    assert order == sorted(order)


def test_pieces_have_the_activation_of_every_token(
    tables: FeatureTables, dense: tuple[np.ndarray, Tensor], tokens_ET: Tensor
) -> None:
    for row in tables.contexts.to_pylist():
        start, stop = row["start"], row["start"] + 5
        assert 0 <= start <= row["position"] < stop <= LENGTH and start in (row["position"] - 2, 0, LENGTH - 5)
        assert row["tokens"] == tokens_ET[row["context"], start:stop].tolist()
        expected = dense[0][row["context"], start:stop, row["feature"]]
        np.testing.assert_allclose(row["activations"], expected, rtol=1e-5, atol=1e-6)


def test_a_feature_is_off_in_the_pieces_that_say_so(tables: FeatureTables, dense: tuple[np.ndarray, Tensor]) -> None:
    rows, found = tables.contexts.to_pylist(), 0
    for feature, off in enumerate(tables.features["off"].to_pylist()):
        assert len(set(off)) == len(off) <= feature_windows.OFF
        found += len(off)
        for row in (rows[place] for place in off):
            assert row["feature"] != feature
            assert (dense[0][row["context"], row["start"] : row["start"] + 5, feature] == 0).all()
    rare = tables.features["density"].to_numpy() < 0.02
    assert found and all(tables.features["off"].to_pylist()[feature] for feature in np.flatnonzero(rare))


def test_tokens_and_coactive_features_are_those_of_the_rows(
    tables: FeatureTables, dense: tuple[np.ndarray, Tensor], tokens_ET: Tensor
) -> None:
    acts_ETF, shown = dense[0], tables.contexts.to_pandas()
    for row in tables.features.to_pylist():
        fires_ET = acts_ETF[..., row["feature"]] > 0
        if row["fired"] <= 64:
            counts = Counter(tokens_ET[torch.from_numpy(fires_ET)].tolist())
            expected = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:10]
            assert list(zip(row["top_tokens"], row["top_token_counts"], strict=True)) == expected
        else:
            assert sum(row["top_token_counts"]) <= 64
        top = shown[(shown["feature"] == row["feature"]) & (shown["kind"] == "top")]
        on_KF = np.array([acts_ETF[c, p] > 0 for c, p in zip(top["context"], top["position"], strict=True)])
        if len(top):
            counts_F = on_KF.sum(0)
            fired_F = (acts_ETF > 0).sum((0, 1))
            others = [f for f in range(len(counts_F)) if counts_F[f] and f != row["feature"]]
            others = sorted(others, key=lambda f: (-counts_F[f], fired_F[f], f))[:10]
            assert row["coactive"] == others
            np.testing.assert_allclose(row["coactive_shares"], counts_F[others] / len(top), rtol=1e-6)
        else:
            assert row["fired"] == 0 and row["coactive"] == row["top_tokens"] == []


def test_neighbours_and_logit_effects_are_those_of_the_decoder(tables: FeatureTables, model: Any) -> None:
    sae = sae_of()
    rows_FD = sae.W_dec.detach()
    cosines_FF = torch.nn.functional.cosine_similarity(rows_FD[:, None], rows_FD[None], dim=-1).fill_diagonal_(-2)
    norm = model.gpt_neox.final_layer_norm
    moved_FD = (rows_FD - rows_FD.mean(1, keepdim=True)) * norm.weight
    effects_FV = moved_FD @ model.get_output_embeddings().weight.T
    for row in tables.features.to_pylist():
        cosines, index = cosines_FF[row["feature"]].topk(10)
        assert row["neighbours"] == index.tolist()
        np.testing.assert_allclose(row["neighbour_cosines"], cosines, atol=1e-5)
        for name, largest in (("raised", True), ("lowered", False)):
            effects, token = effects_FV[row["feature"]].topk(10, largest=largest)
            assert row[f"{name}_tokens"] == token.tolist()
            np.testing.assert_allclose(row[f"{name}_logits"], effects.detach(), atol=1e-4)
    assert "less its mean, times the final norm's scale" in str(tables.about["logit_effects"])
    ids = {token for row in tables.contexts.to_pylist() for token in row["tokens"]}
    assert ids <= {*tables.texts()} and all(tables.texts().values()) and len(tables.texts()) <= VOCABULARY


def same(one: FeatureTables, other: FeatureTables) -> None:
    """Equal, but for the last bits of numbers."""
    assert one.about == other.about
    for name in ("features", "contexts", "tokens"):
        mine, theirs = getattr(one, name), getattr(other, name)
        for column in mine.column_names:
            values = [table[column].combine_chunks() for table in (mine, theirs)]
            if hasattr(values[0], "offsets"):
                assert values[0].offsets.equals(values[1].offsets), column
                values = [array.values for array in values]
            if column == "text" or column == "kind":
                assert values[0].equals(values[1])
            else:
                one_N, other_N = (array.to_numpy(False) for array in values)
                np.testing.assert_allclose(one_N, other_N, 1e-4, 1e-5, err_msg=column)


def test_batches_slices_and_company_change_nothing(
    tables: FeatureTables, model: Any, tokens_ET: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same(tables_of(tmp_path / "batch", Source(model, tokens_ET, batch=3), {"a": (SITE, sae_of())})["a"], tables)
    monkeypatch.setattr(feature_statistics, "SLICE_BYTES", 7 * 4 * 24)
    monkeypatch.setattr(feature_windows, "FEATURES_AT_ONCE", 5)
    other = Site("blocks.1.hook_resid_post")
    several = {"b": (other, sae_of("standard", 30, 5)), "a": (SITE, sae_of()), "c": (SITE, sae_of(seed=8))}
    same(tables_of(tmp_path / "several", Source(model, tokens_ET), several)["a"], tables)


def test_sites_share_a_pass_and_saes_that_do_not_fit_do_not(
    model: Any, tokens_ET: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[tuple[str, ...]] = []
    capture = hooks.capture

    def counted(model: Any, tokens: Tensor, sites: Any, kept: Any = None) -> Any:
        runs.append(tuple(site.name for site in sites))
        return capture(model, tokens, sites, kept)

    monkeypatch.setattr(hooks, "capture", counted)
    other = Site("blocks.1.hook_resid_post")
    saes = {"a": (SITE, sae_of()), "b": (other, sae_of("standard"))}
    source = Source(model, tokens_ET, batch=CONTEXTS)
    tables_of(tmp_path / "together", source, saes)
    assert runs == 2 * [(SITE.name, other.name)]
    runs.clear()
    apart = tables_of(tmp_path / "apart", source, saes, SETTINGS.model_copy(update={"memory_gib": 1e-9}))
    assert runs == [(SITE.name,), (SITE.name,), (other.name,), (other.name,)]
    same(apart["b"], tables_of(tmp_path / "again", source, {"b": saes["b"]})["b"])


def test_wide_saes_may_take_longer_than_narrow_ones() -> None:
    made = Path("features")
    widths = (16_384, 16_385, 131_072)
    looked = tuple(Looked(SITE.name, made, made, "0", "an SAE", width, 256) for width in widths)
    assert FeatureStatistics(looked, SETTINGS, BUILTIN, "1" * 64).evaluations == 1 + 2 + 8


def test_what_evaluations_keep_gives_way_to_tables_and_changes_no_evaluation(
    model: Any, tokens_ET: Tensor, tmp_path: Path
) -> None:
    source: Any = Source(model, tokens_ET)
    cache: dict[str, Any] = {}
    evaluate = Evaluate(SITE.name, *to_bytes(sae_of()))
    before = evaluate.run(source, cache, print)
    assert cache["evaluator"]._clean
    sae_of().save(tmp_path / "sae")
    FeatureStatistics((looked_at(tmp_path, SITE, sae_of()),), SETTINGS, BUILTIN, "1" * 64).run(source, cache, print)
    assert not cache["evaluator"]._clean
    assert evaluate.run(source, cache, print).metrics == before.metrics


def test_what_is_there_is_not_made_again(model: Any, tokens_ET: Tensor, tmp_path: Path) -> None:
    sae_of().save(tmp_path / "sae")
    looked = looked_at(tmp_path, SITE, sae_of())
    task = FeatureStatistics((looked,), SETTINGS, BUILTIN, "1" * 64)
    source: Any = Source(model, tokens_ET)
    assert task.run(source, {}, print) == 1
    before = (tmp_path / "features/about.json").stat().st_mtime_ns
    assert task.run(source, {}, print) == 0
    assert (tmp_path / "features/about.json").stat().st_mtime_ns == before
    wider = FeatureStatistics((looked,), FeatureSettings(contexts=6, window=6), BUILTIN, "1" * 64)
    assert wider.run(source, {}, print) == 1, "other pieces are asked for"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features", "sae"], "nothing is left beside them"


def test_rows_of_massive_norm_and_short_contexts(model: Any, tokens_ET: Tensor, tmp_path: Path) -> None:
    tokens_ET = tokens_ET.clone()
    tokens_ET[2, 4:] = PADDING
    x_ETD = model(model_input(tokens_ET), output_hidden_states=True, use_cache=False).hidden_states[1]
    norms_R = x_ETD[kept(tokens_ET)].norm(dim=-1)
    max_norm = float(norms_R.quantile(0.8) / norms_R.median())
    part_ET = kept(tokens_ET) & (x_ETD.norm(dim=-1) <= max_norm * norms_R.median())
    acts_ETF = (sae_of().encode(x_ETD) * part_ET[..., None]).detach().numpy()
    settings = FeatureSettings(contexts=6, window=8, tokens=50)
    source = Source(model, tokens_ET, max_norm=max_norm)
    found = tables_of(tmp_path, source, {"a": (SITE, sae_of())}, settings)["a"]
    rows_E = kept(tokens_ET).sum(1).cumsum(0)
    contexts = int((rows_E < 50).sum()) + 1
    assert 1 < contexts < CONTEXTS and found.about["rows"] == int(part_ET[:contexts].sum())
    assert found.features["fired"].to_pylist() == (acts_ETF[:contexts] > 0).sum((0, 1)).tolist()
    short = False
    for row in found.contexts.to_pylist():
        length = 4 if row["context"] == 2 else LENGTH
        short |= row["context"] == 2
        stop = row["start"] + min(8, length)
        assert row["tokens"] == tokens_ET[row["context"], row["start"] : stop].tolist() and stop <= length
        expected = acts_ETF[row["context"], row["start"] : stop, row["feature"]]
        np.testing.assert_allclose(row["activations"], expected, rtol=1e-5, atol=1e-6)
    assert short, "some piece is of the short context"


def test_an_sae_whose_features_never_fire(model: Any, tokens_ET: Tensor, tmp_path: Path) -> None:
    sae = make_sae("standard", 8, 1)
    with torch.no_grad():
        sae.get_parameter("b_enc").fill_(-1e6)
    found = tables_of(tmp_path, Source(model, tokens_ET), {"a": (SITE, sae)})["a"]
    assert found.features["fired"].to_pylist() == [0] * 8 and found.contexts.num_rows == 0
    assert found.features["max_activation"].to_pylist() == found.features["mean_activation"].to_pylist() == [0] * 8
    assert all(found.features["neighbours"].to_pylist())


def test_sites_off_the_residual_stream_have_no_logit_effects(model: Any, tokens_ET: Tensor, tmp_path: Path) -> None:
    sae = make_sae("standard", 8, 1)
    found = tables_of(tmp_path, Source(model, tokens_ET), {"a": (Site("blocks.0.mlp.hook_in"), sae)})["a"]
    assert found.about["logit_effects"] is None
    assert found.features["raised_tokens"].to_pylist() == found.features["lowered_logits"].to_pylist() == [[]] * 8


def test_activations_that_are_not_finite_are_told(model: Any, tokens_ET: Tensor, tmp_path: Path) -> None:
    broken: Any = type(model)(model.config).eval().requires_grad_(False)
    with torch.no_grad():
        broken.gpt_neox.layers[0].mlp.dense_h_to_4h.bias.fill_(torch.nan)
    with pytest.raises(NumericError, match="activations at blocks"):
        tables_of(tmp_path, Source(broken, tokens_ET), {"a": (SITE, make_sae("standard", 8, 1))})


def test_blocks_of_directions_change_nothing(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    W_dec, end = sae_of(d_sae=40).W_dec.detach(), unembedding_of(model)
    assert end is not None
    whole = neighbours(W_dec), *logit_effects(W_dec, end)
    monkeypatch.setattr("gsae_ray.evaluation.feature_directions.BLOCK_NUMBERS", 12 * N)
    for one, other in zip(whole, (neighbours(W_dec), *logit_effects(W_dec, end)), strict=True):
        assert torch.equal(one.index_FK, other.index_FK)
        torch.testing.assert_close(one.value_FK, other.value_FK)
