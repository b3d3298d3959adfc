"""Which rows of a model are large: norms of the held-out rows at each layer, and the tokens of the largest.

    python tests/benchmarks/norms_by_layer.py sweeps/smollm2.yaml --work DIR --set model.name=WORK/smollm2 \
        --set dataset.name=WORK/text.jsonl

Prints, for the residual stream and the MLP's output of each layer: the median norm; the mean ‖x‖² in squared medians;
the largest norm in medians; the share of Σ‖x‖² that the largest 0.1 % of the rows hold, of all rows and of those that
take part with `dataset.max_norm`; how many rows take no part, and the commonest of their tokens. The first position of
each context is no row. The result is kept in docs/real_models.md.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import torch
from producers import model_of, tokens_of
from torch import Tensor

from gsae_ray.activations.producer import Producer
from gsae_ray.activations.statistics import TOP_SHARE
from gsae_ray.config.load import load_sweep
from gsae_ray.data.tokens import model_input
from gsae_ray.driver.prepare import prepare, producer_spec
from gsae_ray.language_model.hooks import capture
from gsae_ray.language_model.loading import load_tokenizer
from gsae_ray.language_model.massive_norms import square_norm_limit, square_norms, takes_part

EVERYWHERE = [
    "sites={layers: all, points: [resid_post, mlp_out]}",
    "saes=[{architecture: standard, widths: 8, l1_coefficient: 1}]",  # none is trained, but a sweep has some
]
COLUMNS = ["site", "median", "mean ‖x‖² ÷ median²", "largest ÷ median", "share of the largest 0.1 %"]
COLUMNS += ["of those that take part", "take no part", "their tokens"]


def share_of_largest(squares_R: Tensor) -> float:
    largest = squares_R.topk(max(1, round(TOP_SHARE * len(squares_R)))).values
    return (largest.sum() / squares_R.sum()).item()


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    plan = prepare(load_sweep(args.sweep, [*args.set, *EVERYWHERE]), args.work)
    model, tokenizer = model_of(Producer(producer_spec(plan))), load_tokenizer(plan.sweep.language_model)
    sites, tokens = plan.sweep.used_sites, []
    found: dict[str, list[Tensor]] = {site.name: [] for site in sites}
    for tokens_BT in tokens_of(plan).heldout().split(plan.sweep.evaluation.batch):
        kept_BT = tokens_of(plan).kept(tokens_BT)
        tokens.append(tokens_BT[kept_BT])
        for site, x_Rn in capture(model, model_input(tokens_BT), sites, kept_BT).items():
            found[site.name].append(square_norms(x_Rn))
    tokens_R = torch.cat(tokens)
    print(f"{len(tokens_R):,} rows\n\n| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for name, parts in found.items():
        squares_R = torch.cat(parts)
        median = squares_R.median()
        part_R = takes_part(squares_R, square_norm_limit(squares_R, plan.sweep.dataset.max_norm))
        counts = Counter(tokenizer.decode([token]) for token in tokens_R[~part_R].tolist())
        cells = [f"`{name}`", f"{median.sqrt():.4g}", f"{squares_R.mean() / median:.3g}"]
        cells += [f"{(squares_R.max() / median).sqrt():.3g}", f"{share_of_largest(squares_R):.1%}"]
        cells += [f"{share_of_largest(squares_R[part_R]):.1%}", str(int((~part_R).sum()))]
        cells.append(", ".join(f"`{token}` {count}" for token, count in counts.most_common(3)))
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
