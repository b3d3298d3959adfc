"""Predicts how much memory a trial and a producer take, from shapes alone (tests/capacity/test_memory.py measures)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from gsae_ray.activations.layout import DTYPE_BYTES
from gsae_ray.config.sweep import Sweep
from gsae_ray.config.trial import TrialSpec
from gsae_ray.data.probe_set import KEPT_BYTES
from gsae_ray.evaluation import feature_statistics as features
from gsae_ray.evaluation.evaluator import CLEAN_CACHE_BYTES, STATES_BYTES
from gsae_ray.saes import REGISTRY, SAE, SAEConfig, build
from gsae_ray.storage.checkpoints import FILE_BYTES
from gsae_ray.storage.references import Reference
from gsae_ray.training.engines.base import BYTES_AN_ENTRY, LARGE_BATCH

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.configuration_utils import PretrainedConfig

FLOAT = 4
"""Bytes of a number of an SAE: they are trained in float32."""
DOUBLE = 8
"""Bytes of a number of the statistics of block 0: their sums are float64."""
PROCESS = 2**29
"""Bytes of a process with torch, Ray and our libraries."""
SPARSE_ENTRY = BYTES_AN_ENTRY + 2
"""Bytes that an entry of a large batch takes with a sparse engine; two less where a processor has bfloat16."""
COMPILER = 2**27
"""Bytes that Numba, or Triton, and what it has compiled add to it: 123 MiB with Numba 0.68."""
SOLVER = 2**27
"""Bytes that scikit-learn adds to a process that fits probes: 105 MiB with 1.9."""
TABLE_ARRAYS = 10
"""Arrays of `feature_statistics.SLICE_BYTES` at once while features are looked at, all of them active."""
CUDA_CONTEXT = 704 * 2**20
"""Bytes that a process takes on a GPU before it has a tensor there: 681 MiB on an H100 with CUDA 13."""
MARGIN = 0.8
"""A prediction may be wrong by a fifth: so much of it is taken as certain when something is refused, and so much of a
GPU is filled."""
STORE_PROCESS = 2**27
"""Bytes of the store's process, which holds no activations itself."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Memory of a process, in bytes, without what lies in Ray's object store."""

    host: int
    gpu: int = 0
    """On its GPUs; 0 where it has none."""


def skeleton(trial: TrialSpec) -> SAE:
    """A trial's SAE on the meta device: shapes without weights."""
    with torch.device("meta"):
        return build(
            SAEConfig(
                architecture=trial.architecture,
                d_in=trial.d_in,
                d_sae=trial.d_sae,
                hyperparameters=trial.hyperparameters,
                d_out=trial.d_out,
                skip=trial.skip,
            )
        )


def parameter_count(trial: TrialSpec) -> int:
    """Number of parameters of a trial's SAE."""
    return sum(p.numel() for p in skeleton(trial).parameters())


def sae_bytes(sae: SAE) -> int:
    """Bytes of an SAE's parameters and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in sae.state_dict().values())


def trial_memory(trial: TrialSpec, on_gpu: bool) -> Memory:
    """Memory of a trial at its largest: within a training step, or while a checkpoint or the SAE is written."""
    sae = skeleton(trial)
    weights = sae_bytes(sae)
    learnt = FLOAT * sum(p.numel() for p in sae.learnt_parameters().values())
    sparse = trial.training.engine != "dense"
    rows, entry = trial.training.batch_size, FLOAT * sae.training_arrays
    if sparse and rows * trial.d_sae > LARGE_BATCH:
        entry = SPARSE_ENTRY
    step = (
        weights + 3 * learnt + rows * (FLOAT * 2 * (trial.d_in + sae.cfg.width_out) + entry * trial.d_sae)
    )  # gradients, two moments
    # The tensors of a file of a checkpoint, and the finished SAE, are copied, and then made into bytes.
    largest = max(tensor.nbytes for tensor in sae.state_dict().values())
    copies = 2 * max(min(weights + 2 * learnt, max(FILE_BYTES, largest)), weights)
    process = PROCESS + (COMPILER if sparse else 0)
    if on_gpu:
        rounded = weights // 2 if sparse or trial.training.precision == "bf16" else 0  # in bfloat16, for products
        return Memory(host=process + copies, gpu=CUDA_CONTEXT + step + rounded)
    # Between steps sparse engines keep the memory of gradients and scores; lists are short by then.
    kept = learnt + FLOAT * rows * trial.d_sae if sparse else 0
    between_steps = weights + 2 * learnt + kept
    return Memory(host=process + max(step, between_steps + copies))


def states_bytes(sweep: Sweep, text: PretrainedConfig, widths: Mapping[str, float]) -> int:
    """Bytes of all that evaluations would keep of what layers give: before each site, and of the last one.

    Args:
        sweep: the sweep.
        text: the configuration of its language model.
        widths: site -> width of its activations.
    """
    a_layer = DTYPE_BYTES[sweep.language_model.dtype] * getattr(text, "hidden_size", max(widths.values()))
    return int(a_layer * held_out_positions(sweep) * (len(sweep.trained_sites) + (not keeps_log_probs(sweep, text))))


def keeps_log_probs(sweep: Sweep, text: PretrainedConfig) -> bool:
    """Whether evaluations keep the log-probabilities of the clean model."""
    return log_probs_bytes(sweep, text) <= CLEAN_CACHE_BYTES


def log_probs_bytes(sweep: Sweep, text: PretrainedConfig) -> int:
    """Bytes of the log-probabilities of the clean model."""
    return int(FLOAT * text.vocab_size * held_out_positions(sweep))


def held_out_positions(sweep: Sweep) -> int:
    """Positions of all held-out contexts."""
    return sweep.language_model.context_size * -(-sweep.evaluation.tokens // sweep.rows_a_context)


def probes_bytes(sweep: Sweep, widths: Mapping[str, int]) -> int:
    """Bytes of what probes keep on a producer's host: rows of probe sets, and while one is fitted its columns.

    Args:
        sweep: the sweep.
        widths: site -> width of its activations.
    """
    sets = [settings.tokens for settings in sweep.evaluation.probes or ()]
    if not sets:
        return 0
    size, sources = DTYPE_BYTES[sweep.language_model.dtype], [widths[site.source.name] for site in sweep.trained_sites]
    a_set = [size * sum(sets) * width for width in sources]
    # All columns of a set in float64: as they are, those that have a label, scaled, and the half that is fitted.
    fitted = DOUBLE * max(sets) * max(sources) * 7 // 2
    return SOLVER + min(sum(a_set), KEPT_BYTES + max(a_set)) + fitted


def producer_memory(
    sweep: Sweep,
    model: PreTrainedModel,
    widths: Mapping[str, int],
    block_bytes: int,
    trials: Iterable[TrialSpec],
    references: Iterable[Reference] = (),
) -> Memory:
    """Memory of a producer at its largest: while it makes a block, or evaluates an SAE.

    Args:
        sweep: the sweep.
        model: the language model, without weights if need be.
        widths: site -> width of its activations.
        block_bytes: size of a block at all sites, which is made in the host's memory.
        trials: the trials that it may have to evaluate.
        references: SAEs from elsewhere that it may have to evaluate.
    """
    size, context = DTYPE_BYTES[sweep.language_model.dtype], sweep.language_model.context_size
    weights = size * sum(p.numel() for p in model.parameters())
    positions = sweep.producers.batch * context
    forward = positions * (2 * size * sum(widths.values()) + 2 * DOUBLE * max(widths.values()))  # sums of block 0
    text = model.config.get_text_config()
    logits = FLOAT * text.vocab_size * sweep.evaluation.batch * context
    rows = sweep.evaluation.batch * context
    trials = list(trials)
    sae, arrays = _largest_sae(trials, list(references))
    # Logits come from the model's own code, which may copy them; those of a first evaluation are compared with others.
    evaluation = max(3 * logits, FLOAT * rows * arrays) + (
        log_probs_bytes(sweep, text) if keeps_log_probs(sweep, text) else logits
    )
    evaluation += min(states_bytes(sweep, text, widths), STATES_BYTES)
    probes = probes_bytes(sweep, widths)
    looked = feature_memory(sweep, trials)
    if sweep.producers.gpus:
        gpu = CUDA_CONTEXT + weights + max(forward, evaluation + sae, looked.gpu)
        return Memory(host=PROCESS + probes + max(block_bytes, 2 * sae, looked.host), gpu=gpu)
    # An SAE is here twice: as it was sent, and as it is used.
    return Memory(host=PROCESS + weights + probes + max(block_bytes + forward, evaluation + 2 * sae, looked.host))


def feature_groups(sweep: Sweep, trials: Sequence[TrialSpec]) -> list[int]:
    """Bytes of the SAEs that share passes, with their arrays, while tables of features are made.

    None where none are asked for; else all of the sweep's: which ones are on the frontier is not known before.
    """
    if (settings := sweep.evaluation.features) is None:
        return []
    sizes = [features.sae_bytes(t.d_sae, t.d_in + (t.d_out or t.d_in), settings) for t in trials]
    return [sum(sizes[place] for place in places) for places in features.sharing(sizes, settings)]


def feature_memory(sweep: Sweep, trials: Sequence[TrialSpec]) -> Memory:
    """What making tables of features adds to a producer."""
    if not (groups := feature_groups(sweep, trials)):
        return Memory(0)
    together = max(groups) + TABLE_ARRAYS * features.SLICE_BYTES
    return Memory(together, together)


def rows_producer_memory(
    source: int,
    rows: int,
    block_bytes: int,
    trials: Sequence[TrialSpec],
    references: Sequence[Reference],
    on_gpu: bool = False,
) -> Memory:
    """Memory of a producer whose rows come from no language model.

    Args:
        source: what it takes to make or read rows.
        rows: of a batch that is evaluated.
        block_bytes: size of a block at all sites.
        trials: the trials that it may have to evaluate.
        references: SAEs from elsewhere that it may have to evaluate.
        on_gpu: whether it evaluates them there.
    """
    sae, arrays = _largest_sae(trials, references)
    evaluation = FLOAT * rows * arrays
    if on_gpu:
        return Memory(host=PROCESS + source + max(block_bytes, 2 * sae), gpu=CUDA_CONTEXT + source + evaluation + sae)
    return Memory(host=PROCESS + source + max(block_bytes, evaluation + 2 * sae))


def _largest_sae(trials: Sequence[TrialSpec], references: Sequence[Reference]) -> tuple[int, int]:
    """Bytes of the largest SAE, and what a row takes of arrays of features, in numbers."""
    saes = [sae_bytes(skeleton(trial)) for trial in trials]
    saes += [2 * FLOAT * reference["d_in"] * reference["d_sae"] for reference in references]
    arrays = [REGISTRY[trial.architecture].evaluation_arrays * trial.d_sae for trial in trials]
    arrays += [REGISTRY[reference["architecture"]].evaluation_arrays * reference["d_sae"] for reference in references]
    return max(saes, default=0), max(arrays, default=0)
