"""Resampling of silent features (Bricken et al. 2023, "Towards Monosemanticity", appendix; the paper, App. D)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from gsae_ray.config.recipe import Resampling
from gsae_ray.files import digest
from gsae_ray.saes import SAE
from gsae_ray.saes.objective import Objective
from gsae_ray.training.optimiser import Adam


class Resampler:
    """Watches which features fire, collects inputs that are reconstructed badly, and points silent features at them.

    Inputs are drawn ∝ (‖x − x̂‖²)² without replacement from the batches just before an event, as they pass: the rows
    with the smallest Exp(1) ÷ weight are a weighted sample (Efraimidis & Spirakis 2006), so only as many rows are kept
    as there are silent features, and none of the stream is consumed. The draw of a batch follows from (seed, step).

    A transcoder's feature then reads along x, less the mean of x, and writes along what is missing from ŷ there.
    """

    def __init__(
        self, settings: Resampling, batch_size: int, seed: int, sae: SAE, mean_D: Tensor | None = None
    ) -> None:
        """Watches nothing yet.

        Args:
            settings: when, and from how many rows.
            batch_size: rows of a step.
            seed: of the draws.
            sae: which is trained.
            mean_D: of the rows that a transcoder reads; an SAE has b_dec for it.
        """
        self.settings = settings
        self.seed = seed
        self.mean_D = mean_D
        self.collecting_steps = min(settings.window_steps, -(-settings.inputs // batch_size))
        device, n = sae.W_dec.device, sae.cfg.d_in
        self.silent_F = torch.ones(sae.cfg.d_sae, dtype=torch.bool, device=device)
        """Features without an activation since the window began."""
        self.keys_K = torch.empty(0, dtype=torch.float64, device=device)
        """Random keys of the inputs that were drawn so far, rising."""
        self.inputs_KD = torch.empty(0, n, device=device)
        """Those inputs, as the SAE is trained on them."""
        self.errors_KD = torch.empty(0, sae.cfg.width_out if sae.cfg.is_transcoder else 0, device=device)
        """Of a transcoder what it did not compute of them."""

    def _next_event(self, step: int) -> int | None:
        """The next step, after this one, before which features are resampled."""
        return next((event for event in self.settings.at_steps if event > step), None)

    @torch.no_grad()
    def observe(self, step: int, x_BD: Tensor, fired_F: Tensor, sae: SAE, y_BD: Tensor | None = None) -> None:
        """Takes note of a step's batch and of what fired, before the SAE is updated with it."""
        event = self._next_event(step)
        if event is None or step < event - self.settings.window_steps:
            return
        self.silent_F = self.silent_F & (fired_F == 0)  # not in place: a state may hold it
        if step < event - self.collecting_steps:
            return
        error_BD = (x_BD if y_BD is None else y_BD) - sae(x_BD)
        loss_B = error_BD.square().sum(1).double()
        generator = torch.Generator().manual_seed(int(digest([self.seed, step])[:15], 16))
        waits_B = torch.empty(len(x_BD), dtype=torch.float64).exponential_(generator=generator).to(loss_B.device)
        # The logarithm of wait ÷ loss², which neither overflows nor underflows.
        keys_K = torch.cat([self.keys_K, waits_B.log() - 2 * loss_B.log()])
        kept = keys_K.argsort(stable=True)[: int(self.silent_F.sum())]  # silent ones only become fewer
        self.keys_K, self.inputs_KD = keys_K[kept], torch.cat([self.inputs_KD, x_BD])[kept]
        if y_BD is not None:
            self.errors_KD = torch.cat([self.errors_KD, error_BD])[kept]

    @torch.no_grad()
    def resample(self, step: int, sae: SAE, optimiser: Adam, objective: Objective) -> int:
        """Gives silent features new directions, if the step is one to do so before. Returns how many it gave."""
        if step not in self.settings.at_steps:
            return 0
        centre_D = sae.b_dec if self.mean_D is None else self.mean_D
        x_KD = self.inputs_KD - centre_D if self.settings.direction == "centred" else self.inputs_KD
        usable_K = x_KD.norm(dim=1) > 0  # a row of zeros has no direction
        if sae.cfg.is_transcoder:
            usable_K = usable_K & (self.errors_KD.norm(dim=1) > 0)
        x_KD = x_KD[usable_K]
        silent_K = self.silent_F.nonzero().squeeze(1)[: len(x_KD)]
        directions_KD = normalize(x_KD[: len(silent_K)])
        alive_F = ~self.silent_F if not self.silent_F.all() else torch.ones_like(self.silent_F)
        sae.replace_features(silent_K, directions_KD, alive_F, objective)
        if sae.cfg.is_transcoder:
            written_KD = normalize(self.errors_KD[usable_K][: len(silent_K)])
            sae.replace_directions(silent_K, written_KD, alive_F, objective)
        for name, parameter in sae.learnt_parameters().items():
            if (state := optimiser.state.get(parameter)) is None:  # it has learnt nothing yet
                continue
            first, second = (sae.features_first(name, state[moment]) for moment in ("exp_avg", "exp_avg_sq"))
            if first is None or second is None:
                continue
            first[silent_K] = 0
            # Not 0: with a large step count Adam's bias correction is over, and the first update would be 31.6 × lr.
            second[silent_K] = second[alive_F].mean(0)
        self.silent_F = torch.ones_like(self.silent_F)
        self.keys_K, self.inputs_KD = self.keys_K.new_empty(0), self.inputs_KD.new_empty(0, sae.cfg.d_in)
        self.errors_KD = self.errors_KD.new_empty(0, self.errors_KD.shape[1])
        return len(silent_K)

    # ---- state ----

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        state = {"silent": self.silent_F, "keys": self.keys_K, "inputs": self.inputs_KD}
        return state if self.mean_D is None else {**state, "errors": self.errors_KD}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Goes back to what `state` returned."""
        own = {name: tensor.to(self.silent_F.device, copy=True) for name, tensor in state.items()}
        self.silent_F, self.keys_K, self.inputs_KD = (own[name] for name in ("silent", "keys", "inputs"))
        self.errors_KD = own.get("errors", self.errors_KD[:0])
