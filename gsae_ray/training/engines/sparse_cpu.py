"""The sparse engine on CPUs: after the encoder's product, only the active entries of a batch are computed.

Exact: the gradient of these losses is zero for every feature on every row where its gate is closed (Gao et al. 2024,
section 3, say so of TopK; it holds of every `GatedReLU`). The one product that stays dense is x W_enc, and that is in
bfloat16 where the processor has it: it only says which entries are to be computed (see `bounds`).
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from gsae_ray.saes import SAE, Objective, SAEConfig, build
from gsae_ray.saes.gated_relu import GatedReLU
from gsae_ray.training.engines import feature_sums, fused_adam, kernels
from gsae_ray.training.engines.base import LARGE_BATCH, StepResult, Update, refuse_transcoder
from gsae_ray.training.engines.bounds import LARGEST, LARGEST_SUM, MOST_ENTRIES
from gsae_ray.training.engines.candidates import Active, Encoder, find_active
from gsae_ray.training.engines.compiled import one_at_a_time
from gsae_ray.training.engines.dense import DenseEngine
from gsae_ray.training.engines.workspace import Array, Workspace, aligned
from gsae_ray.training.optimiser import Adam
from gsae_ray.training.threads import torch_threads

DENSE_ABOVE = 5 / 16
"""The share of active entries from which a step of dense products is the faster one: at the start half are active."""
LARGE_DENSE_ABOVE = 1 / 16
"""The same of a large batch: an active entry takes 48 bytes, in lists that may be a quarter longer, a score 2 or 4."""
AUXILIARY = {"none": kernels.NONE, "frozen": kernels.FROZEN, "unfrozen": kernels.UNFROZEN}


class _Features(NamedTuple):
    """What a step needs of each feature; see `kernels.feature_terms`."""

    shift: Array
    scale: Array
    encoder_norms: Array
    norms: Array
    sizes: Array
    reach: Array


class _Sums(NamedTuple):
    """Sums over a batch for each feature; see `feature_sums.features_sums`."""

    d_gate: Array
    d_magnitude: Array
    d_log_scale: Array
    d_norm: Array


class _Batch(NamedTuple):
    """What a step needs of its rows."""

    x: Array
    centred: Array
    """x − b_dec."""
    norms: Array
    """‖x‖."""


class SparseCPUEngine:
    """For SAEs that are a `GatedReLU`, in float32 on the CPU; an engine for each SAE.

    Whether a step is computed by this engine's kernels or by `DenseEngine` follows from its batch and weights alone:
    from the share of active entries, and where numbers are not finite or may overflow, so that both engines fail at the
    same step. Nothing of it is state.
    """

    torch_threads = 1

    def __init__(self, threads: int, dense_above: float = DENSE_ABOVE, bfloat16: bool | None = None) -> None:
        """Makes the engine.

        Args:
            threads: that kernels may use; results do not depend on it.
            dense_above: the share of active entries beyond which a step is one of dense products.
            bfloat16: whether the encoder's product is in bfloat16; default: if the processor has it. Results do not
                depend on it.
        """
        self.dense_above = dense_above
        self.bfloat16 = has_bfloat16() if bfloat16 is None else bfloat16
        self.dense = DenseEngine()
        self.workspace = Workspace(threads)
        self._arrays: dict[str | None, Array] = {}
        """Memory of parameters, by name; None: one without rows, and without entries."""
        self._parameters: dict[str, nn.Parameter] = {}

    def prepare(self, sae: SAE) -> None:
        """Stores encoders by feature, without changing their values: a feature's weights lie side by side.

        Raises:
            UserError: it is a transcoder.
        """
        refuse_transcoder(sae, "sparse-cpu")
        self._arrays = {None: np.empty((0, sae.cfg.d_in), np.float32)}
        for name, parameter in sae.named_parameters():
            if parameter.dim() == 2 and parameter is not sae.W_dec:
                parameter.data = parameter.data.T.contiguous().T
            rows = fused_adam.as_rows(parameter, parameter is sae.W_dec)
            self._arrays[name] = rows if parameter.dim() == 2 else rows[0]
        self._parameters = sae.learnt_parameters()
        d_sae = sae.cfg.d_sae
        self._features = _Features(*(aligned((d_sae,), np.float32) for _ in _Features._fields))
        self._sums = _Sums(*(aligned((d_sae,), np.float32) for _ in _Sums._fields))
        self._ones = np.ones(d_sae, np.float32)
        self._feature_starts = aligned((d_sae + 1,), np.int64)
        self._adam = fused_adam.FusedAdam(self.workspace, sae)

    @torch.no_grad()
    def step(
        self, sae: SAE, x_BD: Tensor, coefficient: float, objective: Objective, y_BD: Tensor | None = None
    ) -> StepResult:
        form = sae.gated_relu(sae.cfg.hyperparameters, objective)
        assert form is not None and y_BD is None, "checked when the sweep file was read"
        self._adam.forget()
        with np.errstate(over="ignore", invalid="ignore"):  # it is what a step is looked at for
            features, batch = self._terms(form, x_BD.numpy())
            active = self._active(form, features, batch)
            found = active and self._sparse_step(sae, form, features, batch, active, coefficient, objective)
        if found:
            return found
        self.workspace.clear()  # a dense step has arrays of its own
        with torch.enable_grad(), torch_threads(self.workspace.threads):
            return self.dense.step_in_parts(sae, x_BD, coefficient, objective)

    @torch.no_grad()
    def update(self, sae: SAE, optimiser: Adam, update: Update) -> None:  # noqa: ARG002
        self._adam.update(optimiser, update)
        optimiser.zero_grad()

    def _terms(self, form: GatedReLU, x_BD: Array) -> tuple[_Features, _Batch]:
        parameters, workspace = self._arrays, self.workspace
        features = self._features
        workspace.over(
            len(parameters["W_dec"]),
            kernels.feature_terms,
            *(parameters["W_enc"], parameters[form.magnitude_weights], parameters["W_dec"], parameters["b_dec"]),
            *(parameters[form.log_scale].reshape(-1), parameters[form.gate], parameters[form.magnitude], *features),
        )
        batch = _Batch(x_BD, workspace.array("centred", x_BD.shape), workspace.array("x_norms", (len(x_BD),)))
        workspace.over(len(x_BD), kernels.row_norms, x_BD, parameters["b_dec"], batch.centred, batch.norms)
        return features, batch

    def _active(self, form: GatedReLU, features: _Features, batch: _Batch) -> Active | None:
        """The active entries; None where the step is one for products."""
        # Where a dense step might multiply an infinity by zero, it is to be found by one.
        largest = float(np.maximum(batch.norms.max(), 1)) * float(features.reach.max())
        if not (largest < LARGEST and features.sizes.max() < LARGEST):
            return None
        encoder = Encoder(self._arrays["W_enc"], features.encoder_norms, features.shift, self._arrays[form.gate])
        entries = len(batch.x) * len(features.shift)
        dense_above = min(self.dense_above, LARGE_DENSE_ABOVE) if entries > LARGE_BATCH else self.dense_above
        most_active = min(dense_above * entries, MOST_ENTRIES)
        return find_active(self.workspace, encoder, batch.x, batch.norms, most_active, self.bfloat16)

    def _sparse_step(
        self,
        sae: SAE,
        form: GatedReLU,
        features: _Features,
        batch: _Batch,
        active: Active,
        coefficient: float,
        objective: Objective,
    ) -> StepResult | None:
        """Computes the step from its active entries; None where numbers are so large that it is one for products."""
        workspace, parameters = self.workspace, self._arrays
        n_rows, d_in, d_sae = len(batch.x), sae.cfg.d_in, sae.cfg.d_sae
        row_starts, row_ends, columns, _ = active
        learns_weights = sae.W_dec.requires_grad
        weighted = objective == "norm_weighted"
        auxiliary = AUXILIARY[form.auxiliary]
        W_dec, W_mag_FD = parameters["W_dec"], parameters[form.magnitude_weights]
        scale_F = features.scale
        weights_F = features.norms if weighted else self._ones
        penalty = np.float32(coefficient / n_rows if form.penalised else 0.0)

        centred_BD, error_BD = batch.centred, workspace.array("error", (n_rows, d_in))
        auxiliary_error_BD = workspace.array("auxiliary_error", (n_rows if auxiliary else 0, d_in))
        lists = [workspace.list(name, len(columns)) for name in ("pi", "acts", "d_gate", "d_mag")]
        sums_B3 = workspace.array("sums", (n_rows, 3), np.float64)
        workspace.over(
            row_starts,
            kernels.rows_forward_and_back,
            *(centred_BD, W_dec, W_mag_FD, parameters[form.gate], scale_F, parameters[form.magnitude], weights_F),
            *(penalty, auxiliary, *active, *lists, error_BD, auxiliary_error_BD, sums_B3),
        )
        reconstruction, l1, auxiliary_loss = (sums_B3.sum(0) / n_rows).tolist()
        l1 = l1 if form.penalised else 0.0
        losses = (reconstruction + coefficient * l1 + auxiliary_loss, reconstruction, l1, auxiliary_loss)
        # A dense step also multiplies errors with the decoder rows of inactive features.
        largest = float(sums_B3.max()) ** 0.5 * float(features.sizes.max()) ** 0.5
        if not (largest < LARGEST_SUM and max(map(abs, losses)) * n_rows < LARGEST_SUM):
            return None

        feature_starts = self._feature_starts
        index = np.int32 if len(columns) <= MOST_ENTRIES else np.int64
        entries, rows = workspace.list("entries", len(columns), index), workspace.list("rows", len(columns), np.int32)
        feature_sums.order_by_feature(columns, row_starts, row_ends, feature_starts, entries, rows)
        tied = form.magnitude_weights is None
        factors = [workspace.list(name, len(columns)) for name in ("d_x_hat", "d_auxiliary", "d_pre", "d_pre_mag")]
        d_gate, d_magnitude, d_log_scale, d_norm = self._sums
        fired_F = np.empty(d_sae, np.int64)
        workspace.over(
            feature_starts,
            feature_sums.features_sums,
            *(scale_F, weights_F, penalty, n_rows, tied, feature_starts, entries, active.pre, *lists, *factors),
            *(d_gate, d_magnitude, d_log_scale, d_norm, fired_F),
        )
        gradients: dict[str, Array] = {form.gate: d_gate}
        gradients[form.magnitude] = d_gate + d_magnitude if form.magnitude == form.gate else d_magnitude
        if form.log_scale is not None:
            gradients[form.log_scale] = d_log_scale
        if learns_weights:
            d_x_hat, d_auxiliary, d_pre, d_pre_mag = factors
            none = (d_auxiliary, auxiliary_error_BD[:0])
            own = (d_norm, W_dec) if weighted else (d_norm[:0], W_dec)
            other = (d_auxiliary, auxiliary_error_BD) if auxiliary == kernels.UNFROZEN else none
            sums = {"W_dec": (d_x_hat, error_BD, *other, *own)}
            sums["W_enc"] = (d_pre, centred_BD, *none, d_norm[:0], W_dec)
            if form.magnitude_weights is not None:
                sums[form.magnitude_weights] = (d_pre_mag, centred_BD, *none, d_norm[:0], W_dec)
            d_b_dec = error_BD.sum(0)
            if auxiliary == kernels.UNFROZEN:
                d_b_dec += auxiliary_error_BD.sum(0)
            d_b_dec *= np.float32(2 / n_rows)
            d_b_dec -= _times(d_gate + d_magnitude * scale_F if tied else d_gate, parameters["W_enc"])
            if not tied:
                d_b_dec -= _times(d_magnitude, W_mag_FD)
            gradients["b_dec"] = d_b_dec
            for name, arguments in sums.items():
                gradient_FD = workspace.array(f"d_{name}", (d_sae, d_in))
                learnt = self._adam.learnt[name]
                workspace.over(
                    feature_starts,
                    feature_sums.rows_sums,
                    feature_starts,
                    rows,
                    *arguments,
                    gradient_FD,
                    learnt.squares,
                )
                learnt.measured = True
                gradients[name] = gradient_FD if name == "W_dec" else gradient_FD.T
        for name, parameter in self._parameters.items():
            parameter.grad = torch.from_numpy(gradients[name])
        return StepResult(torch.tensor(losses), torch.from_numpy(fired_F))


def _times(vector_F: Array, matrix_FD: Array) -> Array:
    product: Array = torch.mv(torch.from_numpy(matrix_FD).T, torch.from_numpy(vector_F)).numpy()
    return product


@cache
def compile_kernels() -> None:
    """Compiles what steps call, or loads what was compiled before; a trial then begins with a step of its own."""
    sae = build(SAEConfig(architecture="gated", d_in=2, d_sae=3, hyperparameters={"l1_coefficient": 1.0})).train()
    engine = SparseCPUEngine(threads=1, dense_above=1)
    engine.prepare(sae)
    with one_at_a_time():
        engine.step(sae, torch.ones(2, 2), 1.0, "norm_weighted")
        engine.update(sae, Adam(sae, (0.0, 0.999), 1.0), Update(lr=0.0, clip=1.0, unit_norm=True))


def has_bfloat16() -> bool:
    """Whether the processor has products of bfloat16, on x86; where PyTorch has to imitate them, they take longer."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
