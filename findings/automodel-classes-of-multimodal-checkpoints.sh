#!/usr/bin/env bash
# AutoModelForCausalLM on a multimodal checkpoint: what comes back differs by family. Gemma 3 and 4 give the multimodal
# class, Qwen3.5 the text model alone, Qwen3-VL an error; so modules have other paths, and `config.model_type` of the loaded
# model need not be that of config.json.
#
# Versions: transformers 5.24.0, torch 2.13.0, Python 3.11. Run on 2026-11-29.
# Behaviour: see "Output seen". Qwen3.5's vision weights are dropped without an error.
# Expected by most: the text model in every family (the class says "causal LM"), or the multimodal one in every family.
# Output seen:
#   gemma3: Gemma3ForConditionalGeneration, model_type gemma3, layers at model.language_model.layers
#   gemma4: Gemma4ForConditionalGeneration, model_type gemma4, layers at model.language_model.layers
#   qwen3_5: Qwen3_5ForCausalLM, model_type qwen3_5_text, layers at model.layers
#   qwen3_vl: ValueError
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q "transformers==5.24.0" "torch==2.13.0"
cd "$work"
HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$work/venv/bin/python" - <<'PY' | tee seen
import transformers
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

transformers.utils.logging.disable_progress_bar()
text = dict(
    vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, head_dim=8, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)
vision = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
qwen = vision | dict(depth=1, num_heads=2, out_hidden_size=16, deepstack_visual_indexes=[])
families = {
    "gemma3": (text, vision | dict(image_size=28, patch_size=14)),
    "gemma4": (text | dict(hidden_size_per_layer_input=0), vision | dict(num_key_value_heads=2, head_dim=8)),
    "qwen3_5": (text, qwen),
    "qwen3_vl": (text, qwen),
}
for name, (text_config, vision_config) in families.items():
    config = transformers.CONFIG_MAPPING[name](text_config=text_config, vision_config=vision_config)
    AutoModelForImageTextToText.from_config(config).save_pretrained(name)
    try:
        model = AutoModelForCausalLM.from_pretrained(name)
    except ValueError:
        print(f"{name}: ValueError")
        continue
    layers = next(path for path, _ in model.named_modules() if path.endswith("layers") and "vision" not in path)
    print(f"{name}: {type(model).__name__}, model_type {model.config.model_type}, layers at {layers}")
PY
diff seen - <<'SEEN'
gemma3: Gemma3ForConditionalGeneration, model_type gemma3, layers at model.language_model.layers
gemma4: Gemma4ForConditionalGeneration, model_type gemma4, layers at model.language_model.layers
qwen3_5: Qwen3_5ForCausalLM, model_type qwen3_5_text, layers at model.layers
qwen3_vl: ValueError
SEEN
echo "as before"
