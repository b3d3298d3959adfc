"""Rates the features of a launch's SAEs: draws them, says what it costs, asks, and keeps what comes of it."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gsae_ray.config.sections import OWN
from gsae_ray.config.trial import TrialSpec
from gsae_ray.errors import UserError
from gsae_ray.feature_tables import FeatureTables
from gsae_ray.names import local_path, own_command
from gsae_ray.raters.answers import Answers
from gsae_ray.raters.asking import Asker, Prices
from gsae_ray.raters.endpoint import KEPT, Endpoint, estimated_tokens
from gsae_ray.raters.examples import Examples, draw
from gsae_ray.raters.prompts import Messages, ask_for_explanation, read_choices, read_explanation
from gsae_ray.raters.questions import SCORES, Question, questions_of
from gsae_ray.raters.scores import balanced_accuracy, with_interval
from gsae_ray.results.features import load_features, with_features
from gsae_ray.results.frontier import choose_launch, frontier
from gsae_ray.results.outcomes import StorageOutcomes
from gsae_ray.storage.ratings import RATINGS, RATINGS_FILE, VERSION, RatedFeature, Ratings
from gsae_ray.storage.trial_directory import Trial, TrialDirectory
from gsae_ray.tracking.ratings import record_ratings

ANSWERS = "rater_answers.db"
"""In the storage: what raters have answered."""
TYPICAL = "when the text is about a certain thing, on the token after a certain word, as explanations say it"
"""Stands for an explanation before there is one, to estimate what questions about it take."""

MOST = 0.5
"""Ratings with a larger part of the answers missing take the place of no others."""


@dataclasses.dataclass(frozen=True)
class Drawn:
    """An SAE, and those of its features that are to be rated."""

    trial: Trial
    launch: str
    site: str
    tokens: int
    sae: str
    heldout: str
    examples: tuple[Examples, ...]


@dataclasses.dataclass(frozen=True)
class Bill:
    """What is to be asked, before it is; of answers that are there already nothing counts."""

    saes: int
    features: int
    requests: int
    known: int
    """Requests that were answered before."""
    sent: int
    """Tokens, about, as those of answers."""
    got: int
    most: int | None
    """Tokens of answers, where all are as long as they may be; None: they have no limit."""
    cost: float | None
    """None: no prices were given."""
    most_cost: float | None

    def __str__(self) -> str:
        known = f" ({self.known:,} more are answered already)" if self.known else ""
        most = "" if self.most is None else f", {self.most:,} at most"
        most_cost = "" if self.most_cost is None else f", {self.most_cost:.4g} at most"
        cost = "" if self.cost is None else f", which cost about {self.cost:.4g} by these prices{most_cost}"
        return (
            f"{self.features:,} features of {self.saes} SAEs: {self.requests:,} requests{known}; about {self.sent:,} "
            f"tokens to send and {self.got:,} to get{most}{cost}"
        )


@dataclasses.dataclass(frozen=True)
class Rated:
    """What came of it."""

    saes: list[tuple[Drawn, Ratings]]
    requests: int
    """That were answered now."""
    sent: int
    got: int
    cost: float | None
    notes: list[str]
    """What a reader should know, as lines of text."""


def rate(
    experiment: str,
    endpoint: str,
    model: str,
    *,
    confirm: Callable[[Bill], None],
    say: Callable[[str], None] = lambda _: None,
    site: str | None = None,
    features: int = 50,
    seed: int = 0,
    launch: str | None = None,
    key: str | None = None,
    threads: int = 8,
    max_tokens: int | None = None,
    parameters: Mapping[str, Any] | None = None,
    prices: Prices | None = None,
    budget: float | None = None,
    answers: str | Path | None = None,
    tracking_uri: str | None = None,
    storage: str | Path | None = None,
    pause_s: float | None = None,
) -> Rated:
    """Has a language model explain features of the SAEs that have tables of features, and scores the explanations.

    Each answer is kept before it counts, so that the same call asks nothing twice, and goes on where one was ended. An
    SAE's ratings are written when they are complete, in place of those of before, to storage; MLflow mirrors them.
    Where most of the answers are missing those of before stay.

    Args:
        experiment: whose launch.
        endpoint: what `/chat/completions` follows.
        model: that rates, as the endpoint calls it.
        confirm: is told what it takes before anything is sent; it raises where that is too much.
        say: takes lines about how far it is.
        site: only SAEs at this one.
        features: of each SAE, drawn uniformly among those that fire and have enough pieces of text.
        seed: of what is drawn.
        launch: its id; default: the newest.
        key: for the endpoint; it is written nowhere.
        threads: requests at a time.
        max_tokens: of an answer; default: 500, where `parameters` do not say it.
        parameters: of each request besides, as JSON has them; None as a value leaves one out.
        prices: of tokens.
        budget: by these prices, for this call; it is exceeded only where a request has more tokens than was estimated.
        answers: the file that keeps them; default: in the storage.
        tracking_uri: of MLflow.
        storage: that of the launch; default: `gsae_runs` in the working directory.
        pause_s: seconds before a request is sent again for the first time.

    Raises:
        UserError: no SAE has tables of features, or features with enough text; or the endpoint cannot be asked. What
            was answered until then is kept.
        KeyboardInterrupt: Ctrl-C; it says what is spent, and that what was answered is kept.
    """
    options = {} if pause_s is None else {"pause_s": pause_s}
    asked = Endpoint(endpoint, model, key, max_tokens, parameters, **options)
    if budget is not None and prices is None:
        raise UserError("--budget: it takes prices; give --price-in and --price-out, of a million tokens")
    root = local_path("gsae_runs" if storage is None else storage, "--storage").absolute()
    drawn, notes = _drawn(experiment, root, site, launch, features, seed, say)
    kept = Answers(Path(answers) if answers is not None else root / ANSWERS)
    asker = Asker(asked, kept, threads, prices, budget, say)
    try:
        bill = _bill(drawn, asker, seed)
        if bill.cost is not None and budget is not None and bill.cost > budget:
            raise UserError(
                f"--budget: {budget:g} is less than the {bill.cost:.4g} that this costs ({bill}); rate fewer features "
                "(--features), or one site (--site), or give more"
            )
        confirm(bill)
        found = []
        for number, one in enumerate(drawn, 1):
            if bill.requests:
                cost = _bill(drawn[number - 1 :], asker, seed).cost  # the answers so far tell how long they are
                spent = "" if cost is None else f"; {asker.cost:.4g} is spent, about {cost:.4g} to go"
                say(f"rating {len(one.examples)} features of {one.trial.name} ({number} of {len(drawn)}){spent}")
            ratings = _rate(one, asker, features, seed)
            found.append((one, ratings))
            if _missing(ratings) > MOST and one.trial.directory.ratings(one.heldout) is not None:
                notes.append(f"{one.trial.name}: most answers are missing, and its ratings of before stay")
            else:
                RATINGS_FILE.write(one.trial.directory.path / RATINGS, ratings)
            notes += _record(one, experiment, tracking_uri, notes)
        notes += asker.notes
    except KeyboardInterrupt:
        spent = "" if prices is None else f"; {asker.cost:.4g} is spent by these prices"
        raise KeyboardInterrupt(f"interrupted{spent}; {KEPT}") from None
    finally:
        kept.close()
    return Rated(found, asker.requests, asker.sent, asker.got, None if prices is None else asker.cost, notes)


def _drawn(
    experiment: str,
    root: Path,
    site: str | None,
    launch: str | None,
    features: int,
    seed: int,
    say: Callable[[str], None],
) -> tuple[list[Drawn], list[str]]:
    """The SAEs with tables of features, and what was drawn of each; and a line for each that has less than asked.

    Tables of other held-out text than the launch is evaluated on do not count, and `say` is told: their ratings would
    be on no frontier. Trials are shared among launches, and with them their tables.
    """
    outcomes = StorageOutcomes(root, experiment)
    launch_id = choose_launch(outcomes, experiment, launch)
    if launch_id is None:
        raise UserError("--launch: name one; the SAEs of one launch are rated at a time")
    rows = frontier(experiment, site, launch_id, storage=root)
    rows = rows[rows["origin"] == OWN]
    there, made = with_features(rows, None, root), own_command("features", experiment)
    if not there:
        raise UserError(
            f"EXPERIMENT: no SAE of {experiment!r}{f' at {site}' if site else ''} has tables of features on the "
            f"held-out text of launch {launch_id}; have them made: {made} (or evaluation.features in its sweep file)"
        )
    stale = rows[
        ~rows["run_id"].isin(there) & rows["run_id"].map(lambda run: TrialDirectory(Path(run)).features.exists())
    ]
    for trial in stale["trial"]:
        say(f"{trial} is left out: its tables of features are of before; have them made anew: {made}")
    found, notes = [], []
    for row in rows[rows["run_id"].isin(there)].itertuples():
        tables = load_features(row.run_id, experiment, None, root)
        examples = draw(tables, features, seed)
        if len(examples) < features:
            notes.append(
                f"{row.trial}: {len(examples)} of the {features} features that were asked for fire and have enough "
                "pieces of text (evaluation.features.contexts)"
            )
        if examples:
            found.append(_of(row.run_id, launch_id, row.site, int(row.tokens), tables, examples))
    if not found:
        raise UserError(
            f"EXPERIMENT: no feature of {experiment!r} fires and has enough pieces of text; have tables of features "
            f"made with more of them: {made}, evaluation.features.contexts"
        )
    return found, notes


def _of(run_id: str, launch: str, site: str, tokens: int, tables: FeatureTables, examples: list[Examples]) -> Drawn:
    path = Path(run_id)
    spec = TrialSpec.from_json(json.loads((path / "trial.json").read_bytes()))
    trial = Trial(spec, TrialDirectory(path))
    return Drawn(trial, launch, site, tokens, tables.about["sae"], tables.about["heldout"], tuple(examples))


def _bill(drawn: list[Drawn], asker: Asker, seed: int) -> Bill:
    """What is to be asked. Of features that have no explanation yet the questions are those about a typical one."""
    open_: list[Messages] = []
    known = 0
    for examples in (examples for one in drawn for examples in one.examples):
        first = ask_for_explanation(examples.explained)
        told = asker.known(first)
        explanation = TYPICAL if told is None else read_explanation(told)
        asked = [] if explanation is None else questions_of(examples, explanation, seed)
        missing = [messages for messages in (first, *(q.messages for q in asked)) if asker.known(messages) is None]
        open_ += missing
        known += 1 + len(asked) - len(missing)
    sent = sum(map(estimated_tokens, open_))
    got, limit = asker.usual_answer * len(open_), asker.endpoint.limit
    most = None if limit is None else limit * len(open_)
    cost, most_cost = (
        None if asker.prices is None or tokens is None else asker.prices.of(sent, tokens) for tokens in (got, most)
    )
    features = sum(len(one.examples) for one in drawn)
    return Bill(len(drawn), features, len(open_), known, sent, got, most, cost, most_cost)


def _rate(drawn: Drawn, asker: Asker, asked: int, seed: int) -> Ratings:
    """Asks about all features of an SAE: first for explanations, then with these."""
    told = asker.ask([ask_for_explanation(examples.explained) for examples in drawn.examples])
    explanations = [None if text is None else read_explanation(text) for text in told]
    questions = [
        [] if explanation is None else questions_of(examples, explanation, seed)
        for examples, explanation in zip(drawn.examples, explanations, strict=True)
    ]
    answers = iter(asker.ask([question.messages for of_one in questions for question in of_one]))
    features = [
        _scored(examples.feature, explanation, [(question, next(answers)) for question in of_one])
        for examples, explanation, of_one in zip(drawn.examples, explanations, questions, strict=True)
    ]
    scores: dict[str, float] = {}
    for name in SCORES:
        scores |= with_interval(name, [value for rated in features if (value := rated[name]) is not None])
    return Ratings(
        version=VERSION,
        rater=asker.endpoint.model,
        endpoint=asker.endpoint.url,
        sae=drawn.sae,
        heldout=drawn.heldout,
        seed=seed,
        asked=asked,
        tokens=drawn.tokens,
        timestamp=time.time_ns() // 1_000_000,
        scores=scores,
        features=features,
    )


def _missing(ratings: Ratings) -> float:
    """The part of the answers that could not be had or read, a mean over features: without explanation all are."""
    features = ratings["features"]
    return sum(rated["unread"] / rated["answers"] for rated in features) / len(features)


def _scored(feature: int, explanation: str | None, answered: list[tuple[Question, str | None]]) -> RatedFeature:
    """A feature's scores, over the pieces that were answered for."""
    read = [
        (question, None if answer is None else read_choices(answer, len(question.right)))
        for question, answer in answered
    ]
    scores: dict[str, float | None] = {}
    for name in SCORES:
        of_score = [(q.right, choices) for q, choices in read if q.score == name and choices is not None]
        right = [value for values, _ in of_score for value in values]
        scores[name] = balanced_accuracy(right, [value for _, choices in of_score for value in choices])
    return RatedFeature(
        feature=feature,
        explanation=explanation,
        detection=scores["detection"],
        fuzzing=scores["fuzzing"],
        answers=1 + len(answered),
        unread=(explanation is None) + sum(choices is None for _, choices in read),
    )


def _record(drawn: Drawn, experiment: str, tracking_uri: str | None, notes: list[str]) -> list[str]:
    """Sends an SAE's ratings to MLflow; a line where it does not take them, once."""
    try:
        record_ratings(tracking_uri, experiment, drawn.launch, [drawn.trial], drawn.heldout)
    except UserError as error:
        line = (
            f"MLflow does not have these ratings ({error}); `gsae-ray frontier --storage` does, and the same command "
            "again sends them"
        )
        return [] if line in notes else [line]
    return []
