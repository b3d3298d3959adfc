"""The activations of a language model on prepared tokens, as a source of rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from torch import Tensor
from transformers import PreTrainedModel

from gsae_ray.config.sections import ModelSettings
from gsae_ray.config.site import Site
from gsae_ray.data.tokens import PADDING, TokenStore, model_input
from gsae_ray.language_model.causal import check_predictions
from gsae_ray.language_model.hooks import capture
from gsae_ray.language_model.loading import load_model
from gsae_ray.language_model.source import HeldOutContexts, RowBatch


def load_causal(model: ModelSettings, gpus: float, tokens_ST: Tensor) -> PreTrainedModel:
    """Loads a model, and checks on some contexts that it predicts tokens from those before them.

    Args:
        model: which.
        gpus: as of `LanguageModelSpec`.
        tokens_ST: token ids, and PADDING.

    Raises:
        UserError: it cannot be loaded, or is not causal.
    """
    loaded = load_model(model, "cpu" if gpus == 0 else "cuda" if gpus <= 1 else "balanced")
    real_ST = tokens_ST != PADDING
    longest = real_ST.sum(1).argmax()  # of a token or two nothing could be told
    check_predictions(model.name, loaded, tokens_ST[longest, real_ST[longest]].to(loaded.device))
    return loaded


@dataclasses.dataclass(frozen=True)
class LanguageModelSpec:
    """What a `LanguageModelSource` is made from, in any process."""

    model: ModelSettings
    tokens: TokenStore
    batch: int
    """Contexts of a forward pass."""
    evaluation_batch: int
    """Contexts of a forward pass of an evaluation."""
    gpus: float
    """GPUs that the model is spread over; a part of one: shared with others."""
    max_norm: float | None
    """As `DatasetSettings.max_norm`."""

    def open(self) -> LanguageModelSource:
        """Loads the model.

        Raises:
            UserError: it cannot be loaded, or is not causal.
        """
        return LanguageModelSource(self)


class LanguageModelSource:
    """One language model in one process; see `ActivationSource`."""

    def __init__(self, spec: LanguageModelSpec) -> None:
        self.spec = spec
        self.max_norm = spec.max_norm
        self.model = load_causal(spec.model, spec.gpus, spec.tokens.block(0))
        self.device = self.model.device  # of the embedding, where tokens go; other layers may be on other GPUs

    def block(self, block: int, sites: Sequence[str]) -> Iterator[RowBatch]:
        """The block's rows, a forward pass a batch, in the order of the tokens."""
        spec = self.spec
        tokens_ST = spec.tokens.block(block)
        kept_ST = spec.tokens.kept(tokens_ST)
        for tokens_BT, kept_BT in zip(tokens_ST.split(spec.batch), kept_ST.split(spec.batch), strict=True):
            yield self.rows(tokens_BT, kept_BT, sites)  # not by a name, which would keep it through the next pass

    def rows(self, tokens_BT: Tensor, kept_BT: Tensor, sites: Sequence[str]) -> RowBatch:
        """The rows of some contexts, by one forward pass.

        Args:
            tokens_BT: token ids, and PADDING.
            kept_BT: which positions to take.
            sites: where.
        """
        read_BT = model_input(tokens_BT).to(self.device)
        captured = capture(self.model, read_BT, [Site(site) for site in sites], kept_BT)
        return RowBatch({site.name: x_Rn for site, x_Rn in captured.items()}, kept_BT.nonzero()[:, 1])

    def heldout(self) -> HeldOutContexts:
        """The held-out contexts of the prepared tokens."""
        tokens = self.spec.tokens
        return HeldOutContexts(self.model, tokens.heldout(), tokens.kept, self.spec.evaluation_batch)
