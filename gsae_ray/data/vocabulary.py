"""The token ids of a language model, and which are special: by its tokenizer or, without one, its configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from gsae_ray.config.sections import ModelSettings
from gsae_ray.errors import NoTokenizerError, UserError
from gsae_ray.files import digest
from gsae_ray.language_model.loading import load_config, load_tokenizer


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """A model's token ids; None for a special token that it does not have."""

    model: str
    """The model's name, for messages."""
    size: int
    """How many token ids the model embeds."""
    bos: int | None
    eos: int | None
    pad: int | None
    special_ids: tuple[int, ...]
    tokenizer: PreTrainedTokenizerBase | None
    """None for a model that brings none, which is enough for token columns."""

    @classmethod
    def of(cls, model: ModelSettings, is_text: bool) -> Vocabulary:
        """The vocabulary of a model.

        Raises:
            UserError: the configuration or the tokenizer cannot be loaded; for text, there is no tokenizer.
        """
        config = load_config(model)
        text = config.get_text_config()  # of a multimodal model, its language model's; both name special tokens
        size = text.vocab_size
        try:
            tokenizer = load_tokenizer(model)
        except NoTokenizerError:
            if is_text:
                raise
        else:
            special_ids = tuple(sorted(tokenizer.all_special_ids))
            bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
            return cls(model.name, size, bos, eos, pad, special_ids, tokenizer)
        # Several may be EOS. A family's defaults may lie beyond the embedding of this model.
        said = ([getattr(part, f"{name}_token_id", None) for part in (config, text)] for name in ("bos", "eos", "pad"))
        found = [[token for ids in of_both for token in _listed(ids) if 0 <= token < size] for of_both in said]
        bos, eos, pad = (next(iter(ids), None) for ids in found)
        special_ids = tuple(sorted({token for ids in found for token in ids}))
        return cls(model.name, size, bos, eos, pad, special_ids, None)

    def begins_text(self) -> bool:
        """Whether the tokenizer itself begins each text with BOS."""
        return (
            self.tokenizer is not None and self.bos is not None and self.tokenizer("a")["input_ids"][:1] == [self.bos]
        )

    def fingerprint(self) -> str | None:
        """Hash of how the tokenizer makes ids of text; None without a tokenizer."""
        if self.tokenizer is None:
            return None
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        return digest(backend.to_str() if backend is not None else self.tokenizer.get_vocab())

    def without_padding(self, ids: list[int], mask: Sequence[int] | None) -> list[int]:
        """The ids of real tokens: those whose mask is not 0 or, without a mask, all but PAD at both ends."""
        if mask is not None:
            return [token for token, real in zip(ids, mask, strict=True) if real]
        start, stop = 0, len(ids)
        while start < stop and ids[stop - 1] == self.pad:
            stop -= 1
        while start < stop and ids[start] == self.pad:
            start += 1
        # Where PAD is EOS or BOS too, one of them belongs to the text.
        start -= start > 0 and self.pad == self.bos
        stop += stop < len(ids) and self.pad == self.eos
        return ids[start:stop]

    def check(self, ids: Sequence[int]) -> None:
        """Checks that the model embeds ids that the tokenizer gave.

        Raises:
            UserError: it does not.
        """
        if max(ids, default=0) >= self.size:
            raise UserError(
                f"model.tokenizer: the tokenizer of {self.model!r} gives the id {max(ids)}, but the model embeds only "
                f"{self.size} tokens, 0 to {self.size - 1}; name the tokenizer that it was trained with"
            )


def _listed(ids: Any) -> list[int]:
    return ids if isinstance(ids, list) else [] if ids is None else [ids]
