"""Run where transformer-lens is installed: writes random checkpoints, and what TransformerLens makes of them.

    python transformer_lens_reference.py DIRECTORY

For each of `CONFIGURATIONS` a folder with `config.json` and `model_final.pth`, as published, and
`reference.safetensors`: the tokens, the logits, and the cache of a forward pass by TransformerLens' names.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformer_lens import HookedTransformer, HookedTransformerConfig

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "small": {"n_layers": 2, "d_model": 32, "n_heads": 4, "d_head": 8, "d_mlp": 96, "n_ctx": 64, "d_vocab": 4096},
    # GELU-1L's own sizes.
    "gelu_1l": {
        "n_layers": 1,
        "d_model": 512,
        "n_heads": 8,
        "d_head": 64,
        "d_mlp": 2048,
        "n_ctx": 1024,
        "d_vocab": 48262,
    },
}
PUBLISHED = {  # the words of the published configuration, and some of its training settings
    "act_fn": "gelu",
    "attn_only": False,
    "normalization": "LN",
    "shortformer_pos": False,
    "tokenizer_name": "NeelNanda/gpt-neox-tokenizer-digits",
    "lr": 0.001,
    "seed": 98742,
}


def write(directory: Path, sizes: dict[str, Any]) -> None:
    directory.mkdir(parents=True)
    config = HookedTransformerConfig(**sizes, act_fn="gelu", normalization_type="LN", device="cpu", seed=0)
    model = HookedTransformer(config)  # no weight processing: that is `from_pretrained`'s
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "W_" not in name:  # biases and norms, which TransformerLens starts at 0 and 1
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    # Both ways to say it: as published, and TransformerLens' own dictionary.
    own = {key: str(value) if isinstance(value, torch.dtype) else value for key, value in config.to_dict().items()}
    values = {**sizes, **PUBLISHED} if directory.name == "gelu_1l" else own
    (directory / "config.json").write_text(json.dumps(values, default=float))
    torch.save(model.state_dict(), directory / "model_final.pth")
    tokens = torch.randint(sizes["d_vocab"], (2, 48))
    sites = {}
    for layer, block in enumerate(model.blocks):  # HookedTransformer has no hook there; its TransformerBridge has
        name = f"blocks.{layer}.mlp.hook_in"
        block.mlp.register_forward_pre_hook(lambda _mlp, args, name=name: sites.update({name: args[0].clone()}))
    with torch.no_grad():
        logits, cache = model.run_with_cache(tokens)
    wanted = ("hook_resid_pre", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "mlp.hook_post", "attn.hook_z")
    sites |= {name: value.flatten(2).clone() for name, value in cache.items() if name.endswith(wanted)}
    save_file({"tokens": tokens, "logits": logits, **sites}, directory / "reference.safetensors")


if __name__ == "__main__":
    for name, sizes in CONFIGURATIONS.items():
        write(Path(sys.argv[1]) / name, sizes)
