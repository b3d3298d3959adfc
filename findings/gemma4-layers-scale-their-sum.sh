#!/usr/bin/env bash
# Gemma 4 multiplies what leaves each layer by `layer_scalar`, a *buffer* that is 1 in a fresh model: in a model of random
# weights the residual stream is the sum of its parts, in a trained one it need not be, and a test on random models passes.
#
# Versions: transformers 5.24.0, torch 2.13.0, Python 3.11. Run on 2026-11-29.
# Behaviour: with fresh weights, even when all parameters are drawn anew, stream before + attention + MLP = stream after
#   holds; with another layer_scalar it does not. `model.parameters()` does not have it; `model.buffers()` and the state dict do.
# Expected by most: as in every other pre-norm transformer, a layer only adds to its residual stream.
# Output seen:
#   among parameters: False, in the state dict: True
#   fresh, all parameters drawn anew: largest difference below 1e-5: True
#   layer_scalar = 0.7: largest difference below 1e-5: False; stream after = 0.7 x the sum: True
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q "transformers==5.24.0" "torch==2.13.0"
cd "$work"
"$work/venv/bin/python" - <<'PY' | tee seen
import torch
from transformers import AutoModelForCausalLM, Gemma4TextConfig

torch.manual_seed(0)
model = AutoModelForCausalLM.from_config(
    Gemma4TextConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, hidden_size_per_layer_input=0, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )
).eval()
with torch.no_grad():
    for parameter in model.parameters():
        parameter.normal_(0, 0.2)
name = "model.layers.0.layer_scalar"
parameters, state = dict(model.named_parameters()), model.state_dict()
print(f"among parameters: {name in parameters}, in the state dict: {name in state}")
layer, seen = model.model.layers[0], {}
layer.register_forward_pre_hook(lambda module, args: seen.update(before=args[0].clone()))
layer.register_forward_hook(lambda module, args, output: seen.update(after=output.clone()))
for part in ("post_attention_layernorm", "post_feedforward_layernorm"):
    hook = lambda module, args, output, part=part: seen.update({part: output.clone()})
    getattr(layer, part).register_forward_hook(hook)


@torch.no_grad()
def streams():
    model(torch.arange(3, 13)[None], use_cache=False)
    return seen["before"] + seen["post_attention_layernorm"] + seen["post_feedforward_layernorm"], seen["after"]


added, after = streams()
print(f"fresh, all parameters drawn anew: largest difference below 1e-5: {torch.allclose(added, after, rtol=0, atol=1e-5)}")
layer.layer_scalar.fill_(0.7)
added, after = streams()
same, scaled = (torch.allclose(x, after, rtol=0, atol=1e-5) for x in (added, 0.7 * added))
print(f"layer_scalar = 0.7: largest difference below 1e-5: {same}; stream after = 0.7 x the sum: {scaled}")
PY
diff seen - <<'SEEN'
among parameters: False, in the state dict: True
fresh, all parameters drawn anew: largest difference below 1e-5: True
layer_scalar = 0.7: largest difference below 1e-5: False; stream after = 0.7 x the sum: True
SEEN
echo "as before"
