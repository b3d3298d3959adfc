"""dictionary_learning: `ae.pt`, a pickled state dict, and `config.json`; `load_dictionary` and SAEBench read them.

After dictionary-learning 0.1.0, `dictionary.py` and `trainers/`.
"""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gsae_ray.errors import UserError, shown, suggest
from gsae_ray.files import write_together
from gsae_ray.saes.base import SAE
from gsae_ray.saes.batchtopk import BatchTopKSAE
from gsae_ray.saes.formats.foreign import ActivationsOf, assemble, checked, norms_folded, read_json, read_pickle
from gsae_ray.saes.gated import GatedSAE
from gsae_ray.saes.jumprelu import JumpReLUSAE
from gsae_ray.saes.matryoshka_batchtopk import MatryoshkaBatchTopKSAE
from gsae_ray.saes.standard import StandardSAE
from gsae_ray.saes.topk import TopKSAE

WEIGHTS, CONFIG = "ae.pt", "config.json"
FILES = f"{WEIGHTS} with {CONFIG}"
NAMES = (WEIGHTS, CONFIG)

Form = tuple[str, dict[str, Any], dict[str, Tensor]]
"""Of a function here: its architecture, hyperparameters and tensors."""


# ---- in -------------------------------------------------------------------------------------------------------------


def recognises(directory: Path) -> bool:
    """Whether there is an `ae.pt`."""
    return (directory / WEIGHTS).is_file()


def read(directory: Path) -> SAE:
    """The SAE of a folder; `config.json` may be missing where the tensors say which class it is of.

    Raises:
        ValueError: the files hold no SAE that we know, or are damaged; in one line.
        OSError: they cannot be read.
    """
    tensors = read_pickle(directory / WEIGHTS)
    settings = read_json(directory / CONFIG) if (directory / CONFIG).exists() else {}
    trainer = settings.get("trainer", {})
    if not isinstance(trainer, dict) or (settings and "dict_class" not in trainer):
        raise ValueError(f"{CONFIG}: no trainer.dict_class; this is not a configuration of dictionary_learning")
    name = trainer["dict_class"] if settings else _class_of(tensors)
    if not isinstance(name, str) or name not in _CLASSES:
        raise ValueError(f"{CONFIG}: unknown dict_class {shown(name)}; {suggest(name, _CLASSES)}")
    dict_class = _CLASSES[name]
    counts = {key: tensors.pop(key) for key in dict_class.counts if key in tensors}
    k = trainer.get("k")
    if "k" in dict_class.counts and isinstance(k, int) and 0 < k < 2**31:
        counts.setdefault("k", torch.tensor(k))
    shapes = {key: axes for key, axes in dict_class.shapes.items() if key in tensors or key not in dict_class.optional}
    architecture, hyperparameters, ours = dict_class.form({**checked(tensors, shapes, WEIGHTS), **counts})
    site = trainer.get("submodule_name")  # whatever the trainer was given; a site where we wrote it
    known = isinstance(site, str) and re.match(r"blocks\.\d+\..|.+:(in|out)put$", site)
    buffer = settings.get("buffer")
    context_size = buffer.get("ctx_len") if isinstance(buffer, dict) else None
    of = ActivationsOf(site if known else None, trainer.get("lm_name"), context_size)
    return assemble("dictionary_learning", architecture, ours, settings, hyperparameters, of)


def _class_of(tensors: Mapping[str, Tensor]) -> str:
    """The dict_class that has tensors of these names.

    Raises:
        ValueError: none has, or two have.
    """
    found = [name for name, c in _CLASSES.items() if tensors.keys() == c.shapes.keys() | c.counts]
    if len(found) != 1:
        what = f"may be of {' or '.join(found)}" if found else "are of none that we know"
        raise ValueError(f"{CONFIG} is missing, which says the dict_class; the tensors of {WEIGHTS} {what}")
    return found[0]


def _linear(tensors: Mapping[str, Tensor], b_dec: str) -> dict[str, Tensor]:
    return {"W_enc": tensors["encoder.weight"].T, "W_dec": tensors["decoder.weight"].T, "b_dec": tensors[b_dec]}


def _auto_encoder(tensors: Mapping[str, Tensor]) -> Form:
    ours = {**_linear(tensors, "bias"), "b_enc": tensors["encoder.bias"]}
    # Of this class alone, `load_dictionary` folds the decoder's norms.
    return "standard", {}, ours if _unit_norms(ours["W_dec"]) else norms_folded(ours, WEIGHTS)


def _unit_norms(W_dec_FD: Tensor) -> bool:
    """Whether `load_dictionary` takes decoder rows for unit vectors, and leaves an AutoEncoder as it is."""
    return torch.allclose(W_dec_FD.norm(dim=1), torch.ones(1))


def _auto_encoder_new(tensors: Mapping[str, Tensor]) -> Form:
    ours = {**_linear(tensors, "decoder.bias"), "b_enc": tensors["encoder.bias"]}
    return "standard", {"subtract_b_dec": False}, ours


def _gated(tensors: Mapping[str, Tensor]) -> Form:
    biases = {"b_gate": tensors["gate_bias"], "b_mag": tensors["mag_bias"], "r_mag": tensors["r_mag"]}
    return "gated", {}, {**_linear(tensors, "decoder_bias"), **biases}


def _jumprelu(tensors: Mapping[str, Tensor]) -> Form:
    return "jumprelu", {"subtract_b_dec": False}, dict(tensors)


def _topk(tensors: Mapping[str, Tensor]) -> Form:
    k = tensors["k"] if "k" in tensors else torch.zeros(())
    if k.numel() != 1 or k.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{WEIGHTS}: k is missing, or no whole number")
    return "topk", {"k": int(k)}, {**_linear(tensors, "b_dec"), "b_enc": tensors["encoder.bias"]}


def _batch_topk(tensors: Mapping[str, Tensor]) -> Form:
    return _above_threshold({**_linear(tensors, "b_dec"), "b_enc": tensors["encoder.bias"]}, tensors["threshold"])


def _matryoshka(tensors: Mapping[str, Tensor]) -> Form:
    ours = {name: tensors[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    return _above_threshold(ours, tensors["threshold"])


def _above_threshold(ours: dict[str, Tensor], threshold: Tensor) -> Form:
    if threshold < 0:
        raise ValueError(
            f"{WEIGHTS}: threshold is {float(threshold):g}: it was not learnt yet (training begins to at "
            "threshold_start_step), and features would be those of a ReLU, not about k a row"
        )
    return "jumprelu", {}, {**ours, "threshold": threshold.expand_as(ours["b_enc"])}


@dataclasses.dataclass(frozen=True)
class _DictClass:
    form: Callable[[Mapping[str, Tensor]], Form]
    shapes: Mapping[str, str]
    """Tensors of floats, as `checked` takes them."""
    counts: frozenset[str] = frozenset()
    """Buffers of whole numbers. The first releases had none, and k in `config.json` alone."""
    optional: frozenset[str] = frozenset()
    """Of the tensors those that the function does not depend on, which the first releases did not have."""


_LINEAR = {"encoder.weight": "FD", "encoder.bias": "F", "decoder.weight": "DF"}
_GATED = {"encoder.weight": "FD", "decoder.weight": "DF", "gate_bias": "F", "mag_bias": "F", "r_mag": "F"}
_PLAIN = {"W_enc": "DF", "b_enc": "F", "W_dec": "FD", "b_dec": "D"}
_K = frozenset({"k"})
_CLASSES = {
    "AutoEncoder": _DictClass(_auto_encoder, {**_LINEAR, "bias": "D"}),
    "AutoEncoderNew": _DictClass(_auto_encoder_new, {**_LINEAR, "decoder.bias": "D"}),
    "GatedAutoEncoder": _DictClass(_gated, {**_GATED, "decoder_bias": "D"}),
    "JumpReluAutoEncoder": _DictClass(_jumprelu, {**_PLAIN, "threshold": "F"}),
    "AutoEncoderTopK": _DictClass(_topk, {**_LINEAR, "b_dec": "D", "threshold": ""}, _K, frozenset({"threshold"})),
    "BatchTopKSAE": _DictClass(_batch_topk, {**_LINEAR, "b_dec": "D", "threshold": ""}, _K),
    "MatryoshkaBatchTopKSAE": _DictClass(_matryoshka, {**_PLAIN, "threshold": ""}, _K | {"group_sizes"}),
}
"""By `trainer.dict_class`. Whether b_dec is subtracted from the encoder's input differs between them."""


# ---- out ------------------------------------------------------------------------------------------------------------


def write(sae: SAE, directory: Path) -> None:
    """Writes the folder of a dictionary; `config.json` says of model and site what the SAE's metadata does.

    Raises:
        UserError: the architecture has no form there.
    """
    if sae.cfg.is_transcoder:
        raise UserError("dictionary_learning: transcoders have no form there")
    if isinstance(sae, GatedSAE) and not sae.tied:
        raise UserError("dictionary_learning: a gated SAE with untied encoders (tied: false) has no form there")
    kind = next((kind for kind in _WRITTEN if isinstance(sae, kind)), None)
    if kind is None:
        raise UserError(f"dictionary_learning: a {sae.architecture} SAE has no form there")
    other_norms = kind is StandardSAE and not _unit_norms(sae.W_dec)
    written = _OF_OTHER_NORMS if other_norms else _WRITTEN[kind]
    sae = sae.subtracting_b_dec(written.subtracts_b_dec)
    settings = {"dict_class": written.dict_class, "trainer_class": written.trainer_class, **_settings(sae)}
    model = sae.cfg.metadata.get("model")
    context_size = model.get("context_size") if isinstance(model, dict) else None
    weights = io.BytesIO()
    state = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in written.state(sae).items()}
    torch.save(state, weights)
    config = json.dumps({"trainer": settings, "buffer": {"ctx_len": context_size}}, indent=4)
    write_together(directory, {WEIGHTS: weights.getvalue(), CONFIG: (config + "\n").encode()})


def _settings(sae: SAE) -> dict[str, Any]:
    """What `config.json` says of the trainer, in its words; SAEBench needs `layer` and `lm_name`."""
    model = sae.cfg.metadata.get("model")
    layer = re.match(r"blocks\.(\d+)\.", sae.cfg.site)
    settings = {
        "activation_dim": sae.cfg.d_in,
        "dict_size": sae.cfg.d_sae,
        "layer": int(layer[1]) if layer else None,
        "lm_name": model.get("name") if isinstance(model, dict) else None,
        "submodule_name": sae.cfg.site or None,
    }
    return {**settings, "k": sae.k} if isinstance(sae, TopKSAE) else settings


def _linear_state(sae: SAE, b_dec: str) -> dict[str, Tensor]:
    return {"encoder.weight": sae.W_enc.T, "decoder.weight": sae.W_dec.T, b_dec: sae.b_dec}


def _standard_state(sae: SAE) -> dict[str, Tensor]:
    return {**_linear_state(sae, "bias"), "encoder.bias": sae.get_parameter("b_enc")}


def _new_state(sae: SAE) -> dict[str, Tensor]:
    return {**_linear_state(sae, "decoder.bias"), "encoder.bias": sae.get_parameter("b_enc")}


def _gated_state(sae: SAE) -> dict[str, Tensor]:
    names = {"gate_bias": "b_gate", "mag_bias": "b_mag", "r_mag": "r_mag"}
    return {**_linear_state(sae, "decoder_bias"), **{key: sae.get_parameter(name) for key, name in names.items()}}


def _jumprelu_state(sae: SAE) -> dict[str, Tensor]:
    return dict(sae.named_parameters())


def _k(sae: SAE) -> Tensor:
    return torch.tensor(sae.cfg.hyperparameters["k"], dtype=torch.int32)


def _topk_state(sae: SAE) -> dict[str, Tensor]:
    state = {**_linear_state(sae, "b_dec"), "encoder.bias": sae.get_parameter("b_enc")}
    return {**state, "k": _k(sae), "threshold": torch.tensor(-1.0)}


def _one_threshold(sae: SAE) -> Tensor:
    """The threshold, of which these classes have one for all features.

    Raises:
        UserError: features have several, as after `fold_norms`.
    """
    threshold_F = sae.get_buffer("threshold")
    if not torch.equal(threshold_F, threshold_F[:1].expand_as(threshold_F)):
        raise UserError(f"dictionary_learning: a {sae.architecture} SAE with several thresholds has no form there")
    return threshold_F[0]


def _batch_topk_state(sae: SAE) -> dict[str, Tensor]:
    return {**_topk_state(sae), "threshold": _one_threshold(sae)}


def _matryoshka_state(sae: SAE) -> dict[str, Tensor]:
    ends = torch.tensor([0, *sae.cfg.hyperparameters["prefix_widths"]])
    return {**dict(sae.named_parameters()), "k": _k(sae), "threshold": _one_threshold(sae), "group_sizes": ends.diff()}


@dataclasses.dataclass(frozen=True)
class _Written:
    dict_class: str
    trainer_class: str
    subtracts_b_dec: bool
    """Whether the class subtracts b_dec from the encoder's input."""
    state: Callable[[SAE], dict[str, Tensor]]


_WRITTEN: dict[type[SAE], _Written] = {
    StandardSAE: _Written("AutoEncoder", "StandardTrainer", True, _standard_state),
    GatedSAE: _Written("GatedAutoEncoder", "GatedSAETrainer", True, _gated_state),
    JumpReLUSAE: _Written("JumpReluAutoEncoder", "JumpReluTrainer", False, _jumprelu_state),
    MatryoshkaBatchTopKSAE: _Written("MatryoshkaBatchTopKSAE", "MatryoshkaBatchTopKTrainer", True, _matryoshka_state),
    BatchTopKSAE: _Written("BatchTopKSAE", "BatchTopKTrainer", True, _batch_topk_state),
    TopKSAE: _Written("AutoEncoderTopK", "TopKTrainer", True, _topk_state),
}
"""By architecture, those before what they are based on."""
_OF_OTHER_NORMS = _Written("AutoEncoderNew", "StandardTrainerAprilUpdate", False, _new_state)
"""Of standard SAEs with decoder norms other than 1, by which `load_dictionary` multiplies an AutoEncoder's features."""
