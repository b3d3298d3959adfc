"""Adam over the learnt parameters of an SAE, with a learning rate of its own for biases."""

from __future__ import annotations

import torch
from torch import Tensor

from gsae_ray.config.recipe import TrialTraining
from gsae_ray.saes import SAE


def make_optimiser(sae: SAE, settings: TrialTraining, bias_factor: float) -> torch.optim.Adam:
    """Adam in two groups: weights, and what has the units of the activations (`SAE.scaled_tensors`).

    Args:
        sae: on the device that it is trained on.
        settings: gives the peak learning rate and Adam's betas.
        bias_factor: learning rate of the second group ÷ that of the first.
    """
    learnt = sae.learnt_parameters()
    weights = [p for name, p in learnt.items() if name not in sae.scaled_tensors]
    biases = [p for name, p in learnt.items() if name in sae.scaled_tensors]
    groups = [{"params": weights, "factor": 1.0}, {"params": biases, "factor": bias_factor}]
    return torch.optim.Adam(groups, lr=settings.lr, betas=settings.adam_betas, fused=True)


def set_lr(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Gives each group its share of the learning rate."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group["factor"]


def optimiser_state(optimiser: torch.optim.Optimizer, sae: SAE) -> dict[str, Tensor]:
    """Copies of Adam's state on the CPU, by `{moment}.{parameter}`; empty before the first step."""
    return {
        f"{moment}.{name}": value.detach().to("cpu", copy=True)
        for name, parameter in sae.learnt_parameters().items()
        for moment, value in optimiser.state[parameter].items()
    }


def restore_optimiser(optimiser: torch.optim.Optimizer, sae: SAE, state: dict[str, Tensor]) -> None:
    """Goes back to what `optimiser_state` returned."""
    for name, parameter in sae.learnt_parameters().items():
        moments = {key.split(".", 1)[0]: value for key, value in state.items() if key.split(".", 1)[1] == name}
        optimiser.state[parameter] = {
            moment: value.to(parameter.device, copy=True) for moment, value in moments.items()
        }
