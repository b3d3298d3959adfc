"""`gsae-ray rate`: a language model explains features, and is scored on how well its explanations tell them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gsae_ray.cli.options import one_line_errors, site_option, tracking_option
from gsae_ray.errors import INTERRUPTED, UserError, shown

if TYPE_CHECKING:
    from gsae_ray.raters.rate import Bill, Rated
    from gsae_ray.storage.ratings import Ratings

_EPILOG = """Example:

\b
  gsae-ray rate quickstart --endpoint http://127.0.0.1:8000/v1 --model qwen3 --features 100
  gsae-ray rate quickstart --endpoint https://api.example.com/v1 --model large --api-key-env RATER_KEY \\
    --price-in 0.5 --price-out 1.5 --budget 2
  gsae-ray rate quickstart --endpoint https://api.example.com/v1 --model thinker --api-key-env RATER_KEY \\
    --parameters '{"temperature": null, "max_completion_tokens": 4000}'
"""


@click.command(epilog=_EPILOG)
@click.argument("experiment")
@click.option("--endpoint", required=True, metavar="URL", help="what /chat/completions follows: http://HOST:PORT/v1")
@click.option("--model", required=True, metavar="NAME", help="the model that rates, as the endpoint calls it")
@click.option("--api-key-env", metavar="NAME", help="the environment variable that has the key; default: none is sent")
@click.option(
    "--features", type=click.IntRange(1), default=50, show_default=True, help="features of each SAE, drawn uniformly"
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="of what is drawn and shuffled")
@click.option("--price-in", type=click.FloatRange(0), metavar="P", help="of a million tokens that are sent")
@click.option("--price-out", type=click.FloatRange(0), metavar="P", help="of a million tokens that are got")
@click.option(
    "--budget",
    type=click.FloatRange(0),
    metavar="P",
    help="by these prices: one run of the command does not spend more",
)
@click.option("--yes", is_flag=True, help="do not ask before it starts")
@click.option("--threads", type=click.IntRange(1, 256), default=8, show_default=True, help="requests at a time")
@click.option(
    "--max-tokens",
    type=click.IntRange(16),
    help="of an answer, default: 500; models that think before they answer take thousands",
)
@click.option(
    "--parameters",
    metavar="JSON",
    help="parts of each request: an object; null leaves one out, as temperature, which is 0 otherwise",
)
@click.option(
    "--answers",
    type=click.Path(path_type=Path, dir_okay=False),
    help="the file that keeps all answers; default: rater_answers.db in the storage",
)
@site_option
@click.option("--launch", metavar="ID", help="a launch's id; default: the newest")
@tracking_option
@click.option("--storage", metavar="PATH", help="the launch's storage, where ratings are kept; default: ./gsae_runs")
@click.option("--json", "as_json", is_flag=True, help="print a JSON list of objects, one an SAE, with every feature")
@one_line_errors
def rate(
    experiment: str,
    endpoint: str,
    model: str,
    api_key_env: str | None,
    features: int,
    seed: int,
    price_in: float | None,
    price_out: float | None,
    budget: float | None,
    yes: bool,
    threads: int,
    max_tokens: int | None,
    parameters: str | None,
    answers: Path | None,
    site: str | None,
    launch: str | None,
    tracking_uri: str | None,
    storage: str | None,
    as_json: bool,
) -> None:
    """Has a language model explain features, and scores how well its explanations tell where they are active.

    Of each SAE with tables of features (`gsae-ray features`, or evaluation.features in the sweep file) --features are
    drawn. The model is shown marked text where a feature is largest, and explains it in a sentence. From that alone it
    then says in which other texts the feature is active (detection), and in which the marks are on the right tokens
    (fuzzing). Both scores are balanced accuracy: 1 is all right, 0.5 is guessing. They are columns of `gsae-ray
    frontier`, with 95 % intervals over features.

    What it takes is said before it starts. Every answer is kept: the same command again asks nothing twice but what
    was refused or cut, and goes on where it was ended. The endpoint sees the texts of the features, which are of
    the sweep's data.
    """
    from gsae_ray.raters.asking import Prices
    from gsae_ray.raters.endpoint import KEPT
    from gsae_ray.raters.rate import rate as run

    if (price_in is None) != (price_out is None):
        raise UserError("--price-in, --price-out: one of them alone gives no cost; give both, or neither")

    def confirm(bill: Bill) -> None:
        click.echo(str(bill), err=True)
        if bill.requests and not yes:
            _agree(f"ask {model} at {endpoint}?")

    try:
        rated = run(
            experiment,
            endpoint,
            model,
            confirm=confirm,
            say=lambda line: click.echo(line, err=True),
            site=site,
            features=features,
            seed=seed,
            launch=launch,
            key=_key(api_key_env),
            threads=threads,
            max_tokens=max_tokens,
            parameters=None if parameters is None else _parameters(parameters),
            prices=None if price_in is None or price_out is None else Prices(price_in, price_out),
            budget=budget,
            answers=answers,
            tracking_uri=tracking_uri,
            storage=storage,
        )
    except KeyboardInterrupt as interrupt:
        click.echo(f"gsae-ray: {str(interrupt) or f'interrupted; {KEPT}'}", err=True)
        sys.exit(INTERRUPTED)
    if as_json:
        found = [{"trial": one.trial.name, "site": one.site, **ratings} for one, ratings in rated.saes]
        click.echo(json.dumps(found, indent=2))
    else:
        _print(rated)
    cost = "" if rated.cost is None else f", {rated.cost:.4g} by these prices"
    click.echo(f"{rated.requests:,} requests, {rated.sent:,} tokens sent and {rated.got:,} got{cost}", err=True)
    for note in rated.notes:
        click.echo(note, err=True)


def _agree(question: str) -> None:
    """Asks on the terminal whether to go on, and ends the command where that is not wanted."""
    try:
        agreed = click.confirm(question, err=True)
    except click.Abort:
        if sys.stdin.isatty():
            raise
        click.echo(err=True)  # ends the line of the question
        raise UserError("--yes: nobody answers whether to start; give --yes to start without being asked") from None
    if not agreed:
        raise click.Abort


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    if not (key := os.environ.get(variable, "").strip()):
        raise UserError(  # without what was given, which may be the key itself
            "--api-key-env: there is no environment variable of this name, or it is empty; give the NAME of one that "
            "has the key, not the key itself"
        )
    if not (key.isascii() and key.isprintable()):
        raise UserError(
            f"--api-key-env: what {variable} holds cannot be sent: there is a line break in it, or a character that is "
            "not ASCII; set it to the key alone"
        )
    return key


def _parameters(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
        json.dumps(found, allow_nan=False)  # which Python reads, and servers do not
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"--parameters: {shown(text)} is no JSON object; give one as '{{\"temperature\": null}}'")
    return found


def _print(rated: Rated) -> None:
    from gsae_ray.cli.tables import console, print_table

    pairs = rated.saes
    columns = {
        "trial": [one.trial.name for one, _ in pairs],
        "site": [one.site for one, _ in pairs],
        "features": [str(len(ratings["features"])) for _, ratings in pairs],
        "detection": [_score(ratings, "detection") for _, ratings in pairs],
        "fuzzing": [_score(ratings, "fuzzing") for _, ratings in pairs],
    }
    print_table(columns, console(), texts=["trial", "site"])
    for one, ratings in pairs:
        unread, answers = (sum(rated[name] for rated in ratings["features"]) for name in ("unread", "answers"))
        if unread:
            touched = sum(rated["unread"] > 0 for rated in ratings["features"])
            click.echo(
                f"{one.trial.name}: {unread} of {answers} answers are missing or could not be read, of {touched} of "
                f"{len(ratings['features'])} features; scores are without them"
            )
    where = pairs[0][0].trial.directory.path
    click.echo(f"rated by {pairs[0][1]['rater']}; explanations are in ratings.json of each trial, as in {where}")


def _score(ratings: Ratings, name: str) -> str:
    """A score with its interval."""
    scores = ratings["scores"]
    if name not in scores:
        return "–"
    low, high = (scores.get(f"{name}_{end}") for end in ("low", "high"))
    return f"{scores[name]:.3f}" + ("" if low is None or high is None else f" [{low:.3f}, {high:.3f}]")
