"""`gsae-ray study`: a blinded study of how interpretable features are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gsae_ray.cli.options import launch_option, one_line_errors, read_storage_option, site_option, tracking_option

if TYPE_CHECKING:
    from gsae_ray.study.analysis import Analysis
    from gsae_ray.study.create import Made

_study_argument = click.argument("study_file", metavar="STUDY", type=click.Path(path_type=Path))
_EPILOG = """Example:

\b
  gsae-ray study create quickstart --pairs 10 --raters 2 --seed 0 --out study.db
  gsae-ray study serve study.db
  gsae-ray study analyse study.db --out study.png
"""


@click.group(epilog=_EPILOG)
def study() -> None:
    """A blinded human study: are the features of one architecture easier to interpret than those of another?

    Raters see texts on which a feature is active, explain it in their words, and say whether it is interpretable: yes,
    maybe or no. They do not see of which SAE, site, layer or architecture it is. The study, its answers among them, is
    one SQLite file.
    """


@study.command(short_help="Draws features; prints a link a rater.")
@click.argument("experiments", metavar="EXPERIMENT...", nargs=-1, required=True)
@click.option("--pairs", required=True, type=click.IntRange(1), help="pairs of features for each rater at each site")
@click.option("--raters", required=True, type=click.IntRange(1, 1000), help="how many people rate")
@click.option("--seed", required=True, type=int, help="of what is drawn: the same seed draws the same features")
@click.option(
    "--out", type=click.Path(path_type=Path), default="study.db", show_default=True, help="the file to make; a new one"
)
@click.option(
    "--architectures",
    nargs=2,
    default=("gated", "standard"),
    show_default=True,
    metavar="A B",
    help="whether A's features are easier to interpret than B's",
)
@click.option(
    "--match",
    type=click.Choice(["l0", "loss_recovered"]),
    default="l0",
    show_default=True,
    help="which two SAEs of a site are compared: the nearest in this",
)
@click.option(
    "--texts", type=click.IntRange(2, 100), default=10, show_default=True, help="texts of each feature that are shown"
)
@site_option
@launch_option
@tracking_option
@read_storage_option
@one_line_errors
def create(
    experiments: tuple[str, ...],
    pairs: int,
    raters: int,
    seed: int,
    out: Path,
    architectures: tuple[str, str],
    match: Any,
    texts: int,
    site: str | None,
    launch: str | None,
    tracking_uri: str | None,
    storage: str | None,
) -> None:
    """Draws features from SAEs of two architectures, and writes a study; prints a link for each rater.

    At each site of each experiment two SAEs are compared, one of either architecture. Each rater gets --pairs features
    of each of them, drawn uniformly among those that fire and have --texts texts, in an order of the rater's own. No
    feature is rated twice. The paper has one pair for each rater, layer and site.

    The SAEs need tables of features: `evaluation.features: {saes: all, contexts: 20}` in the sweep file. By default
    tables are made of the frontier's SAEs only, where an architecture may have none. MLflow is read, or --storage.
    """
    from gsae_ray.study.create import Design, check_new
    from gsae_ray.study.create import create as make
    from gsae_ray.study.source import subjects_of, tables_from
    from gsae_ray.study.subjects import couples, remarks

    check_new(out)
    subjects = subjects_of(experiments, site, launch, tracking_uri, storage)
    chosen = couples(subjects, architectures, match)
    for remark in remarks(chosen, subjects, architectures, match):
        click.echo(remark, err=True)
    made = make(out, chosen, tables_from(tracking_uri, storage), Design(pairs, raters, seed, texts, match))
    _print_made(made, out)


def _print_made(made: Made, out: Path) -> None:
    from gsae_ray.names import own_command
    from gsae_ray.study.server import LOOPBACK, PORT

    click.echo(f"written to {out}: {made.items} features for each of {len(made.tokens)} raters, of these SAEs:")
    for drawn in made.drawn:
        subject = drawn.subject
        click.echo(
            f"  {subject.model} {subject.site}: {subject.trial}, L0 {subject.l0:.4g}, loss recovered "
            f"{subject.loss_recovered:.4f}; drawn from {drawn.drawn_from:,} of {drawn.about['d_sae']:,} features"
        )
    click.echo(f"links of the raters, while `{own_command('study', 'serve', out)}` runs (which prints them, too):")
    for rater, token in made.tokens.items():
        click.echo(f"  {rater}: http://{LOOPBACK}:{PORT}/r/{token}/")


@study.command(short_help="Serves the raters' pages.")
@_study_argument
@click.option("--host", metavar="H", help="an address of this machine; default: this machine only (127.0.0.1)")
@click.option("--port", type=click.IntRange(1, 65535), help="default: 8765")
@one_line_errors
def serve(study_file: Path, host: str | None, port: int | None) -> None:
    """Serves the raters' pages, and prints the link of each rater and how far each is. Ctrl-C ends it.

    When a rater has rated all items it prints a line.

    Each answer is in the file before the page goes on, so that nothing is lost whatever ends, and the same link goes on
    where its rater was. It listens on this machine only. Raters elsewhere come through a tunnel (ssh -L
    8765:127.0.0.1:8765 MACHINE), or --host is an address of your network, where nothing is encrypted.
    """
    from gsae_ray.study.answers import raters
    from gsae_ray.study.server import LOOPBACK, PORT, StudyServer

    known = raters(study_file)
    server = StudyServer(
        study_file,
        host or LOOPBACK,
        port or PORT,
        lambda rater: click.echo(f"{rater.name} has finished: {rater.done} of {rater.total} rated"),
    )
    for rater in known:
        click.echo(f"{rater.name}: {rater.done} of {rater.total} rated, {server.link(rater)}")
    click.echo("serving; Ctrl-C ends it, and the same command goes on")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        click.echo("ended; what was answered is saved")
    finally:
        server.server_close()


@study.command(short_help="Says whose features were rated clearer.")
@click.argument("study_files", metavar="STUDY...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="write a picture, too: PNG, SVG or PDF, by its suffix")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="of bootstrap and simulation")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object with all numbers")
@one_line_errors
def analyse(study_files: tuple[Path, ...], out: Path | None, seed: int, as_json: bool) -> None:
    """Says which architecture's features were rated more interpretable, as the paper does.

    Labels count 0 (No), 1 (Maybe) and 2 (Yes). The labels of a pair are subtracted: the two features of one model,
    layer, site and rater. p of the differences is that of a one-sided Wilcoxon signed-rank test with Pratt's treatment
    of zeros, their interval a 90 % BCa bootstrap. Several files, of studies with raters of their own, are analysed
    together.

    What is rated so far counts, so that it can be looked at while raters are at work; decide before how many pairs
    there are to be, not by p.
    """
    from gsae_ray.results.picture_formats import check_picture
    from gsae_ray.study.analysis import analyse as analysed
    from gsae_ray.study.picture import save_study
    from gsae_ray.study.ratings import read_ratings

    if out is not None:
        check_picture(out)
    found = analysed(read_ratings(study_files), seed)
    if out is not None:
        save_study(found, out)
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2))
        return
    _print_analysis(found)
    if out is not None:
        click.echo(f"written to {out}")


def _print_analysis(found: Analysis) -> None:
    from gsae_ray.cli.tables import console, print_table
    from gsae_ray.study import told

    shown = console()
    click.echo(told.summary(found) + "\n")
    print_table(told.counts(found), shown, texts=["architecture"])
    click.echo(f"\n{found.better} - {found.base}, labels of pairs subtracted; p: one-sided Wilcoxon, Pratt's zeros")
    print_table(told.differences(found), shown, texts=["pairs of"])
    click.echo()
    print_table(told.dependences(found), shown, texts=["do they differ", "test"])
    click.echo()
    for line in told.reasons(found):
        click.echo(f"– is {line}")
    for line in told.power(found.power):
        click.echo(line)
