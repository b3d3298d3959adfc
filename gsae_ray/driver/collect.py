"""Activations of a sweep, written to disk: what producers make of its training and held-out contexts. Without Ray."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import get_args

import torch
from rich.console import Console

from gsae_ray.activation_files.collection import Collection, free_bytes, open_collection
from gsae_ray.activation_files.schema import (
    FORMAT,
    TRAIN,
    CollectedLayout,
    Contexts,
    Description,
    SplitSchema,
    site_schema,
    splits,
)
from gsae_ray.activations.language_model_source import LanguageModelSource, LanguageModelSpec
from gsae_ray.activations.layout import DTYPE_BYTES
from gsae_ray.activations.producer import Producer
from gsae_ray.config.load import load_sweep
from gsae_ray.config.sections import DatasetSettings
from gsae_ray.config.site import Site
from gsae_ray.config.sweep import Sweep
from gsae_ray.data.saelens_cache import STORED_DTYPE
from gsae_ray.data.tokens import TokenStore
from gsae_ray.driver.block_writer import BlockWriter, finish_data_sets
from gsae_ray.driver.display import Display
from gsae_ray.driver.prepare import PreparedSweep, every_few_seconds, prepare, producer_spec
from gsae_ray.errors import StorageFullError, UserError, shown, suggest
from gsae_ray.names import local_path
from gsae_ray.saes.saelens_config import hook_of


@dataclasses.dataclass(frozen=True)
class Collected:
    """What a collection came to."""

    folder: Path
    sites: tuple[str, ...]
    rows: int
    """Training rows, at each site."""
    heldout_rows: int
    nbytes: int


def collect(
    sweep: str | Path | Sweep,
    out: str | Path,
    *,
    layout: CollectedLayout = "safetensors",
    sites: Sequence[str] = (),
    tokens: int | None = None,
    overrides: Sequence[str] = (),
    tracking_uri: str | None = None,
    storage: str | Path | None = None,
    console: Console | None = None,
) -> Collected:
    """Writes the activations that the trials of a sweep would read, and those that they would be evaluated on.

    The language model runs once, in this process. A collection that was interrupted goes on; the folder is there under
    its name when all is.

    Args:
        sweep: a sweep file, or a `Sweep`.
        out: the folder to write to; new, or empty.
        layout: of the files; see `gsae_ray.activation_files.schema`.
        sites: of the sweep; default: all.
        tokens: how many training rows, but for the rest of a block; default: those of the longest trial.
        overrides: `path.to.key=value`, for a sweep file.
        tracking_uri: of MLflow, where the sweep names runs.
        storage: where the sweep's tokens are kept; default: `gsae_runs` in the working directory.
        console: where progress goes; default: standard error.

    Raises:
        UserError: something is wrong with the sweep or its surroundings, or there is something else in `out`; nothing
            was written. Or activations are not finite.
        StorageFullError: the disk is full; the same call goes on.
    """
    if layout not in get_args(CollectedLayout):
        raise UserError(f"--layout: {shown(layout)}; {suggest(layout, get_args(CollectedLayout))}")
    say = Display(console or Console(stderr=True)).phase
    folder = local_path(out, "--out").resolve()
    root = local_path("gsae_runs" if storage is None else storage, "--storage").resolve()
    if not isinstance(sweep, Sweep):
        sweep = load_sweep(sweep, overrides)
    say(f"checking {sweep.name}: {sweep.source}")
    prepared = prepare(_for_this_machine(sweep, say), root, say, tracking_uri)
    description = _describe(prepared, layout, _chosen(prepared, sites), tokens)
    with open_collection(folder, description) as collection:
        if collection is None:
            say(f"{folder} is finished already")
        else:
            _check_room(collection, description, say)
            try:
                _write(collection, prepared, say)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise StorageFullError(
                    f"{error.filename or collection.folder}: {error.strerror or error}; what was written before is "
                    "whole: make room, and the same command goes on"
                ) from error
    written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    rows, heldout_rows = (sum(split["rows"]) for split in splits(description).values())
    return Collected(folder, tuple(description["sites"]), rows, heldout_rows, written)


# ---- before anything is written -------------------------------------------------------------------------------------


def _for_this_machine(sweep: Sweep, say: Callable[[str], None]) -> Sweep:
    """The sweep for the CPU where there is no GPU; without references, which are nothing to collect.

    Raises:
        UserError: it has no language model.
    """
    if not isinstance(sweep.dataset, DatasetSettings):
        raise UserError(f"collect: {sweep.name} runs no language model on text, so there is nothing to collect")
    sweep = sweep.model_copy(update={"references": ()})
    if not sweep.producers.gpus or torch.cuda.is_available():
        return sweep
    say("there is no GPU here, as producers.gpus asks for: this takes longer, and the last digits may differ")
    return sweep.model_copy(update={"producers": sweep.producers.model_copy(update={"gpus": 0.0})})


def _chosen(prepared: PreparedSweep, sites: Sequence[str]) -> list[str]:
    own = list(prepared.layout.widths)
    places = [place.name for site in sites for place in Site(site).places]  # of a transcoder both
    for place in places:
        if place not in own:
            raise UserError(f"--site: this sweep has no SAEs at {place!r}; {suggest(place, own)}")
    return [site for site in own if site in places] if sites else own


def _tokens(prepared: PreparedSweep) -> TokenStore:
    """What the language model reads."""
    spec = prepared.source.spec
    assert isinstance(spec, LanguageModelSpec)
    return spec.tokens


def _describe(
    prepared: PreparedSweep, layout: CollectedLayout, sites: Sequence[str], tokens: int | None
) -> Description:
    """All that decides what is written."""
    sweep, stream, source, store = prepared.sweep, prepared.layout, prepared.source, _tokens(prepared)
    longest = sweep.longest_tokens
    if tokens is not None and tokens > longest:
        raise UserError(
            f"--tokens: {tokens:,} is more than the {longest:,} rows that this sweep reads; raise it with --set "
            f"training.tokens={tokens}"
        )
    blocks = stream.blocks_for(tokens or longest)
    model = sweep.language_model.name
    hooks = {site: hook_of(site, model, source.modules.get(site)).get("hook_name", site) for site in sites}
    contexts = [len(store.block(block)) for block in range(blocks)]
    return Description(
        format=FORMAT,
        layout=layout,
        model=dict(source.metadata["model"]),
        dataset=dict(source.metadata["dataset"]),
        model_fingerprint=source.provenance["model"],
        train_fingerprint=store.fingerprint,
        heldout_fingerprint=store.heldout_fingerprint,
        dtype=stream.dtype,
        stored_dtype=stream.dtype if layout == "safetensors" else STORED_DTYPE[stream.dtype],
        context_size=sweep.language_model.context_size,
        special_ids=list(store.special_ids),
        skip_positions=store.skip_positions,
        seed=store.seed,
        sites={site: site_schema(site, stream.widths[site], hooks[site], source.modules.get(site)) for site in sites},
        train=SplitSchema(contexts=contexts, rows=list(stream.rows[:blocks]), batch=sweep.producers.batch),
        heldout=SplitSchema(contexts=[len(store.heldout())], rows=[store.heldout_rows], batch=sweep.evaluation.batch),
        forward={"threads": sweep.producers.cpus, "gpu": sweep.producers.gpus > 0},
    )


def _needed_bytes(description: Description) -> int:
    """Bytes of all files, but for what describes them."""
    context, saelens = description["context_size"], description["layout"] == "saelens"
    a_row = DTYPE_BYTES[description["stored_dtype"]] * sum(site["width"] for site in description["sites"].values())
    both = splits(description).values()
    positions = context * sum(sum(split["contexts"]) for split in both)
    rows = positions if saelens else sum(sum(split["rows"]) for split in both)
    beside = 5  # a token id, and whether it is kept; in SAELens' files too
    return rows * a_row + positions * (beside + (beside + 4) * saelens * len(description["sites"]))


def _check_room(collection: Collection, description: Description, say: Callable[[str], None]) -> None:
    """Says how much is to be written.

    Raises:
        UserError: there is no room for it.
    """
    needed, free = _needed_bytes(description) - collection.nbytes, free_bytes(collection.folder)
    if needed > free:
        rows = sum(description["train"]["rows"])
        raise UserError(
            f"--out: {needed / 2**30:.2f} GiB are to be written, and {free / 2**30:.2f} GiB are free there: about "
            f"{int(rows * max(0, free - 2**20) / needed):,} --tokens would fit, or fewer --site"
        )
    again = f" ({collection.nbytes / 2**30:.2f} GiB are there already)" if collection.nbytes else ""
    say(
        f"writing {needed / 2**30:.2f} GiB at {len(description['sites'])} sites to {collection.folder}{again}; "
        f"{free / 2**30:.2f} GiB are free there"
    )


# ---- writing --------------------------------------------------------------------------------------------------------


def _write(collection: Collection, prepared: PreparedSweep, say: Callable[[str], None]) -> None:
    """Writes the blocks that are missing, and finishes the folder."""
    description, store = collection.progress["description"], _tokens(prepared)
    rows = {(name, b): count for name, split in splits(description).items() for b, count in enumerate(split["rows"])}
    missing = [place for place in rows if not collection.has(_name(*place))]
    total, left = sum(rows.values()), sum(rows[place] for place in missing)
    report, done = every_few_seconds(say), total - left
    if missing:
        with _source(prepared, say) as source:
            for split, block in missing:
                tokens_ST = store.block(block) if split == TRAIN else store.heldout()
                writer = BlockWriter(collection, split, block)
                for made in writer.write(source, Contexts(tokens_ST, store.kept(tokens_ST))):
                    done += made
                    report("collecting", done, total)
                collection.add(_name(split, block), writer.names)
    if description["layout"] == "saelens":
        finish_data_sets(collection)
    collection.finish()


def _name(split: str, block: int) -> str:
    return f"{split}/{block:05d}"


@contextlib.contextmanager
def _source(prepared: PreparedSweep, say: Callable[[str], None]) -> Iterator[LanguageModelSource]:
    """What a producer of the sweep gets its rows from, with as many threads, in this process."""
    threads = torch.get_num_threads()
    say("loading the language model")
    try:
        source = Producer(producer_spec(prepared)).source
        assert isinstance(source, LanguageModelSource)
        yield source
    finally:
        torch.set_num_threads(threads)
