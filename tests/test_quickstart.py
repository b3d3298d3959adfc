"""The quickstart's sixteen SAEs stay what they are: bit for bit on one kind of machine, in their numbers on any.

Bits are those of the dense engine; of the sparse one the version of Numba decides too.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path

import pytest
import safetensors.torch
from elsewhere import near_identity
from golden_machine import is_golden
from rich.console import Console

import gsae_ray
from gsae_ray.config.load import load_sweep
from gsae_ray.config.site import Site
from gsae_ray.driver.launch import run
from gsae_ray.results import sequences
from gsae_ray.results.comparison import own_saes
from gsae_ray.results.intervals import interval, of

GOLDEN: dict[
    tuple[int | None, str, float], tuple[str, float, float, float]
] = {  # (layer, architecture, λ) -> hash of the weights, L0, loss recovered, γ; at revision 040857e, 2026-11-28
    (1, "gated", 1.0): ("ae6296c3b975a081", 46.16, 0.9800, 0.9981),
    (1, "gated", 2.0): ("81c907e7149382fe", 19.96, 0.9558, 0.9990),
    (1, "gated", 4.0): ("8fc4f2fb25cef464", 7.721, 0.9088, 1.0005),
    (1, "gated", 8.0): ("0b85b7ecc7a7204a", 2.482, 0.8000, 1.0050),
    (1, "standard", 0.5): ("c59f4b3402acd33b", 88.62, 0.9820, 0.9314),
    (1, "standard", 1.0): ("6c09da30cc160ffd", 42.46, 0.9618, 0.8952),
    (1, "standard", 2.0): ("0779ed10bc019754", 18.00, 0.9199, 0.8418),
    (1, "standard", 4.0): ("e681541bead58fa6", 7.224, 0.8360, 0.7644),
    (2, "gated", 1.0): ("5d6067275e9af830", 58.57, 0.9923, 0.9984),
    (2, "gated", 2.0): ("422ef2e8e2d9a44f", 22.53, 0.9827, 1.0005),
    (2, "gated", 4.0): ("8b29d0b335ffec16", 7.720, 0.9644, 1.0027),
    (2, "gated", 8.0): ("4a2a0efe52259300", 2.402, 0.9249, 1.0122),
    (2, "standard", 0.5): ("571106ed3c77b26e", 120.9, 0.9941, 0.9163),
    (2, "standard", 1.0): ("7b7c32b69602720a", 55.23, 0.9861, 0.8792),
    (2, "standard", 2.0): ("0dd83b6a7c571b04", 20.61, 0.9688, 0.8272),
    (2, "standard", 4.0): ("324f74be41af6d42", 7.574, 0.9356, 0.7496),
}


def weights_hash(sae: Path) -> str:
    tensors = safetensors.torch.load_file(sae / "sae_weights.safetensors")
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode() + tensors[name].numpy().tobytes())
    return found.hexdigest()[:16]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_quickstart_s_saes_stay_bit_for_bit_what_they_were(tmp_path: Path) -> None:
    """On other machines: L0 within 10 %, loss recovered within 0.01, γ within 0.02."""
    sweep = Path(__file__).parents[1] / "sweeps/quickstart.yaml"
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    site = "blocks.2.hook_resid_post"
    theirs = near_identity(tmp_path / "theirs", 128, 0.05, site)
    reference = f"references=[{{source: {theirs}, site: {site}, name: nearly x}}]"
    quiet = Console(quiet=True)
    # Two SAEs of each architecture, of one site, by the engine whose bits those are; the others by that of the file.
    parts = []
    for entry, dense_layer in zip(
        load_sweep(sweep).model_dump(mode="json", exclude_none=True)["saes"], (1, 2), strict=True
    ):
        for layer, first in itertools.product((1, 2), (0, 1)):
            of_site = {**entry, "sites": {"layers": [layer], "points": ["resid_post"]}}
            of_site |= {"l1_coefficient": entry["l1_coefficient"][first::2]}
            parts.append(of_site | ({"engine": "dense"} if (layer, first) == (dense_layer, 1) else {}))
    changes = [reference, f"saes={json.dumps(parts)}"]
    result = run(sweep, overrides=changes, tracking_uri=uri, storage=tmp_path / "runs", console=quiet)
    assert result.failures == {} and result.forward_ratio == 1.0
    hashes, engines = {}, {}
    for folder in (tmp_path / "runs/quickstart/trials").iterdir():
        trial = json.loads((folder / "trial.json").read_text())
        key = (Site(trial["site"]).layer, trial["architecture"], trial["hyperparameters"]["l1_coefficient"])
        hashes[key] = weights_hash(folder / "sae")
        engines[key] = trial["training"]["engine"]
    dense = [key for key, engine in engines.items() if engine == "dense"]
    assert len(dense) == 4 and set(engines.values()) == {"dense", "sparse-cpu"}
    if is_golden():
        assert {key: hashes[key] for key in dense} == {key: GOLDEN[key][0] for key in dense}
    every_row = gsae_ray.frontier("quickstart", tracking_uri=uri)
    rows = own_saes(every_row)
    assert len(rows) == len(hashes) == len(GOLDEN)
    for row in rows.itertuples():
        _, l0, loss_recovered, gamma = GOLDEN[Site(row.site).layer, row.architecture, row.sparsity]
        assert row.l0 == pytest.approx(l0, rel=0.1)
        assert row.loss_recovered == pytest.approx(loss_recovered, abs=0.01)
        assert row.gamma == pytest.approx(gamma, abs=0.02)

    # A reference is there, with an interval, and better than any of them; the best of the sweep is one of its own.
    (shown,) = every_row.drop(rows.index).itertuples()
    assert (shown.origin, shown.site, shown.on_frontier) == ("nearly x", site, False)
    sums = [sequences(shown.run_id, uri)]
    for metric in ("l0", "loss_recovered"):
        found = interval(of(metric), [sums])
        assert found.low < found.value < found.high
        assert found.value == pytest.approx(getattr(shown, metric))
    assert shown.loss_recovered > max(rows["loss_recovered"])
    best = [
        gsae_ray.best("quickstart", site=site, max_l0=130, tracking_uri=uri, with_references=with_references)
        for with_references in (False, True)
    ]
    assert [sae.cfg.metadata["frontier"]["origin"] for sae in best] == ["own", "nearly x"]
