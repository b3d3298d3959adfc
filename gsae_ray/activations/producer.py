"""The producer: runs the language model, hands out blocks of activations, evaluates SAEs. No Ray here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gsae_ray.activations.accumulator import StatisticsAccumulator
from gsae_ray.activations.layout import Layout
from gsae_ray.activations.reader import to_array
from gsae_ray.activations.statistics import SiteStatistics
from gsae_ray.config.sections import ModelSettings
from gsae_ray.config.site import Site
from gsae_ray.data.contexts import PADDING
from gsae_ray.data.tokens import TokenStore, model_input
from gsae_ray.evaluation.evaluator import Evaluator
from gsae_ray.evaluation.metrics import Evaluation
from gsae_ray.language_model.causal import check_predictions
from gsae_ray.language_model.hooks import capture
from gsae_ray.language_model.loading import load_model
from gsae_ray.saes import from_bytes


@dataclasses.dataclass(frozen=True)
class ProducerSpec:
    """What a producer needs to come up anywhere."""

    model: ModelSettings
    tokens: TokenStore
    layout: Layout
    batch: int
    evaluation_batch: int
    threads: int
    gpus: float
    max_norm: float | None
    """As `DatasetSettings.max_norm`."""


class Producer:
    """One language model in one process. `produce` is pure: any producer makes the same block, bit for bit."""

    def __init__(self, spec: ProducerSpec) -> None:
        """
        Raises:
            UserError: the model cannot be loaded, or is not causal.
        """
        torch.set_num_threads(spec.threads)
        self.spec = spec
        where = "cpu" if spec.gpus == 0 else "cuda" if spec.gpus <= 1 else "balanced"
        self.model = load_model(spec.model, where)
        self.device = self.model.device  # of the embedding, where tokens go; other layers may be on other GPUs
        tokens_ST = spec.tokens.block(0)
        real_ST = tokens_ST != PADDING
        longest = real_ST.sum(1).argmax()  # of a token or two nothing could be told
        check_predictions(spec.model.name, self.model, tokens_ST[longest, real_ST[longest]].to(self.device))
        self._evaluator: Evaluator | None = None

    def produce(
        self, block: int, sites: Sequence[str], made: Callable[[int], None] = lambda rows: None
    ) -> tuple[dict[str, SiteStatistics], list[NDArray[Any]]]:
        """A block's rows at `sites`, permuted by (data seed, block), from one forward pass over its contexts.

        Args:
            made: is told after each forward batch how many rows there are.
        Returns:
            statistics of each site, and the chunks: all of the first site's, then the second's, and so on. A chunk is
            [rows, n] in the model's dtype; bfloat16, which numpy lacks, as an int16 view.
        """
        spec, layout = self.spec, self.spec.layout
        tokens_ST = spec.tokens.block(block)
        kept_ST = spec.tokens.kept(tokens_ST)
        n_rows = int(kept_ST.sum())
        if n_rows != layout.rows[block]:
            raise ValueError(f"block {block} has {n_rows} rows on disk, {layout.rows[block]} in the layout")
        destination = torch.from_numpy(_inverse_permutation(n_rows, spec.tokens.seed, block))
        dtype = getattr(torch, layout.dtype)
        rows = {site: torch.empty(n_rows, layout.widths[site], dtype=dtype) for site in sites}
        gathered = {site: StatisticsAccumulator(layout.widths[site]) for site in sites if block == 0}
        done = 0
        for tokens_BT, kept_BT in zip(tokens_ST.split(spec.batch), kept_ST.split(spec.batch), strict=True):
            read_BT = model_input(tokens_BT).to(self.device)
            captured = capture(self.model, read_BT, [Site(site) for site in sites], kept_BT)
            here = destination[done : done + int(kept_BT.sum())]
            for site, x_Rn in captured.items():
                rows[site.name][here] = x_Rn.cpu()
                if block == 0:
                    gathered[site.name].add(x_Rn)
            done += len(here)
            made(done)
        position_R = kept_ST.nonzero()[:, 1]
        statistics = {
            site: gathering.statistics(rows[site], destination, position_R, spec.max_norm)
            for site, gathering in gathered.items()
        }
        chunks = [to_array(rows[site][a:b]) for site in sites for a, b in layout.chunks(block, site)]
        return statistics, chunks

    def evaluate(self, site: str, cfg: str, weights: bytes, pursuit_l0: int | None = None) -> Evaluation:
        """An SAE, as saved, on the held-out contexts (see `Evaluator.evaluate`)."""
        if self._evaluator is None:
            spec = self.spec
            self._evaluator = Evaluator(
                self.model, spec.tokens.heldout(), spec.tokens.kept, spec.evaluation_batch, spec.max_norm
            )
        return self._evaluator.evaluate(Site(site), from_bytes(cfg, weights).to(self.device), pursuit_l0)


class LocalBlockReader:
    """A `BlockReader` of one site from a producer in this process: a trial alone, without Ray."""

    def __init__(self, producer: Producer, site: str) -> None:
        self.producer = producer
        self.site = site
        self._block = -1
        self._chunks: Sequence[NDArray[Any]] = ()
        self._statistics: dict[str, SiteStatistics] = {}

    def statistics(self) -> SiteStatistics:
        if not self._statistics:
            self.open(0)
        return self._statistics[self.site]

    def open(self, block: int) -> None:
        if block != self._block:
            statistics, self._chunks = self.producer.produce(block, [self.site])
            self._statistics = self._statistics or statistics
            self._block = block

    def chunk(self, index: int) -> NDArray[Any]:
        return self._chunks[index]


def _inverse_permutation(rows: int, seed: int, block: int) -> NDArray[Any]:
    """Where in the block each row, in the order of the tokens, goes."""
    # RandomState's streams are frozen by numpy's compatibility policy; Generator's are not.
    return np.random.RandomState([seed, block]).permutation(rows)
