"""Runs among the other libraries, which test_neighbours.py installs: makes their SAEs, and loads those that we wrote.

    python neighbours.py make FOLDER    # FOLDER/{library}-{what}/: as saved; computed.safetensors: x, acts, out
    python neighbours.py load FOLDER    # FOLDER/{library}-{what}/: as written by us; adds computed.safetensors

Of SAEs with thresholds there are two each: `exact` has weights and rows of few binary digits, so that no order of
summation rounds, and as many activations lie exactly at their threshold as there are features.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sae_lens
import torch
from dictionary_learning import dictionary
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from dictionary_learning.utils import load_dictionary
from sae_lens.saes import transcoder as transcoders
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.matryoshka_batchtopk_sae import MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig
from sae_lens.saes.sae import SAEMetadata
from safetensors.torch import load_file, save_file
from sparsify.config import SparseCoderConfig
from sparsify.sparse_coder import SparseCoder
from torch import Tensor

N, M, K, ROWS, HEADS = 16, 48, 5, 256, 4
Tensors = dict[str, Tensor]


def random(seed: int, exact: bool) -> tuple[Tensors, Tensor]:
    """(weights of norms other than 1, rows); `near` is 1 where thresholds are to be hit, and below where not."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (N, M), "b_enc": (M,), "W_dec": (M, N), "b_dec": (N,), "r_mag": (M,), "x": (ROWS, N)}
    drawn = {name: torch.randn(shape, generator=generator) * 0.5 for name, shape in shapes.items()}
    if exact:
        drawn = {name: (tensor * 8).round() / 8 for name, tensor in drawn.items()}
    return {**drawn, "near": torch.tensor(1.0 if exact else 0.9)}, drawn.pop("x")


def at_threshold(weights: Tensors, x: Tensor, subtract: bool = True) -> Tensor:
    """Of feature f the activation before its threshold in row f, or 0 where that is less."""
    pre = (x - weights["b_dec"] if subtract else x) @ weights["W_enc"] + weights["b_enc"]
    return pre[:M].diagonal().clamp_min(0) * weights["near"]


def gated(weights: Tensors, x: Tensor, subtract: bool = True) -> Tensors:
    """b_gate, by which a gate is exactly 0 in row f, b_mag and r_mag."""
    pre = (x - weights["b_dec"] if subtract else x) @ weights["W_enc"]
    return {"b_gate": -pre[:M].diagonal() * weights["near"], "b_mag": weights["b_enc"], "r_mag": weights["r_mag"]}


# ---- SAELens --------------------------------------------------------------------------------------------------------


def saelens(out: Path) -> Iterator[tuple[str, Tensor]]:
    """(folder's name, rows) of SAEs that `save_model` has saved there."""
    classes = {
        "standard": (sae_lens.StandardSAE, sae_lens.StandardSAEConfig),
        "topk": (sae_lens.TopKSAE, sae_lens.TopKSAEConfig),
        "jumprelu": (sae_lens.JumpReLUSAE, sae_lens.JumpReLUSAEConfig),
        "gated": (sae_lens.GatedSAE, sae_lens.GatedSAEConfig),
    }
    about = SAEMetadata(hook_name="blocks.1.hook_resid_post", model_name="gpt2", context_size=32, prepend_bos=True)
    kinds: list[tuple[str, str, dict[str, Any]]] = [
        ("standard", "standard", {}),
        ("standard-no-b_dec", "standard", {"apply_b_dec_to_input": False}),
        ("standard-hook_z", "standard", {"reshape_activations": "hook_z"}),
        ("topk", "topk", {"k": K}),
        ("topk-no-b_dec", "topk", {"k": K, "apply_b_dec_to_input": False}),
        ("topk-norms", "topk", {"k": K, "rescale_acts_by_decoder_norm": True}),
        *((f"jumprelu{kind}", "jumprelu", {}) for kind in ("", "-exact")),
        *((f"jumprelu-no-b_dec{kind}", "jumprelu", {"apply_b_dec_to_input": False}) for kind in ("", "-exact")),
        *((f"gated{kind}", "gated", {}) for kind in ("", "-exact")),
        *((f"gated-no-b_dec{kind}", "gated", {"apply_b_dec_to_input": False}) for kind in ("", "-exact")),
        ("gated-large", "gated", {}),
    ]
    for seed, (name, architecture, options) in enumerate(kinds):
        weights, x = random(seed, name.endswith("exact"))
        if name.endswith("large"):  # x and b_dec of large norm, and near each other
            weights["b_dec"] *= 1e4
            x = x + weights["b_dec"]
        subtract = options.get("apply_b_dec_to_input", True)
        state = {key: weights[key] for key in ("W_enc", "b_enc", "W_dec", "b_dec")}
        if architecture == "jumprelu":
            state["threshold"] = at_threshold(weights, x, subtract)
        elif architecture == "gated":
            del state["b_enc"]
            state |= gated(weights, x, subtract)
        sae_class, config_class = classes[architecture]
        metadata = SAEMetadata(hook_name="blocks.1.attn.hook_z") if name.endswith("hook_z") else about
        sae = sae_class(config_class(d_in=N, d_sae=M, metadata=metadata, **options))
        sae.load_state_dict(state)
        sae.save_model(out / f"saelens-{name}")
        yield f"saelens-{name}", x
    for kind, training_class, config_class, options in (
        ("batchtopk", BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, {}),
        (
            "matryoshka",
            MatryoshkaBatchTopKTrainingSAE,
            MatryoshkaBatchTopKTrainingSAEConfig,
            {"matryoshka_widths": [8]},
        ),
    ):
        weights, x = random(99, exact=False)
        sae = training_class(config_class(d_in=N, d_sae=M, k=K, metadata=about, **options))
        tensors = {key: weights[key] for key in ("W_enc", "b_enc", "W_dec", "b_dec")}
        sae.load_state_dict({**sae.state_dict(), **tensors, "topk_threshold": torch.tensor(0.4, dtype=torch.double)})
        sae.save_inference_model(out / f"saelens-{kind}")
        yield f"saelens-{kind}", x


def saelens_transcoders(out: Path) -> Iterator[tuple[str, Tensor]]:
    """(folder's name, rows) of transcoders; `apply_b_dec_to_input`, which is true by default, they refuse."""
    about = {"hook_name": "blocks.1.mlp.hook_in", "hook_name_out": "blocks.1.hook_mlp_out", "model_name": "gpt2"}
    kinds = {
        "transcoder": (transcoders.Transcoder, transcoders.TranscoderConfig),
        "skip_transcoder": (transcoders.SkipTranscoder, transcoders.SkipTranscoderConfig),
        "jumprelu_transcoder": (transcoders.JumpReLUTranscoder, transcoders.JumpReLUTranscoderConfig),
        "jumprelu_skip_transcoder": (transcoders.JumpReLUSkipTranscoder, transcoders.JumpReLUSkipTranscoderConfig),
    }
    for seed, (name, (sae_class, config_class)) in enumerate(kinds.items()):
        weights, x = random(50 + seed, exact=False)
        state = {key: weights[key] for key in ("W_enc", "b_enc", "W_dec", "b_dec")}
        if "jumprelu" in name:
            state["threshold"] = at_threshold(weights, x, subtract=False)
        if "skip" in name:
            state["W_skip"] = weights["W_enc"][:, :N]
        options = {"apply_b_dec_to_input": False, "metadata": SAEMetadata(**about)}
        sae = sae_class(config_class(d_in=N, d_out=N, d_sae=M, **options))
        sae.load_state_dict(state)
        sae.save_model(out / f"saelens-{name}")
        yield f"saelens-{name}", x


def run_saelens(directory: Path, x: Tensor) -> tuple[Tensor, Tensor]:
    sae = sae_lens.SAE.load_from_disk(directory)
    if isinstance(sae, transcoders.Transcoder):  # `decode` leaves a skip connection out
        return sae.encode(x), sae(x)
    if sae.cfg.reshape_activations == "hook_z":
        acts = sae.encode(x.unflatten(-1, (HEADS, -1)))
        return acts, sae.decode(acts).flatten(-2)
    acts = sae.encode(x)
    return acts, sae.decode(acts)


# ---- dictionary_learning --------------------------------------------------------------------------------------------


def dictionary_learning(out: Path) -> Iterator[tuple[str, Tensor]]:
    """(folder's name, rows) of dictionaries, saved as `trainSAE` does."""
    kinds = {
        "AutoEncoder": lambda: dictionary.AutoEncoder(N, M),
        "AutoEncoderNew": lambda: dictionary.AutoEncoderNew(N, M),
        "GatedAutoEncoder": lambda: dictionary.GatedAutoEncoder(N, M),
        "JumpReluAutoEncoder": lambda: dictionary.JumpReluAutoEncoder(N, M),
        "AutoEncoderTopK": lambda: AutoEncoderTopK(N, M, K),
        "BatchTopKSAE": lambda: BatchTopKSAE(N, M, K),
        "MatryoshkaBatchTopKSAE": lambda: MatryoshkaBatchTopKSAE(N, M, K, [8, M - 8]),
    }
    names = {
        "W_enc": "encoder.weight",
        "b_enc": "encoder.bias",
        "W_dec": "decoder.weight",
        "b_gate": "gate_bias",
        "b_mag": "mag_bias",
    }
    for seed, (kind, exact) in enumerate((kind, exact) for kind in kinds for exact in (False, True)):
        weights, x = random(seed, exact)
        if exact and kind in ("AutoEncoder", "AutoEncoderNew", "AutoEncoderTopK"):
            continue  # no thresholds; and of equal activations any may be among the k largest
        ae = kinds[kind]()
        has = ae.state_dict()
        drawn = {**weights, **gated(weights, x), "threshold": at_threshold(weights, x, kind != "JumpReluAutoEncoder")}
        if has.get("threshold", torch.zeros(M)).dim() == 0:
            drawn["threshold"] = drawn["threshold"][drawn["threshold"] > 0].median()
        state = {}
        for key, tensor in drawn.items():
            for name in (key, names.get(key), *(("bias", "decoder_bias", "decoder.bias") if key == "b_dec" else ())):
                if name in has:
                    state[name] = tensor.T if tensor.dim() == 2 and name.endswith("weight") else tensor
        missing = has.keys() - state.keys()
        assert missing <= {"k", "group_sizes"}, missing
        ae.load_state_dict({**has, **state})
        directory = out / f"dictionary_learning-{kind}{'-exact' * exact}"
        directory.mkdir()
        torch.save(ae.state_dict(), directory / "ae.pt")
        trainer = {"dict_class": kind, "k": K, "layer": 1, "lm_name": "gpt2", "submodule_name": "resid_post_layer_1"}
        (directory / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 32}}))
        yield directory.name, x


def run_dictionary_learning(directory: Path, x: Tensor) -> tuple[Tensor, Tensor]:
    ae, _config = load_dictionary(str(directory), "cpu")
    acts = ae.encode(x)
    return acts, ae.decode(acts)


# ---- sparsify -------------------------------------------------------------------------------------------------------


def sparsify(out: Path) -> Iterator[tuple[str, Tensor]]:
    """(folder's name, rows) of TopK SAEs and transcoders that `save_to_disk` has saved there."""
    kinds = {"topk": {}, "transcoder": {"transcode": True}}
    kinds["skip_transcoder"] = {"transcode": True, "skip_connection": True}
    for seed, (name, options) in enumerate(kinds.items()):
        weights, x = random(7 + seed, exact=False)
        coder = SparseCoder(N, SparseCoderConfig(num_latents=M, k=K, **options))
        state = {"encoder.weight": weights["W_enc"].T, "encoder.bias": weights["b_enc"]}
        state |= {"W_dec": weights["W_dec"], "b_dec": weights["b_dec"]}
        coder.load_state_dict(state | ({"W_skip": weights["W_enc"][:, :N]} if "skip" in name else {}))
        coder.save_to_disk(out / f"sparsify-{name}")
        yield f"sparsify-{name}", x


def run_sparsify(directory: Path, x: Tensor) -> tuple[Tensor, Tensor]:
    coder = SparseCoder.load_from_disk(directory)
    encoded = coder.encode(x)
    acts = torch.zeros(len(x), coder.num_latents).scatter(-1, encoded.top_indices, encoded.top_acts)
    return acts, coder(x).sae_out


# ---------------------------------------------------------------------------------------------------------------------

RUN = {
    **dict.fromkeys(("saelens", "gsae", "jumprelu"), run_saelens),
    "dictionary_learning": run_dictionary_learning,
    "sparsify": run_sparsify,
}
"""Format that a folder's name begins with -> what runs it."""


@torch.no_grad()
def compute(directory: Path, x: Tensor) -> None:
    """Writes what a library makes of rows with an SAE of its format."""
    acts, out = RUN[directory.name.partition("-")[0]](directory, x)
    computed = {"x": x, "acts": acts, "out": out}
    save_file({name: t.detach().contiguous() for name, t in computed.items()}, directory / "computed.safetensors")


def main(command: str, folder: Path) -> None:
    if command == "make":
        folder.mkdir()
        for make in (saelens, saelens_transcoders, dictionary_learning, sparsify):
            for name, x in make(folder):
                compute(folder / name, x)
    else:
        x = load_file(folder / "x.safetensors")["x"]
        for directory in sorted(path for path in folder.iterdir() if path.is_dir()):
            compute(directory, x)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
