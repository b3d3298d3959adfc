#!/usr/bin/env bash
# A model folder without any tokenizer file gives a tokenizer all the same in some families: transformers builds an empty
# one of the class that `model_type` names, whose special tokens take the first ids.
#
# Versions: transformers 5.23.0, torch 2.13.0, Python 3.11. Run on 2026-11-28.
# Behaviour: GPT-2, OPT, Phi, GPT-NeoX (Pythia) and Qwen 2 and 3 answer in silence; text becomes no tokens at all, and id 0
#   (and 1), ordinary tokens of the real vocabulary, count as special. Llama, Mistral and Falcon raise ValueError.
# Expected by most: an error that names the missing files, in every family.
# Output seen:
#   gpt2: GPT2Tokenizer of 1 token, special ids [0], "hello world" -> []
#   gpt_neox: GPTNeoXTokenizer of 2 tokens, special ids [0, 1], "hello world" -> []
#   qwen3: Qwen2Tokenizer of 1 token, special ids [0], "hello world" -> []
#   llama: ValueError
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q "transformers==5.23.0" "torch==2.13.0"
cd "$work"
HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$work/venv/bin/python" - <<'PY' | tee seen
from transformers import CONFIG_MAPPING, AutoTokenizer

for name in ("gpt2", "gpt_neox", "qwen3", "llama"):
    CONFIG_MAPPING[name](vocab_size=512, bos_token_id=0, eos_token_id=0).save_pretrained(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except ValueError:
        print(f"{name}: ValueError")
        continue
    ids = tokenizer("hello world", add_special_tokens=False)["input_ids"]
    size = f"{len(tokenizer)} token{'s' if len(tokenizer) > 1 else ''}"
    special = sorted(tokenizer.all_special_ids)
    print(f'{name}: {type(tokenizer).__name__} of {size}, special ids {special}, "hello world" -> {ids}')
PY
diff seen - <<'SEEN'
gpt2: GPT2Tokenizer of 1 token, special ids [0], "hello world" -> []
gpt_neox: GPTNeoXTokenizer of 2 tokens, special ids [0, 1], "hello world" -> []
qwen3: Qwen2Tokenizer of 1 token, special ids [0], "hello world" -> []
llama: ValueError
SEEN
echo "as before"
