"""The paper's findings on the quickstart's frontier: L0 at equal loss recovered, and shrinkage.

    gsae-ray run sweeps/quickstart.yaml && python tests/benchmarks/quickstart_findings.py

Run it where the sweep ran. The ratio is the mean, over the range of loss recovered that both frontiers cover, of
log-interpolated L0 of gated ÷ L0 of standard SAEs.

Result (2026-11-24, 2 cores, torch 2.13.0, gsae-ray 0.1.0, recipe norm_weighted/modern): ratio 0.527 and 0.471 at layers
1 and 2; γ of gated SAEs with L0 ≥ 10 0.998 to 1.001, of standard ones with 5 ≤ L0 ≤ 50 0.749 to 0.895.
"""

from __future__ import annotations

import argparse

import gsae_ray
from gsae_ray.results.comparison import l0_ratio, own_saes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", nargs="?", default="quickstart")
    parser.add_argument("--tracking-uri")
    args = parser.parse_args()
    rows = own_saes(gsae_ray.frontier(args.experiment, tracking_uri=args.tracking_uri))
    for site, group in rows.groupby("site"):
        gated, standard = (group[group["architecture"] == name] for name in ("gated", "standard"))
        print(f"{site}: L0 of gated / L0 of standard at equal loss recovered: {l0_ratio(gated, standard):.3f}")
        gamma = gated[gated["l0"] >= 10]["gamma"]
        print(f"  gamma of gated SAEs with L0 >= 10: {gamma.min():.3f} to {gamma.max():.3f}")
        gamma = standard[standard["l0"].between(5, 50)]["gamma"]
        print(f"  gamma of standard SAEs with 5 <= L0 <= 50: {gamma.min():.3f} to {gamma.max():.3f}")


if __name__ == "__main__":
    main()
