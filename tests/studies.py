"""Studies of SAEs that nobody trained, on tables of features that are random."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
from random_feature_tables import random_tables

from gsae_ray.feature_tables import FeatureTables
from gsae_ray.study.answers import Answer, item_at, raters, save
from gsae_ray.study.create import Design, Made, create
from gsae_ray.study.server import StudyServer
from gsae_ray.study.subjects import Couple, Subject

SECRETS = ("gated-secret", "standard-secret", "hook_", "resid", "mlp", "blocks", "gated", "standard", "topk")
"""What no rater may read in what is sent: names of trials, parts of sites, architectures."""
GATED = Subject(
    *("small", "pythia", "blocks.1.hook_resid_post", 1, "resid_post", "gated", "gated-secret", "run-g"),
    l0=20.0,
    loss_recovered=0.95,
    recipe="unit_norm/modern",
    tokens=1000,
)
STANDARD = dataclasses.replace(
    GATED, architecture="standard", trial="standard-secret", run_id="run-s", l0=21.0, recipe="paper/modern"
)


def at(subject: Subject, layer: int, point: str = "resid_post", model: str = "pythia") -> Subject:
    site = f"blocks.{layer}.hook_{point}"
    return dataclasses.replace(subject, model=model, layer=layer, point=point, site=site)


def couple_at(layer: int, point: str = "resid_post", model: str = "pythia") -> Couple:
    return Couple(at(GATED, layer, point, model), at(STANDARD, layer, point, model))


@functools.cache
def tables(seed: int, d_sae: int = 60, dead: int = 5) -> FeatureTables:
    """As `random_tables`, but each of the ten texts of a feature is another place in the held-out text."""
    found = random_tables(d_sae, seed=seed, dead=dead)
    places = pa.array([n % 10 for n in range(found.contexts.num_rows)], pa.int32())
    column = found.contexts.schema.get_field_index("context")
    contexts = found.contexts.set_column(column, found.contexts.schema.field(column), places)
    return dataclasses.replace(found, contexts=contexts)


def tables_of(subject: Subject) -> FeatureTables:
    return tables(int(subject.architecture == "gated") + 2 * (subject.layer or 0))


def make_study(path: Path, couples: Sequence[Couple], pairs: int = 2, raters: int = 2, seed: int = 0) -> Made:
    return create(path, couples, tables_of, Design(pairs, raters, seed))


def rate(
    path: Path, rater: int, place: int, label: int | None, explanation: str = "a word", seconds: float = 1
) -> None:
    """Answers an item as a page does: the explanation, then the label."""
    for said in [None] if label is None else [None, label]:
        seen = item_of(path, rater, place)
        save(path, rater, Answer(place, seen, "window", explanation, said, seconds))


def item_of(path: Path, rater: int, place: int) -> int:
    """The version of an item."""
    item = item_at(path, rater, place)
    assert item is not None
    return item.version


def done(path: Path) -> list[int]:
    return [rater.done for rater in raters(path)]


@contextmanager
def served(path: Path) -> Iterator[StudyServer]:
    """A study that is served by a thread of this process."""
    server = StudyServer(path)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
