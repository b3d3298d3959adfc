"""Adam over the learnt parameters of an SAE, with a learning rate of its own for biases."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from gsae_ray.saes import SAE

EPSILON = 1e-8
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""Adam's state of a parameter, by the names that PyTorch gives them."""


class Adam:
    """Adam in groups: weights, what has the units of the activations (`SAE.scaled_tensors`), and thresholds.

    The function beneath PyTorch's own class: to make an instance of that loads TorchDynamo, which takes two seconds
    and 70 MiB in each trial's process (torch 2.13) and is not used.
    """

    def __init__(self, sae: SAE, betas: tuple[float, float], bias_factor: float, threshold_factor: float = 1.0) -> None:
        """Begins without moments.

        Args:
            sae: on the device that it is trained on.
            betas: decay of the mean of gradients, and of that of their squares.
            bias_factor: learning rate of the second group ÷ that of the first.
            threshold_factor: that of `SAE.threshold_tensors`, which are no part of the second group.
        """
        learnt = sae.learnt_parameters()
        weights = [p for name, p in learnt.items() if name not in sae.scaled_tensors]
        thresholds = [p for name, p in learnt.items() if name in sae.threshold_tensors]
        biases = [p for name, p in learnt.items() if name in {*sae.scaled_tensors} - {*sae.threshold_tensors}]
        self.groups = ((weights, 1.0), (biases, bias_factor), (thresholds, threshold_factor))
        self.factors = {parameter: factor for parameters, factor in self.groups for parameter in parameters}
        """Parameter -> its learning rate ÷ that of weights."""
        self.betas = betas
        self.names = {parameter: name for name, parameter in learnt.items()}
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {}
        """Parameter -> its `MOMENTS`; without those that have had no gradient yet."""

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Updates the parameters that have a gradient; `lr` is the learning rate of weights."""
        for parameters, factor in self.groups:
            learning = [p for p in parameters if p.grad is not None]
            if not learning:
                continue
            gradients = [p.grad for p in learning if p.grad is not None]
            states = [self.state_of(p) for p in learning]
            steps, means, squares = ([state[moment] for state in states] for moment in MOMENTS)
            beta1, beta2 = self.betas
            settings = {"beta1": beta1, "beta2": beta2, "lr": lr * factor, "eps": EPSILON, "weight_decay": 0.0}
            adam(learning, gradients, means, squares, [], steps, fused=True, amsgrad=False, maximize=False, **settings)  # type: ignore[arg-type]

    def state_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """The parameter's `MOMENTS`, to be changed in place."""
        if parameter not in self.state:
            zero = torch.zeros((), dtype=torch.float32, device=parameter.device)
            moments = (zero, torch.zeros_like(parameter), torch.zeros_like(parameter))
            self.state[parameter] = dict(zip(MOMENTS, moments, strict=True))
        return self.state[parameter]

    def zero_grad(self) -> None:
        """Lets the gradients go."""
        for parameter in self.names:
            parameter.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """The moments themselves, by `{moment}.{parameter}`; empty before the first step."""
        return {
            f"{moment}.{name}": value
            for parameter, name in self.names.items()
            for moment, value in self.state.get(parameter, {}).items()
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Goes back to what `tensors` returned."""
        self.state = {
            parameter: {moment: _laid_out(tensors[f"{moment}.{name}"], parameter) for moment in MOMENTS}
            for parameter, name in self.names.items()
            if f"step.{name}" in tensors
        }


def _laid_out(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A copy that lies in memory as the parameter does: PyTorch's fused Adam goes through both in storage order."""
    if tensor.shape != parameter.shape:  # the count of steps
        return tensor.to(parameter.device, copy=True)
    return torch.empty_like(parameter, requires_grad=False).copy_(tensor)
