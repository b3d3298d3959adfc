"""Checks that a language model is causal: loss recovered and KL need predictions of a token from those before it.

transformers loads encoders and the decoders of encoder-decoders as causal language models too, and scores each token
with the token itself in sight.
"""

from __future__ import annotations

import torch
import transformers
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel

from gsae_ray.errors import UserError

LEAK = 0.01
"""The most that predictions before a change of tokens may change, ÷ the change of those after it.

Measured: up to 5e-7 in causal models, by rounding in mixtures of experts; in encoders 3e-3 with random weights, about 1
where attention has learnt anything.
"""


def _refusal(name: str, what: str) -> UserError:
    return UserError(
        f"model.name: {name!r} is no causal language model: {what}; loss recovered and KL need predictions of each "
        "token from those before it; name a causal model"
    )


def check_kind(name: str, config: transformers.PretrainedConfig) -> None:
    """Checks by its configuration that transformers has such a model as a causal one.

    Raises:
        UserError: it does not.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise _refusal(name, f"{config.model_type} is an encoder-decoder")
    own_code = getattr(config, "auto_map", None)
    if not own_code and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise _refusal(name, f"transformers has none of the type {config.model_type}")


def check_attention(name: str, model: nn.Module) -> None:
    """Checks by its layers, which may be on the meta device, that not all attention is declared non-causal.

    Raises:
        UserError: it is.
    """
    causal = {module.is_causal for module in model.modules() if isinstance(getattr(module, "is_causal", None), bool)}
    if causal == {False}:
        raise _refusal(name, "its attention sees the tokens that come after, as an encoder's")


@torch.no_grad()
def check_predictions(name: str, model: PreTrainedModel, tokens_T: Tensor) -> None:
    """Checks by what it computes that predictions stay when tokens after them change.

    Raises:
        UserError: they change.
    """
    half = len(tokens_T) // 2
    changed_T = torch.cat([tokens_T[:half], tokens_T[half:].flip(0)])
    logits_TV, changed_TV = (model(tokens[None], use_cache=False).logits[0].float() for tokens in (tokens_T, changed_T))
    change_T = (logits_TV - changed_TV).abs().mean(dim=1)
    if change_T[:half].mean() > LEAK * change_T[half:].mean():
        raise _refusal(name, "its predictions change with the tokens that come after")
