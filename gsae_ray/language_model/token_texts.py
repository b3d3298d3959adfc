"""Single tokens as text."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from gsae_ray.config.sections import ModelSettings
from gsae_ray.errors import NoTokenizerError
from gsae_ray.language_model.loading import load_tokenizer

WORD_START = "▁"
"""What SentencePiece has in the place of a space."""


def token_texts(model: ModelSettings, ids: Sequence[int]) -> list[str]:
    """What each token stands for in a text, with the space that it begins with; of a part of a character `�`.

    Without a tokenizer, and of an id that it does not know, the id in brackets.
    """
    try:
        tokenizer = load_tokenizer(model)
    except NoTokenizerError:
        return [f"[{token}]" for token in ids]
    return [_text(tokenizer, token) for token in ids]


def _text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    piece = tokenizer.convert_ids_to_tokens(token) if token < len(tokenizer) else None
    if not isinstance(piece, str):
        return f"[{token}]"
    text = str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
    # Decoders of SentencePiece drop the space that a text begins with.
    return f" {text}" if piece.startswith(WORD_START) and not text.startswith(" ") else text
