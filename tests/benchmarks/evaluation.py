"""What the evaluation of a further SAE costs, in forward passes of the clean model over the same contexts.

    python tests/benchmarks/real_models.py --work WORK
    python tests/benchmarks/evaluation.py WORK/smollm2 --layer 12 [--threads 2] [--json]

Evaluations of an SAE (all metrics, KL included) and passes of the model in turn, after a first evaluation, which keeps
what all SAEs of the site share; the median of the ratios. The SAE's weights are random: its cost is that of any other.
The contexts are random tokens: neither do they matter. With more of them (`--contexts`) log-probabilities of the clean
model are not kept, and each evaluation computes its head again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM

from gsae_ray.config.site import Site
from gsae_ray.data.tokens import kept_mask
from gsae_ray.evaluation.evaluator import Evaluator
from gsae_ray.language_model.hooks import site_widths
from gsae_ray.saes import SAEConfig, build


def seconds_of(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a folder of weights, in float32")
    parser.add_argument("--layer", type=int, default=12)
    parser.add_argument("--point", default="resid_post")
    parser.add_argument("--width", type=int, default=4096, help="features of the SAE")
    parser.add_argument("--contexts", type=int, default=32)
    parser.add_argument("--context-size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8, help="contexts of a forward pass")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    tokens_ET = torch.randint(model.config.vocab_size, (args.contexts, args.context_size), generator=generator)
    site = Site.of_point(args.layer, args.point)
    d_in = site_widths(model, [site])[site]
    sae = build(
        SAEConfig(architecture="gated", d_in=d_in, d_sae=args.width, hyperparameters={"l1_coefficient": 1.0})
    ).eval()
    sae.initialise(generator, torch.zeros(d_in))
    evaluator = Evaluator(model, tokens_ET, lambda tokens_BT: kept_mask(tokens_BT, (), 1), args.batch)

    @torch.no_grad()
    def clean_pass() -> None:
        for tokens_BT in tokens_ET.split(args.batch):
            model(tokens_BT, use_cache=False)

    first = seconds_of(lambda: evaluator.evaluate(site, sae))
    clean_pass()
    pairs = [(seconds_of(lambda: evaluator.evaluate(site, sae)), seconds_of(clean_pass)) for _ in range(args.rounds)]
    result = {
        "model": args.model.name,
        "site": site.name,
        "d_sae": args.width,
        "positions": tokens_ET.numel(),
        "threads": args.threads,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "first_evaluation_s": first,
        "evaluation_s": statistics.median(evaluation for evaluation, _ in pairs),
        "clean_pass_s": statistics.median(clean for _, clean in pairs),
        "ratio": statistics.median(evaluation / clean for evaluation, clean in pairs),
    }
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        print(
            ", ".join(
                f"{name} {value:.3g}" if isinstance(value, float) else f"{value}" for name, value in result.items()
            )
        )


if __name__ == "__main__":
    main()
