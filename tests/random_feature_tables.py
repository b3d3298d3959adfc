"""Tables of features of an SAE that nobody trained, for tests of what reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from mlflow.tracking import MlflowClient

from gsae_ray.feature_tables import About, FeatureTables
from gsae_ray.feature_tables.schema import CONTEXTS, FEATURES, TOKENS, VERSION

WORDS = [" the", " of", "\n", "return", "def", " x", " =", "(", ")", " sum", "é", " 7", "<b>", "&amp;", '"', "\t"]
EDGES = [float(2.0**power) for power in range(-6, 7)]


def random_tables(
    d_sae: int, contexts: int = 10, window: int = 16, seed: int = 0, label: str = "gated w12 λ2", dead: int = 1
) -> FeatureTables:
    """Tables with `contexts` shown pieces of `window` tokens a feature; the first `dead` features never fire."""
    rng = np.random.default_rng(seed)
    features: list[dict[str, Any]] = []
    shown: list[dict[str, Any]] = []
    rows = 10_000
    for feature in range(d_sae):
        fires = feature >= dead
        fired = int(rng.integers(contexts, 2000)) if fires else 0
        first = (feature - dead) * contexts
        off = sorted({int(place) for place in rng.integers((d_sae - dead) * contexts, size=contexts)})
        some = [int(token) for token in rng.choice(len(WORDS), 5, replace=False)]
        others = [int(other) for other in rng.permutation(d_sae) if other != feature][:4]
        falling = sorted((float(value) for value in rng.uniform(0, 1, len(others))), reverse=True)
        features.append(
            {
                "feature": feature,
                "density": fired / rows,
                "fired": fired,
                "max_activation": 9.5 if fires else 0.0,
                "mean_activation": 2.5 if fires else 0.0,
                "histogram": rng.multinomial(fired, np.ones(len(EDGES) - 1) / (len(EDGES) - 1)).tolist(),
                "positions": rng.multinomial(fired, np.ones(16) / 16).tolist(),
                "top_tokens": some if fires else [],
                "top_token_counts": [9, 7, 5, 3, 1] if fires else [],
                "raised_tokens": some,
                "raised_logits": [2.0, 1.5, 1.0, 0.5, 0.25],
                "lowered_tokens": some[::-1],
                "lowered_logits": [-2.0, -1.5, -1.0, -0.5, -0.25],
                "neighbours": others,
                "neighbour_cosines": falling,
                "coactive": others if fires else [],
                "coactive_shares": falling if fires else [],
                "off": [place for place in off if not first <= place < first + contexts],
            }
        )
        for rank in range(contexts if fires else 0):
            top = rank < contexts // 2
            values = np.where(rng.uniform(size=window) < 0.3, rng.uniform(0.1, 9, window), 0.0)
            values[window // 2] = 9.5 - rank / 10
            place = rank if top else rank - contexts // 2
            shown.append(
                {
                    "feature": feature,
                    "kind": "top" if top else "quantile",
                    "rank": place,
                    "quantile": None if top else 1 - place / contexts,
                    "context": int(rng.integers(100)),
                    "position": window // 2,
                    "start": 0,
                    "tokens": rng.integers(len(WORDS), size=window).tolist(),
                    "activations": values.tolist(),
                }
            )
    about = About(
        version=VERSION,
        label=label,
        site="blocks.2.hook_resid_post",
        d_sae=d_sae,
        sae="0" * 64,
        heldout="1" * 64,
        rows=rows,
        contexts=100,
        seed=seed,
        histogram_edges=EDGES,
        position_edges=[8 * place for place in range(17)],
        logit_effects="the decoder row times the unembedding",
        asked={"contexts": contexts, "window": window, "tokens": None},
    )
    tokens = pa.table({"token": range(len(WORDS)), "text": WORDS}, schema=TOKENS)
    return FeatureTables(
        about, pa.Table.from_pylist(features, schema=FEATURES), pa.Table.from_pylist(shown, schema=CONTEXTS), tokens
    )


def log_tables(client: MlflowClient, run_id: str, tables: FeatureTables, folder: Path) -> None:
    """Puts tables among a run's artifacts, as those of its SAE on its text; they are written to a folder first."""
    tags = client.get_run(run_id).data.tags
    tables.about["sae"], tables.about["heldout"] = tags["gsae.sae"], tags["gsae.evaluation"]
    tables.write(folder)
    client.log_artifacts(run_id, str(folder), "features")
