"""`gsae-ray frontier`, `best` and `export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

import gsae_ray
from gsae_ray.cli.options import (
    launch_option,
    one_line_errors,
    read_storage_option,
    site_option,
    tokens_option,
    tracking_option,
)
from gsae_ray.errors import UserError

if TYPE_CHECKING:
    from gsae_ray import SAE

_out_option = click.option("--out", required=True, type=click.Path(path_type=Path), help="folder to write the SAE to")
_format_option = click.option(
    "--format",
    "format_",
    default="gsae",
    show_default=True,
    metavar="F",
    help="gsae (ours, which SAELens reads too), saelens, jumprelu (of SAELens), dictionary_learning, sparsify, "
    "circuit-tracer (transcoders: each adds its layer to the folder)",
)
_references_option = click.option(
    "--with-references",
    is_flag=True,
    help="references, SAEs from elsewhere that are shown beside the sweep's own, compete too",
)
_fold_option = click.option(
    "--fold-b-dec", is_flag=True, help="with --format jumprelu: for tools that do not subtract b_dec from activations"
)
_rows_option = click.option(
    "--rows",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="with --fold-b-dec: activations [rows, d_in], .npy or .safetensors, on which to count changed decisions",
)


def _write(sae: SAE, out: Path, format_: str, fold_b_dec: bool, rows: Path | None) -> str:
    """Exports an SAE. Returns what is to be said of it: with b_dec folded, how many features are on that were off."""
    if not fold_b_dec:
        gsae_ray.export(sae, out, format_)
        return ""
    if rows is None:
        gsae_ray.export(sae, out, format_, fold_b_dec)
        return "\nHow many on/off decisions changed by rounding was not counted; --rows FILE counts them"
    from gsae_ray.saes.decisions import decisions_changed, read_rows

    x_RD = read_rows(rows, sae.cfg.d_in)
    gsae_ray.export(sae, out, format_, fold_b_dec)
    changed = decisions_changed(sae, gsae_ray.load(out), x_RD)
    return f"\n{changed:,} of {len(x_RD) * sae.cfg.d_sae:,} on/off decisions changed, on {len(x_RD):,} rows"


@click.command()
@click.argument("experiment")
@site_option
@launch_option
@tokens_option
@tracking_option
@read_storage_option
@click.option(
    "--encoder",
    default="own",
    show_default=True,
    metavar="E",
    help="own, or pursuit: the decoders with gradient pursuit (evaluation.pursuit_l0), a row for each target L0",
)
@_references_option
@click.option(
    "--stopped",
    is_flag=True,
    help="trials that the scheduler has stopped too, as they were when they were compared, on a part of the text",
)
@click.option("--intervals", is_flag=True, help="with 95 % intervals over the held-out text")
@click.option("--json", "as_json", is_flag=True, help="print a JSON list of objects, one a row, with intervals")
@one_line_errors
def frontier(
    experiment: str,
    site: str | None,
    launch: str | None,
    tokens: str | None,
    tracking_uri: str | None,
    storage: str | None,
    encoder: str,
    with_references: bool,
    stopped: bool,
    intervals: bool,
    as_json: bool,
) -> None:
    """Shows what came out of a sweep: L0 and fidelity of each SAE; a star marks the Pareto frontier.

    Its references (see `gsae-ray evaluate`) are shown beside that: their origin says which they are.
    """
    from gsae_ray.cli.frontier_table import print_frontier
    from gsae_ray.cli.tables import console
    from gsae_ray.results.frontier import MIXED

    where = site, launch, tracking_uri, encoder, tokens, storage
    rows = gsae_ray.frontier(experiment, *where, with_references, with_stopped=stopped)
    if as_json:
        click.echo(rows.to_json(orient="records", indent=2, double_precision=15))
    else:
        print_frontier(rows, console(), mixed_tokens=tokens == MIXED, intervals=intervals)
    for note in rows.attrs["notes"]:
        click.echo(note, err=True)


@click.command()
@click.argument("experiment")
@site_option
@click.option("--max-l0", type=float, metavar="L0", help="the highest loss recovered with at most this L0")
@click.option("--min-loss-recovered", type=float, metavar="R", help="the lowest L0 that recovers at least this")
@click.option(
    "--knee",
    is_flag=True,
    help="the frontier's knee: the point farthest above the straight line between its ends, in log L0 and quality",
)
@click.option(
    "--by",
    metavar="COLUMN",
    help="what the quality is: fvu, kl, gamma, mcc, …; default: loss recovered, without a language model 1 - FVU",
)
@click.option(
    "--alias",
    metavar="A",
    help="the SAE with this alias in MLflow's model registry, e.g. best-l0-32: of all launches the best with L0 <= 32",
)
@click.option("--n", type=click.IntRange(1), default=1, metavar="N", help="show the N best; the first is written")
@_out_option
@_format_option
@_fold_option
@_rows_option
@launch_option
@tokens_option
@tracking_option
@read_storage_option
@_references_option
@one_line_errors
def best(
    experiment: str,
    site: str | None,
    max_l0: float | None,
    min_loss_recovered: float | None,
    knee: bool,
    by: str | None,
    alias: str | None,
    n: int,
    out: Path,
    format_: str,
    fold_b_dec: bool,
    rows: Path | None,
    launch: str | None,
    tokens: str | None,
    tracking_uri: str | None,
    storage: str | None,
    with_references: bool,
) -> None:
    """Fetches the best SAE of a sweep under one constraint, and says why it is the best, and from how many.

    Of equal ones it is the one with the lower L0 (with --min-loss-recovered alone: with the higher quality), then the
    one whose trial's name comes first. In place of a constraint --alias names an SAE of MLflow's model registry.
    """
    from gsae_ray.results.constraint import Constraint
    from gsae_ray.saes.export import OURS, check_export

    if alias is None:
        Constraint(max_l0, min_loss_recovered, knee, by).check()  # here, too: the rest takes seconds to load
    elif n > 1:
        raise UserError("--n: an alias names one SAE; leave it out")
    folder = check_export(out, format_, fold_b_dec, rows)
    from gsae_ray.results.best import find_best
    from gsae_ray.results.choice import measured, name_of

    where = launch, tracking_uri, tokens, storage, with_references
    found = find_best(experiment, site, max_l0, min_loss_recovered, *where, knee=knee, by=by, alias=alias)
    said = ""
    if format_ == OURS:
        found.save(folder)
    else:
        said = _write(found.load(), out, format_, fold_b_dec, rows)
    click.echo(f"{name_of(found.row)}: {measured(found.row, by)}, written to {out}{said}")
    click.echo(f"chosen: {found.choice.why}")
    for place, (_, row) in enumerate(found.choice.ranked.head(n).iloc[1:].iterrows(), start=2):
        click.echo(f"{place}. {name_of(row)}: {measured(row, by)}")


@click.command()
@click.argument("source", metavar="DIR_OR_RUN")
@_out_option
@_format_option
@_fold_option
@_rows_option
@tracking_option
@one_line_errors
def export(source: str, out: Path, format_: str, fold_b_dec: bool, rows: Path | None, tracking_uri: str | None) -> None:
    """Writes an SAE in the format of a library.

    DIR_OR_RUN is a folder in any format that is read here, a trial's directory, or the id of a run of MLflow, which is
    not needed otherwise. Where there is no such path it is a folder on the Hugging Face hub: owner/name/folder, or
    owner/name@revision/folder.
    """
    from gsae_ray.results.saved import load_from
    from gsae_ray.saes.export import check_export

    check_export(out, format_, fold_b_dec, rows)
    sae = load_from(source, tracking_uri)
    said = _write(sae, out, format_, fold_b_dec, rows)
    where = f" of {sae.cfg.place}" if sae.cfg.place else ""
    click.echo(f"{sae.architecture}{where}, {sae.cfg.d_sae} features: written to {out} as {format_}{said}")
