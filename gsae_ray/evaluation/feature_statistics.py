"""Tables of what the features of SAEs fire on, made of the held-out contexts in two passes of the language model.

The first pass keeps of each feature counts, and rows by their numbers: those with its largest activations, and a
sample of those on which it fires. The second one runs over the contexts that are shown again, and fills these pieces
of text with activations. Either is one pass for all SAEs, at whatever sites, as far as their arrays fit in memory.
"""

from __future__ import annotations

import dataclasses
import functools
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gsae_ray.config.features import FeatureSettings
from gsae_ray.config.sections import ModelSettings
from gsae_ray.config.site import Site
from gsae_ray.data.tokens import PADDING, model_input
from gsae_ray.errors import not_finite
from gsae_ray.evaluation.feature_firings import EDGES, FIRINGS_BYTES, SAMPLE, Firings, Ints, Shown, position_edges
from gsae_ray.evaluation.feature_windows import BESIDE, OFF_BYTES, WINDOW_BYTES, Beside, Elsewhere, Windows
from gsae_ray.evaluation.task import evaluator_of
from gsae_ray.feature_tables import About, FeatureTables, are_current
from gsae_ray.feature_tables.schema import TOKENS, VERSION
from gsae_ray.saes import from_bytes
from gsae_ray.saes.folder import CONFIG_FILE, WEIGHTS_FILE

if TYPE_CHECKING:
    from gsae_ray.evaluation.evaluator import Evaluator
    from gsae_ray.language_model.source import ActivationSource
    from gsae_ray.language_model.unembedding import Unembedding

SEED = 0
"""Of what is drawn: the same rows for an SAE wherever and whenever its tables are made."""
SLICE_BYTES = 16 * 2**20
"""Activations of all features are computed for so many rows at a time as come to this."""
FEATURES_AN_EVALUATION = 16_384
"""An SAE of so many may take as long as an evaluation, a wider one as much longer as it is wider."""
FLOAT = 4


@dataclasses.dataclass(frozen=True)
class Looked:
    """A finished SAE whose features are to be looked at."""

    site: str
    folder: Path
    """Of its files, in storage."""
    target: Path
    """Where its tables go."""
    content: str
    """The hash of its files (`saes.folder.content_hash`)."""
    label: str
    """As `About.label`."""
    d_sae: int
    coordinates: int
    """d_in + d_out."""


def asked(settings: FeatureSettings) -> dict[str, int | None]:
    """As `About.asked`."""
    return {"contexts": settings.contexts, "window": settings.window, "tokens": settings.tokens}


def feature_bytes(settings: FeatureSettings) -> int:
    """The most that arrays of a pass take for each feature, in bytes: the first, or the second with its tables."""
    top, window = settings.top, settings.window
    first, kept = FIRINGS_BYTES + 12 * top, FIRINGS_BYTES - 12 * SAMPLE
    second = kept + settings.contexts * (2 * FLOAT * window + 2 * WINDOW_BYTES) + FLOAT * top * BESIDE + OFF_BYTES + 512
    return max(first, second)


@dataclasses.dataclass(frozen=True)
class FeatureStatistics:
    """Makes the tables of SAEs, and writes them to their folders; see `ProducerTask`.

    They do not go through the store's process, which has no room for those of wide SAEs. What is there already is not
    made again, so that another producer goes on where one has died.
    """

    saes: tuple[Looked, ...]
    settings: FeatureSettings
    model: ModelSettings
    """Of the source, for its tokenizer."""
    heldout: str
    """Fingerprint of the held-out contexts."""

    name = "feature tables"

    @property
    def evaluations(self) -> int:
        """How many times as long as an evaluation it may take.

        Cosines take width² products: 131,072 features took 280 to 1,202 s on a busy core (docs/features.md), where an
        evaluation has 600 s by default.
        """
        return sum(-(-looked.d_sae // FEATURES_AN_EVALUATION) for looked in self.saes)

    def run(self, source: ActivationSource, cache: dict[str, Any], say: Callable[[str], None]) -> int:
        """Makes them; returns how many were missing.

        Raises:
            NumericError: a site's activations are not finite.
        """
        from gsae_ray.evaluation.evaluator import Evaluator

        if "evaluator" not in cache:
            cache["evaluator"] = evaluator_of(source)
        evaluator = cache["evaluator"]
        assert isinstance(evaluator, Evaluator), "other sources are refused with the sweep file"
        wanted = asked(self.settings)
        left = [s for s in self.saes if not are_current(s.target, s.content, self.heldout, wanted)]
        sizes = [sae_bytes(looked.d_sae, looked.coordinates, self.settings) for looked in left]
        groups = [[left[place] for place in places] for places in sharing(sizes, self.settings)]
        if len(groups) > 1:
            say(
                f"feature tables of {len(left)} SAEs are made in {len(groups)} times two passes over the held-out "
                f"text: together they need more than evaluation.features.memory_gib = {self.settings.memory_gib:g}"
            )
        evaluator.find_rows([Site(looked.site) for looked in left])
        evaluator.forget()  # its room is needed, and a launch has evaluated its SAEs by now
        for group in groups:
            _Making(self, evaluator, group).make()
        return len(left)


def sharing(sizes: Sequence[int], settings: FeatureSettings) -> list[list[int]]:
    """Which SAEs share passes, by their places in a list of their bytes (`sae_bytes`)."""
    most = settings.memory_gib * 2**30
    groups: list[list[int]] = []
    for place, size in enumerate(sizes):
        if groups and sum(sizes[other] for other in groups[-1]) + size <= most:
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups


def sae_bytes(d_sae: int, coordinates: int, settings: FeatureSettings) -> int:
    """Bytes of an SAE of so many features and coordinates (d_in + d_out) with its arrays."""
    return d_sae * (FLOAT * coordinates + feature_bytes(settings))


class _Making:
    """The passes for SAEs that share them."""

    def __init__(self, task: FeatureStatistics, evaluator: Evaluator, group: Sequence[Looked]) -> None:
        self.task = task
        self.settings = task.settings
        self.evaluator = evaluator
        self.group = group
        tokens_ET = torch.cat(evaluator.slices)[: _contexts_for(evaluator, task.settings.tokens)]
        self.slices = tokens_ET.split(evaluator.batch)
        tokens_ET = tokens_ET.cpu()
        self.lengths_E = (tokens_ET != PADDING).sum(1).numpy()
        self.tokens_ET = tokens_ET.numpy().astype(np.int32)
        self.positions = self.tokens_ET.shape[1]
        self.saes = [
            from_bytes((s.folder / CONFIG_FILE).read_text("utf-8"), s.folder / WEIGHTS_FILE).to(evaluator.device)
            for s in group
        ]

    @torch.no_grad()
    def make(self) -> None:
        from gsae_ray.evaluation.feature_columns import top_tokens

        settings = self.settings
        firings = [Firings(sae.cfg.d_sae, settings.top, self.positions, SEED) for sae in self.saes]
        rows = self._first_pass(firings)
        shown, tokens = [], []
        for one in firings:
            shown.append(Shown(one, settings.top, settings.quantile, self.positions))
            tokens.append(top_tokens(one, self.tokens_ET))
            del one.top, one.sample  # before the second pass
        windows = [Windows(one, self.tokens_ET, self.lengths_E, settings.window) for one in shown]
        beside = [Beside(one.top_FK) for one in shown]
        elsewhere = [Elsewhere(one, sae.cfg.d_sae, SEED) for one, sae in zip(windows, self.saes, strict=True)]
        self._second_pass(windows, beside, elsewhere)
        unembedding = _unembedding(self.evaluator)
        for index in range(len(self.group)):
            self._write(
                index,
                rows[index],
                firings[index],
                tokens[index],
                shown[index],
                windows[index],
                beside[index],
                elsewhere[index],
                unembedding,
            )

    def _first_pass(self, firings: Sequence[Firings]) -> list[int]:
        """Adds what fires. Returns how many rows each SAE's site has."""
        rows = [0] * len(firings)
        for found in self._passes(range(len(self.slices))):
            for index, one in enumerate(firings):
                x_RD, row_R = found[self.group[index].site]
                rows[index] += len(row_R)
                for part, acts_RF in self._encoded(index, x_RD):
                    r, feature_N = acts_RF.gt(0).nonzero(as_tuple=True)
                    value_N = acts_RF[r, feature_N].float().cpu().numpy()
                    one.add(feature_N.cpu().numpy(), value_N, row_R[part][r.cpu().numpy()])
        return rows

    def _second_pass(
        self, windows: Sequence[Windows], beside: Sequence[Beside], elsewhere: Sequence[Elsewhere]
    ) -> None:
        """Fills in what is shown."""
        size = self.evaluator.batch * self.positions
        shown = [i for i in range(len(self.slices)) if any(one.needs(i * size, (i + 1) * size - 1) for one in windows)]
        for found in self._passes(shown):
            for index, one in enumerate(windows):
                x_RD, row_R = found[self.group[index].site]
                for part, acts_RF in self._encoded(index, x_RD, functools.partial(_is_shown, one, row_R)):
                    one.fill(acts_RF, row_R[part])
                    beside[index].add(acts_RF, row_R[part])
                    elsewhere[index].look(acts_RF, row_R[part])

    def _passes(self, slices: Sequence[int]) -> Iterator[dict[str, tuple[Tensor, Ints]]]:
        """Site -> (rows that take part, their numbers), slice by slice; one forward pass for all sites."""
        from gsae_ray.language_model.hooks import capture

        evaluator = self.evaluator
        sites = [Site(name) for name in dict.fromkeys(looked.site for looked in self.group)]
        sources = tuple(dict.fromkeys(site.source for site in sites))
        for index in slices:
            tokens_BT = self.slices[index]
            kept_BT = evaluator.kept(tokens_BT)
            captured = capture(evaluator.model, model_input(tokens_BT), sources, kept_BT)
            found = {}
            for site in sites:
                part_BT, x_RD = evaluator.rows(site)[index][: len(tokens_BT)], captured[site.source]
                x_RD = x_RD[part_BT[kept_BT].to(x_RD.device)]
                if not x_RD.isfinite().all():
                    raise not_finite(
                        f"activations at {site.source}", "the held-out text", str(x_RD.dtype).removeprefix("torch.")
                    )
                row_R = part_BT.flatten().nonzero()[:, 0].cpu().numpy() + index * evaluator.batch * self.positions
                found[site.name] = x_RD, row_R
            yield found

    def _encoded(
        self, index: int, x_RD: Tensor, needed: Callable[[slice], bool] = lambda _: True
    ) -> Iterator[tuple[slice, Tensor]]:
        """Features' activations of some rows at a time; the same ones at each call."""
        sae = self.saes[index]
        size = max(1, SLICE_BYTES // (FLOAT * sae.cfg.d_sae))
        for start in range(0, len(x_RD), size):
            part = slice(start, min(start + size, len(x_RD)))
            if needed(part):
                yield part, sae.encode(x_RD[part].to(sae.W_dec.device).float())

    def _write(
        self,
        index: int,
        rows: int,
        firings: Firings,
        tokens: Any,
        shown: Shown,
        windows: Windows,
        beside: Beside,
        elsewhere: Elsewhere,
        unembedding: Unembedding | None,
    ) -> None:
        """Writes an SAE's tables."""
        import pyarrow as pa

        from gsae_ray.evaluation.feature_columns import contexts_table, features_table, token_ids
        from gsae_ray.evaluation.feature_directions import logit_effects, neighbours
        from gsae_ray.language_model.token_texts import token_texts
        from gsae_ray.language_model.unembedding import writes_to_residual_stream

        looked, sae = self.group[index], self.saes[index]
        logits = None
        width = sae.W_dec.shape[1]
        if unembedding is not None and writes_to_residual_stream(Site(looked.site)) and width == unembedding.width:
            logits = logit_effects(sae.W_dec, unembedding)
        near, coactive = neighbours(sae.W_dec), beside.coactive(firings.fired_F)
        features = features_table(firings, rows, tokens, logits, near, coactive, shown, elsewhere)
        contexts = contexts_table(windows, shown, self.tokens_ET)
        ids = token_ids(features, contexts)
        texts = pa.table({"token": ids, "text": token_texts(self.task.model, ids)}, schema=TOKENS)
        about = About(
            version=VERSION,
            label=looked.label,
            site=looked.site,
            d_sae=sae.cfg.d_sae,
            sae=looked.content,
            heldout=self.task.heldout,
            rows=rows,
            contexts=len(self.tokens_ET),
            seed=SEED,
            histogram_edges=EDGES.tolist(),
            position_edges=position_edges(self.positions),
            logit_effects=None if logits is None or unembedding is None else unembedding.described,
            asked=asked(self.settings),
        )
        write_whole(FeatureTables(about, features, contexts, texts), looked.target)


def write_whole(tables: FeatureTables, target: Path) -> None:
    """Puts tables in a folder, at once: other processes may do the same, and this one may die."""
    temporary = target.with_name(f".{target.name}-{secrets.token_hex(8)}")
    try:
        tables.write(temporary)
        shutil.rmtree(target, ignore_errors=True)
        try:
            temporary.rename(target)
        except OSError:  # another process has been here in between, with the same ones
            if not (target / "about.json").exists():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_shown(windows: Windows, row_R: Ints, part: slice) -> bool:
    """Whether some window reaches into a part of rows, whose numbers rise."""
    rows = row_R[part]
    return windows.needs(int(rows[0]), int(rows[-1]))


def _contexts_for(evaluator: Evaluator, tokens: int | None) -> int:
    """How many of the first contexts have so many rows."""
    rows_E = torch.cat([evaluator.kept(tokens_BT).sum(1) for tokens_BT in evaluator.slices]).cumsum(0)
    return len(rows_E) if tokens is None else min(len(rows_E), int((rows_E < tokens).sum()) + 1)


def _unembedding(evaluator: Evaluator) -> Unembedding | None:
    from gsae_ray.language_model.unembedding import unembedding_of

    return unembedding_of(evaluator.model)
