"""Runs where circuit-tracer is installed: what it makes of sets of transcoders that we wrote.

    python circuit_tracer_sets.py FOLDER    # FOLDER/sets/{name}/, x.safetensors, model/ of TransformerLens, tokens

Writes FOLDER/computed/{name}.safetensors: acts [layers, rows, features] and out [layers, rows, n] of x; and features,
the activations [layers, positions, features] in its replacement model, on the first context of tokens.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import yaml
from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel
from circuit_tracer.transcoder import TranscoderSet
from circuit_tracer.utils.hf_utils import load_transcoders
from safetensors.torch import load_file, save_file
from transformer_lens import HookedTransformerConfig

SIZES = ("n_layers", "d_model", "n_heads", "d_head", "d_mlp", "n_ctx", "d_vocab")
IN_OLD = {"mlp": "mlp.old_mlp", "unembed": "unembed.old_unembed"}
"""Part of a model -> where its replacement has it."""


def load_set(directory: Path, lazy: bool) -> TranscoderSet:
    """As `load_transcoder_from_hub` has a repository with these files; of a folder the paths have to be given."""
    config = yaml.safe_load((directory / "config.yaml").read_text())
    layers = len(list(directory.glob("layer_*.safetensors")))
    config["transcoders"] = [str(directory / f"layer_{layer}.safetensors") for layer in range(layers)]
    return load_transcoders(config, device=torch.device("cpu"), lazy_encoder=lazy, lazy_decoder=lazy)


def replacement_model(directory: Path, transcoders: TranscoderSet) -> TransformerLensReplacementModel:
    published = json.loads((directory / "config.json").read_text())
    sizes = {name: published[name] for name in SIZES}
    config = HookedTransformerConfig(**sizes, act_fn="gelu", normalization_type="LN", device="cpu")
    model = TransformerLensReplacementModel.from_config(config, transcoders)
    state = dict(model.state_dict())
    for name, tensor in torch.load(directory / "model_final.pth", weights_only=True).items():
        parts = [IN_OLD.get(part, part) for part in name.split(".")]
        own = ".".join(parts)
        assert own in state, own
        state[own] = tensor
    model.load_state_dict(state)
    return model


@torch.no_grad()
def main(folder: Path) -> None:
    x = load_file(folder / "x.safetensors")["x"]
    tokens = load_file(folder / "tokens.safetensors")["tokens"]
    (folder / "computed").mkdir()
    for directory in sorted((folder / "sets").iterdir()):
        transcoders = load_set(directory, lazy=True)  # as it reads them by default
        acts = torch.stack([transcoder.encode(x) for transcoder in transcoders])
        computed = {"acts": acts, "out": torch.stack([transcoder(x) for transcoder in transcoders])}
        model = replacement_model(folder / "model", load_set(directory, lazy=False))
        computed["features"] = torch.as_tensor(model.get_activations(tokens[0])[1])
        computed = {name: tensor.detach().contiguous() for name, tensor in computed.items()}
        save_file(computed, folder / "computed" / f"{directory.name}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
