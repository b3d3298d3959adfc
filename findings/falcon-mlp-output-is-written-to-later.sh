#!/usr/bin/env bash
# What a forward hook on a module got may still be written to: transformers' Falcon adds attention to the MLP's output in
# place, so a tensor that a hook merely keeps becomes MLP + attention once the layer has gone on.
#
# Versions: transformers 5.23.0, torch 2.13.0, Python 3.11. Run on 2026-11-28.
# Behaviour: with `parallel_attn: true` (Falcon-7B's way) FalconDecoderLayer does `mlp_output += attention_output`. A clone
#   taken inside the hook differs from the tensor that the hook kept by exactly the attention's output. With
#   `parallel_attn: false` they are equal. The forward pass itself is right either way.
# Expected by most: a hook's `output` is the module's output, also after the forward pass.
# Output seen:
#   parallel_attn=True: kept - cloned = attention: True, kept == cloned: False
#   parallel_attn=False: kept == cloned: True
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q "transformers==5.23.0" "torch==2.13.0"
"$work/venv/bin/python" - <<'PY'
import torch
from transformers import AutoModelForCausalLM, FalconConfig

tokens = torch.arange(10)[None]


def hooked(parallel):
    torch.manual_seed(0)
    config = FalconConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, multi_query=True,
        parallel_attn=parallel, bos_token_id=0, eos_token_id=0,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    layer, seen = model.transformer.h[0], {}
    layer.mlp.register_forward_hook(lambda module, args, output: seen.update(kept=output, cloned=output.clone()))
    layer.self_attention.register_forward_hook(lambda module, args, output: seen.update(attention=output[0].clone()))
    with torch.no_grad():
        model(tokens, use_cache=False)
    return seen


seen = hooked(True)
added = torch.allclose(seen["kept"] - seen["cloned"], seen["attention"], atol=1e-6)
same = torch.equal(seen["kept"], seen["cloned"])
print(f"parallel_attn=True: kept - cloned = attention: {added}, kept == cloned: {same}")
assert added and not same
seen = hooked(False)
same = torch.equal(seen["kept"], seen["cloned"])
print(f"parallel_attn=False: kept == cloned: {same}")
assert same
PY
