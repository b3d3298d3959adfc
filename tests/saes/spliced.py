"""Runs where sae-lens is installed: the losses of a language model with SAEs of ours spliced in by SAELens.

python spliced.py FOLDER    # FOLDER/model/: of TransformerLens; tokens.safetensors; saes/{name}/; writes losses.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from sae_lens import SAE, HookedSAETransformer
from safetensors.torch import load_file
from torch import Tensor
from transformer_lens import HookedTransformerConfig

SIZES = ("n_layers", "d_model", "n_heads", "d_head", "d_mlp", "n_ctx", "d_vocab")


def load_model(directory: Path) -> HookedSAETransformer:
    published = json.loads((directory / "config.json").read_text())
    sizes = {name: published[name] for name in SIZES}
    model = HookedSAETransformer(HookedTransformerConfig(**sizes, act_fn="gelu", normalization_type="LN", device="cpu"))
    model.load_state_dict(torch.load(directory / "model_final.pth", weights_only=True))
    return model


def loss(logits: Tensor, tokens: Tensor) -> float:
    """Cross-entropy of every next token."""
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).item()


@torch.no_grad()
def main(folder: Path) -> None:
    model, tokens = load_model(folder / "model"), load_file(folder / "tokens.safetensors")["tokens"]
    losses = {"clean": loss(model(tokens), tokens)}
    for directory in sorted((folder / "saes").iterdir()):
        losses[directory.name] = loss(model.run_with_saes(tokens, saes=[SAE.load_from_disk(directory)]), tokens)
    (folder / "losses.json").write_text(json.dumps(losses))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
