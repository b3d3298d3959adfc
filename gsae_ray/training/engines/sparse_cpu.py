"""The sparse engine on CPUs: after the encoder's product, only the active entries of a batch are computed.

Exact: the gradient of these losses is zero for every feature on every row where its gate is closed (Gao et al. 2024,
section 3, say so of TopK; it holds of every `GatedReLU`). The one product that stays dense is x W_enc.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gsae_ray.saes import SAE, Objective
from gsae_ray.saes.base import GatedReLU
from gsae_ray.training.engines import kernels
from gsae_ray.training.engines.base import StepResult
from gsae_ray.training.engines.dense import DenseEngine

DENSE_ABOVE = 1 / 8
"""The share of active entries from which a step of dense products is the faster one: at the start half are active."""
AUXILIARY = {"none": kernels.NONE, "frozen": kernels.FROZEN, "unfrozen": kernels.UNFROZEN}
LARGEST = 1e38
"""Products beyond this may overflow in float32."""
LARGEST_SUM = 1e37
"""Sums over a batch beyond this may: in some order, on the way."""
MOST_ENTRIES = 2**31 - 1

Array = np.ndarray[Any, Any]


class SparseCPUEngine:
    """For SAEs that are a `GatedReLU`, in float32 on the CPU; an engine for each SAE.

    Whether a step is computed by this engine's kernels or by `DenseEngine` follows from its batch and weights alone:
    from the share of active entries, and where numbers are not finite or may overflow, so that both engines fail at the
    same step. Nothing of it is state.
    """

    def __init__(self, threads: int, dense_above: float = DENSE_ABOVE) -> None:
        """Makes the engine.

        Args:
            threads: that kernels may use; results do not depend on it.
            dense_above: the share of active entries beyond which a step is one of dense products.
        """
        self.threads = threads
        self.dense_above = dense_above
        self.dense = DenseEngine()
        self._pool = ThreadPoolExecutor(threads - 1, "sparse-engine") if threads > 1 else None
        self._arrays: dict[str, Array] = {}

    def prepare(self, sae: SAE) -> None:
        """Stores encoders by feature, without changing their values: a feature's weights lie side by side."""
        for name, parameter in sae.named_parameters():
            if _is_encoder(name, parameter):
                parameter.data = parameter.data.T.contiguous().T

    @torch.no_grad()
    def step(self, sae: SAE, x_BD: Tensor, coefficient: float, objective: Objective) -> StepResult:
        form = sae.gated_relu(sae.cfg.hyperparameters, objective)
        assert form is not None, "checked when the sweep file was read"
        with np.errstate(over="ignore", invalid="ignore"):  # it is what a step is looked at for
            parameters = _arrays_of(sae)
            active = self._active(sae, form, x_BD, parameters)
            found = active and self._sparse_step(sae, form, x_BD, coefficient, objective, active, parameters)
        if found:
            return found
        self._arrays.clear()  # a dense step has arrays of its own
        with torch.enable_grad():
            return self.dense.step(sae, x_BD, coefficient, objective)

    def _active(
        self, sae: SAE, form: GatedReLU, x_BD: Tensor, parameters: Mapping[str | None, Array]
    ) -> tuple[Array, Array, Array] | None:
        """The active entries as (row starts, features, pre-activations); None where the step is one for products."""
        n_rows, d_sae = len(x_BD), sae.cfg.d_sae
        gate, magnitude = parameters[form.gate], parameters[form.magnitude]
        shift_F, scale_F, norms_F, sizes_F = (
            self._array(name, (d_sae,)) for name in ("shift", "scale", "norms", "sizes")
        )
        self._over(
            d_sae,
            kernels.feature_terms,
            *(parameters["W_enc"], parameters[form.magnitude_weights], parameters["W_dec"]),
            *(parameters["b_dec"], parameters[form.log_scale].reshape(-1), shift_F, scale_F, norms_F, sizes_F),
        )
        pre_BF = self._array("pre", (n_rows, d_sae))
        torch.mm(x_BD, sae.W_enc, out=torch.from_numpy(pre_BF))
        counts_B, sizes_B = self._array("counts", (n_rows,), np.int64), self._array("row_sizes", (n_rows,))
        self._over(n_rows, kernels.count_active, pre_BF, shift_F, gate, counts_B, sizes_B)
        n_active = int(counts_B.sum())
        if n_active > min(self.dense_above * n_rows * d_sae, MOST_ENTRIES):
            return None
        # Where a dense step might multiply an infinity by zero, it is to be found by one.
        scale = float(np.maximum(scale_F.max(), 1))
        largest = float(sizes_B.max()) * scale + float(np.abs(gate).max()) + float(np.abs(magnitude).max())
        if not (largest < LARGEST and sizes_F.max() < LARGEST):
            return None
        row_starts = self._array("row_starts", (n_rows + 1,), np.int64)
        row_starts[0] = 0
        np.cumsum(counts_B, out=row_starts[1:])
        columns, pre_A = self._list("columns", n_active, np.int32), self._list("pre_active", n_active)
        self._over(n_rows, kernels.list_active, pre_BF, shift_F, gate, row_starts, columns, pre_A, counts_B)
        assert (counts_B == np.diff(row_starts)).all(), "one comparison, compiled twice, has come out differently"
        return row_starts, columns, pre_A

    def _sparse_step(
        self,
        sae: SAE,
        form: GatedReLU,
        x_BD: Tensor,
        coefficient: float,
        objective: Objective,
        active: tuple[Array, Array, Array],
        parameters: Mapping[str | None, Array],
    ) -> StepResult | None:
        """Computes the step from its active entries; None where numbers are so large that it is one for products."""
        row_starts, columns, pre_A = active
        n_rows, d_in, d_sae = len(x_BD), sae.cfg.d_in, sae.cfg.d_sae
        learns_weights = sae.W_dec.requires_grad
        weighted = objective == "norm_weighted"
        auxiliary = AUXILIARY[form.auxiliary]
        W_dec, W_mag_FD = parameters["W_dec"], parameters[form.magnitude_weights]
        scale_F = self._arrays["scale"]
        weights_F = self._arrays["norms"] if weighted else np.ones(d_sae, np.float32)
        penalty = np.float32(coefficient / n_rows if form.penalised else 0.0)

        centred_BD = self._array("centred", (n_rows, d_in))
        np.subtract(x_BD.numpy(), parameters["b_dec"], out=centred_BD)
        acts_d_gate_d_mag = [self._list(name, len(columns)) for name in ("acts", "d_gate", "d_mag")]
        error_BD = self._array("error", (n_rows, d_in))
        auxiliary_error_BD = self._array("auxiliary_error", (n_rows if auxiliary else 0, d_in))
        sums_B3 = self._array("sums", (n_rows, 3), np.float64)
        self._over(
            row_starts,
            kernels.rows_forward_and_back,
            *(centred_BD, W_dec, W_mag_FD, parameters[form.gate], scale_F, parameters[form.magnitude], weights_F),
            *(penalty, auxiliary, row_starts, columns, pre_A, *acts_d_gate_d_mag),
            *(error_BD, auxiliary_error_BD, sums_B3),
        )
        reconstruction, l1, auxiliary_loss = (sums_B3.sum(0) / n_rows).tolist()
        l1 = l1 if form.penalised else 0.0
        losses = (reconstruction + coefficient * l1 + auxiliary_loss, reconstruction, l1, auxiliary_loss)
        # A dense step also multiplies errors with the decoder rows of inactive features.
        largest = float(sums_B3.max()) ** 0.5 * float(self._arrays["sizes"].max()) ** 0.5
        if not (largest < LARGEST_SUM and max(map(abs, losses)) * n_rows < LARGEST_SUM):
            return None

        feature_starts = self._array("feature_starts", (d_sae + 1,), np.int64)
        entries, rows = self._list("entries", len(columns), np.int32), self._list("rows", len(columns), np.int32)
        kernels.order_by_feature(columns, row_starts, feature_starts, entries, rows)
        d_W_dec, d_W_enc = (self._array(name, (d_sae if learns_weights else 0, d_in)) for name in ("d_dec", "d_enc"))
        d_W_mag = self._array("d_W_mag", W_mag_FD.shape)
        d_gate, d_magnitude, d_log_scale = (self._array(name, (d_sae,)) for name in ("d_g", "d_m", "d_s"))
        fired_F = np.empty(d_sae, np.int64)
        self._over(
            feature_starts,
            kernels.features_gradients,
            *(centred_BD, W_dec, parameters[form.gate], scale_F, weights_F, penalty, weighted, auxiliary),
            *(feature_starts, entries, rows, pre_A, *acts_d_gate_d_mag, error_BD, auxiliary_error_BD),
            *(d_W_dec, d_W_enc, d_W_mag, d_gate, d_magnitude, d_log_scale, fired_F),
        )

        gradients = {form.gate: d_gate}
        gradients[form.magnitude] = d_gate + d_magnitude if form.magnitude == form.gate else d_magnitude
        if form.log_scale is not None:
            gradients[form.log_scale] = d_log_scale
        if learns_weights:
            d_b_dec = error_BD.sum(0)
            if auxiliary == kernels.UNFROZEN:
                d_b_dec += auxiliary_error_BD.sum(0)
            d_b_dec *= np.float32(2 / n_rows)
            tied = form.magnitude_weights is None
            d_pre = torch.from_numpy(d_gate + d_magnitude * scale_F if tied else d_gate)
            d_b_dec -= torch.mv(sae.W_enc, d_pre).numpy()
            if form.magnitude_weights is not None:
                d_b_dec -= torch.mv(sae.get_parameter(form.magnitude_weights), torch.from_numpy(d_magnitude)).numpy()
                gradients[form.magnitude_weights] = d_W_mag.T
            gradients |= {"W_dec": d_W_dec, "W_enc": d_W_enc.T, "b_dec": d_b_dec}
        for name, parameter in sae.learnt_parameters().items():
            parameter.grad = torch.from_numpy(gradients[name])

        return StepResult(torch.tensor(losses), torch.from_numpy(fired_F))

    def _over(self, parts: int | Array, kernel: Callable[..., None], *arguments: Any) -> None:
        """Runs a kernel on ranges of rows or features, in parallel.

        Args:
            parts: how many there are, or the index of each one's first active entry: then ranges have as many of those.
            kernel: what takes a range and the arguments.
            *arguments: the same for all ranges.
        """
        n = parts if isinstance(parts, int) else len(parts) - 1
        if self._pool is None:
            kernel(0, n, *arguments)
            return
        shares = np.arange(1, self.threads) / self.threads
        if isinstance(parts, int):
            inner = [round(n * share) for share in shares]
        else:
            load = parts + np.arange(n + 1)  # one without entries costs something too
            inner = np.searchsorted(load, load[-1] * shares).tolist()
        bounds = [0, *inner, n]
        others = [
            self._pool.submit(kernel, first, end, *arguments)
            for first, end in zip(bounds[1:-1], bounds[2:], strict=True)
        ]
        kernel(0, bounds[1], *arguments)
        for other in others:
            other.result()

    def _array(self, name: str, shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
        """An array that later steps use again, whole or its first rows; what it holds is not defined."""
        array = self._arrays.get(name)
        if array is None or array.shape[1:] != shape[1:] or len(array) < shape[0]:
            array = self._arrays[name] = np.empty(shape, dtype)
        return array[: shape[0]]

    def _list(self, name: str, length: int, dtype: Any = np.float32) -> Array:
        """The beginning of an array that grows as needed, for as many entries."""
        array = self._arrays.get(name)
        if array is None or len(array) < length:
            array = self._arrays[name] = np.empty(length + length // 4, dtype)
        return array[:length]


def _is_encoder(name: str, parameter: Tensor) -> bool:
    return parameter.dim() == 2 and name != "W_dec"


def _arrays_of(sae: SAE) -> dict[str | None, Array]:
    """The parameters' own memory, encoders by feature, as kernels are compiled for; None: without rows or entries."""
    arrays: dict[str | None, Array] = {None: np.empty((0, sae.cfg.d_in), np.float32)}
    for name, parameter in sae.named_parameters():
        arrays[name] = (parameter.detach().T if _is_encoder(name, parameter) else parameter.detach()).numpy()
        assert arrays[name].flags.c_contiguous, "by SparseCPUEngine.prepare"
    return arrays
