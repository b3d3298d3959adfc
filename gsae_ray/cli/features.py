"""`gsae-ray features`: dashboards of what the features of SAEs fire on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gsae_ray.cli.options import one_line_errors, site_option, tracking_option
from gsae_ray.cli.verbose import STDERR
from gsae_ray.errors import UserError

_EPILOG = """Example:

\b
  gsae-ray features quickstart --out features
  gsae-ray features quickstart --site blocks.2.hook_resid_post --max-l0 40 --out features
  gsae-ray features quickstart --all --out features
"""


@click.command(epilog=_EPILOG)
@click.argument("experiment")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="folder to write to; dashboards are replaced"
)
@site_option
@click.option(
    "--max-l0",
    type=float,
    metavar="L0",
    help="of each site the SAE with the highest loss recovered with at most this L0",
)
@click.option(
    "--min-loss-recovered", type=float, metavar="R", help="of each site the SAE with the lowest L0 that recovers it"
)
@click.option("--knee", is_flag=True, help="of each site the SAE at the knee of its frontier")
@click.option("--by", metavar="COLUMN", help="what the quality is, with one of these three; see `gsae-ray best`")
@click.option("--trial", "trials", metavar="NAME", multiple=True, help="the SAE of this trial; may be given again")
@click.option("--all", "everything", is_flag=True, help="all SAEs that have tables of features, as of `saes: all`")
@click.option("--alias", metavar="A", help="the SAE with this alias in MLflow's model registry, e.g. best-l0-32")
@click.option("--neuronpedia", is_flag=True, help="also write the features in Neuronpedia's import format")
@click.option("--launch", metavar="ID", help="a launch's id; default: the newest")
@click.option("--tokens", metavar="N", help="only SAEs trained on N tokens, or 'all': those of any number together")
@tracking_option
@click.option(
    "--storage",
    metavar="PATH",
    help="the launch's storage, where tables of features are made and kept; default: ./gsae_runs; without the launch "
    "there, or with --tracking-uri alone, MLflow is read",
)
@one_line_errors
def features(
    experiment: str,
    out: Path,
    site: str | None,
    max_l0: float | None,
    min_loss_recovered: float | None,
    knee: bool,
    by: str | None,
    trials: tuple[str, ...],
    everything: bool,
    alias: str | None,
    neuronpedia: bool,
    launch: str | None,
    tokens: str | None,
    tracking_uri: str | None,
    storage: str | None,
) -> None:
    """Shows what the features of SAEs fire on: pages that open from disk, without a network.

    A page an SAE, of those on the frontier unless an option names others: texts with activations, effects on logits,
    features that are like one or fire with it, and which are found in the other SAEs of the site. Its features are
    searched by token, sorted, and gone through by key. DIR/index.html leads to all of them.

    Tables of features that are missing are made first, from the held-out text, by the language model in this process.
    """
    from gsae_ray.features.chosen import choose_saes
    from gsae_ray.features.folder import check_out
    from gsae_ray.features.neuronpedia import check_layer
    from gsae_ray.features.write import write_dashboards
    from gsae_ray.results.constraint import Constraint, check_alone

    check_out(out)
    constraint = Constraint(max_l0, min_loss_recovered, knee, by)
    narrowed = (max_l0, min_loss_recovered) != (None, None) or knee
    if by is not None and not narrowed:
        raise UserError("--by: it says which SAE is the best under a constraint; give one, too, or leave it out")
    ways = {"--all": everything, "--trial": bool(trials), "--alias": alias is not None, "a limit": narrowed}
    asked = [name for name, given in ways.items() if given]
    if asked[1:] and asked[0] in ("--all", "--trial"):
        raise UserError(f"{asked[0]}: it says which SAEs, as {asked[1]} does; leave one of them out")
    if alias is not None:
        beside = {"max_l0": max_l0, "min_loss_recovered": min_loss_recovered, "knee": knee, "launch": launch}
        check_alone(alias, {**beside, "tokens": tokens})
    elif narrowed:
        constraint.check()
    where: Any = {"launch": launch, "tokens": tokens, "tracking_uri": tracking_uri, "storage": storage}
    which: Any = {"trials": trials, "everything": everything, "alias": alias}
    chosen = choose_saes(experiment, site, constraint if narrowed else None, **which, **where)
    if neuronpedia:
        for name in chosen.rows["site"].unique():
            check_layer(name)
    if missing := chosen.missing():
        if chosen.storage is None:
            raise UserError(
                f"--storage: {len(missing)} of these SAEs have no tables of features ({missing[0]}, …), and MLflow "
                "was read, where none can be made; name the storage of their launch, or run the sweep with "
                "evaluation.features"
            )
        from gsae_ray.driver.features import make_features

        made: Any = {
            "launch": str(chosen.rows["launch"].iloc[0]),
            "tracking_uri": tracking_uri,
            "storage": chosen.storage,
        }
        _, notes = make_features(experiment, missing, **made, console=STDERR)
        for note in notes:
            click.echo(note, err=True)
    index = write_dashboards(chosen, out, neuronpedia, lambda line: click.echo(line, err=True))
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    click.echo(f"{len(chosen.rows)} SAE{'s' * (len(chosen.rows) > 1)} ({chosen.why})")
    click.echo(f"written to {out}, {size / 1e6:.1f} MB: open {index} in a browser, no network is needed")
    if neuronpedia:
        click.echo(f"for Neuronpedia: {out}/*/neuronpedia/batch-*.json")
