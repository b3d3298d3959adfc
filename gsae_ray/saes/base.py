"""What every SAE has: its configuration, its decoder, encode and decode, and the two training objectives."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from gsae_ray.errors import UserError
from gsae_ray.files import write_together
from gsae_ray.saes.architecture import Architecture
from gsae_ray.saes.folder import CONFIG_FILE as CONFIG_FILE
from gsae_ray.saes.folder import WEIGHTS_FILE as WEIGHTS_FILE
from gsae_ray.saes.losses import Losses as Losses
from gsae_ray.saes.objective import Objective as Objective
from gsae_ray.saes.sae_config import SAEConfig as SAEConfig
from gsae_ray.saes.serialise import saved_files
from gsae_ray.saes.shown import Shown
from gsae_ray.saes.thresholds import Thresholds

ORIGIN = "origin"
"""Key of the metadata of an SAE that was not trained here: the format that it was read from."""

FREE_NORM = 0.1
"""Decoder norms at the start of a norm-weighted run."""
RESAMPLED_ENCODER_NORM = 0.2
"""Norm of the encoder row of a resampled feature ÷ the mean of those of alive features."""


class SAE(Shown, Architecture, Thresholds, nn.Module, ABC):
    """A sparse autoencoder: x̂ = W_dec f + b_dec with sparse f = encode(x).

    Weights are stored as W_enc [d_in, d_sae] and W_dec [d_sae, d_in]: feature i's direction is `W_dec[i]`. Decoder
    rows of SAEs that were trained here have norm 1; those from elsewhere may have any, which `fold_norms` changes.

    A transcoder (Dunefsky et al. 2024) computes other activations y than those that it reads, ŷ = W_dec f + b_dec, from
    x itself, not from x − b_dec; W_dec is [d_sae, d_out]. With a skip connection (Paulo et al. 2025) it adds W_skip x,
    W_skip being [d_out, d_in]. Every architecture may be either; what is said of x̂ holds of a transcoder's ŷ.

    Parameters are what is learnt; whatever else an architecture keeps is a buffer. Checkpoints hold both. Saved SAEs
    hold parameters and what else their function takes (a threshold); what only training takes (a count of steps) is a
    buffer with `persistent=False`, which they do not.
    """

    W_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    W_skip: Tensor

    def __init__(self, cfg: SAEConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.W_enc = nn.Parameter(torch.zeros(cfg.d_in, cfg.d_sae))
        self.W_dec = nn.Parameter(torch.zeros(cfg.d_sae, cfg.width_out))
        self.b_dec = nn.Parameter(torch.zeros(cfg.width_out))
        if cfg.skip:
            self.W_skip = nn.Parameter(torch.zeros(cfg.width_out, cfg.d_in))

    def prepare_training(self, rms_norm: float, steps: int, batch_size: int) -> None:
        """Takes note of how it will be trained; called before `initialise` or `adopt`, on every attempt.

        Args:
            rms_norm: √E‖x‖² of the activations that it is trained on.
            steps: of the whole run.
            batch_size: rows of a step.
        """

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, mean_D: Tensor, objective: Objective = "paper") -> None:
        """Sets the weights that training starts from.

        W_dec: random rows of norm 1 (norm_weighted: 0.1); W_enc := W_decᵀ, untied after; b_dec := the data's mean.
        The other biases are 0.

        Of a transcoder the mean is that of what it computes, rows of W_enc are random ones of their own, of the norm of
        W_dec's, and W_skip is 0.
        """
        self.W_dec.copy_(torch.randn(self.W_dec.shape, generator=generator))
        self.normalise_decoder()
        if objective == "norm_weighted":
            self.W_dec.mul_(FREE_NORM)
        rows_FD = self.W_dec
        if self.cfg.is_transcoder:
            rows_FD = torch.randn(self.cfg.d_sae, self.cfg.d_in, generator=generator)
            rows_FD *= self.W_dec[0].norm() / rows_FD.norm(dim=1, keepdim=True)
        self.W_enc.copy_(rows_FD.T)
        self.b_dec.copy_(mean_D)

    def adopt(self, parent: SAE, start: bool) -> None:
        """Copies what training leaves as it is in the parent; at the `start` also what training begins with."""
        raise NotImplementedError(f"a {self.architecture} SAE has no parent")

    @abstractmethod
    def encode(self, x_BD: Tensor) -> Tensor:
        """Feature activations [..., d_sae], non-negative, of activations [..., d_in].

        Activations may have any dtype that language models use; the SAE computes in the dtype of its weights.
        """

    def _pre(self, x_BD: Tensor, bias_F: Tensor | None = None, W_DF: Tensor | None = None) -> Tensor:
        """W (x − b_dec) + bias, or W x + bias where b_dec is not subtracted; W is W_enc unless given.

        SAEs that are trained here compute W x + (bias − W b_dec), in evaluation as in training: the gradient with
        respect to b_dec is then a product with a vector, not with the whole batch, a sixth (gated: an eighth) of a
        training step. Those from elsewhere compute it as it stands, as their libraries do: where norms are large the
        two round differently, and an activation near its threshold may be on in one and off in the other.
        """
        W_DF = self.W_enc if W_DF is None else W_DF
        x_BD = x_BD.to(W_DF.dtype)
        if self.trained_here and self.subtracts_b_dec:
            shift_F = -(self.b_dec @ W_DF)
            return x_BD @ W_DF + (shift_F if bias_F is None else bias_F + shift_F)
        pre_BF = (x_BD - self.b_dec if self.subtracts_b_dec else x_BD) @ W_DF
        return pre_BF if bias_F is None else pre_BF + bias_F

    def _l1(self, acts_BF: Tensor, objective: Objective) -> Tensor:
        """The objective's penalty of non-negative activations: a sum over features, a mean over the batch."""
        if objective == "norm_weighted":
            # Not `@`, which autocast would compute in bfloat16.
            return torch.dot(acts_BF.sum(0), self.W_dec.norm(dim=1)) / len(acts_BF)
        return acts_BF.sum() / len(acts_BF)

    def decode(self, acts_BF: Tensor, x_BD: Tensor | None = None) -> Tensor:
        """Reconstructions [..., d_in] of feature activations [..., d_sae]; of a transcoder, [..., d_out].

        A transcoder with a skip connection takes `x_BD` besides, what they are the features of; without it raises a
        TypeError.
        """
        out_BD = self._decode(acts_BF)
        if not self.cfg.skip:
            return out_BD
        if x_BD is None:
            raise TypeError("this transcoder has a skip connection, which takes x: decode(acts, x)")
        return out_BD + self.skip(x_BD)

    def _decode(self, acts_BF: Tensor) -> Tensor:
        """The features' part of the output: all of it but for a skip connection."""
        return acts_BF.to(self.W_dec.dtype) @ self.W_dec + self.b_dec

    def skip(self, x_BD: Tensor) -> Tensor:
        """What the skip connection adds, W_skip x."""
        return x_BD.to(self.W_skip.dtype) @ self.W_skip.T

    def forward(self, x_BD: Tensor) -> Tensor:
        return self.decode(self.encode(x_BD), x_BD)

    @abstractmethod
    def losses(
        self, x_BD: Tensor, coefficient: float, objective: Objective = "paper", y_BD: Tensor | None = None
    ) -> Losses:
        """The training losses of a batch, the sparsity penalty weighted by `coefficient`.

        Args:
            x_BD: activations that it reads.
            coefficient: of the penalty.
            objective: what is minimised.
            y_BD: what a transcoder is to compute; `_decoder_target` says what is left of it for `_decode`.
        """

    def _decoder_target(self, x_BD: Tensor, y_BD: Tensor | None) -> Tensor:
        """What the features' part of the output is to be: x; of a transcoder y, less what its skip connection adds."""
        if y_BD is None:
            return x_BD
        return y_BD - self.skip(x_BD) if self.cfg.skip else y_BD

    def begin_step(self, step: int) -> None:
        """Takes note of the step, from 0, that comes next."""

    def constrain(self) -> None:
        """Puts parameters back to where they have to be, after each update."""

    @property
    def calibration_steps(self) -> int:
        """How many of the run's last steps leave the weights as they are and only call `calibrate`."""
        return 0

    def calibrate(self, x_BD: Tensor) -> None:
        """Learns from a batch what has to fit the finished weights, as the threshold of a BatchTopK SAE has to."""
        raise NotImplementedError(f"a {self.architecture} SAE has nothing to calibrate")

    @property
    def trained_here(self) -> bool:
        """Whether it is one of ours, in the form in which it was trained."""
        return ORIGIN not in self.cfg.metadata

    @property
    def subtracts_b_dec(self) -> bool:
        """Whether the encoder takes x − b_dec, as all SAEs that are trained here do, or x, as transcoders do."""
        return not self.cfg.is_transcoder and bool(self.cfg.hyperparameters.get("subtract_b_dec", True))

    @property
    def sparsity_coefficient(self) -> float | None:
        """The coefficient of `losses` after its warm-up: 0 without a penalty, None if unknown, or found in training."""
        if self.sparsity_hyperparameter is None or self.sparsity_units is None:
            return 0.0
        value = self.cfg.hyperparameters.get(self.sparsity_hyperparameter)
        return None if value is None else float(value)

    def learnt_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def training_state(self) -> dict[str, Tensor]:
        """All parameters and buffers, by name: what a checkpoint holds."""
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}

    @torch.no_grad()
    def load_training_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes back to what `training_state` returned."""
        for name, tensor in self.training_state().items():
            tensor.copy_(tensors[name])

    def not_finite(self) -> str | None:
        """The name of a parameter or buffer that holds a NaN or an infinity, if any does."""
        return next((name for name, tensor in self.state_dict().items() if not is_finite(tensor)), None)

    # ---- units and norms --------------------------------------------------------------------------------------------

    @property
    def scaled_tensors(self) -> tuple[str, ...]:
        """Names of the parameters and buffers that have the units of the activations, as biases and thresholds do."""
        return tuple(name for name, _ in self.named_parameters() if name.startswith("b_"))

    @property
    def threshold_tensors(self) -> tuple[str, ...]:
        """Those of `scaled_tensors` that start at a share of √E‖x‖², and so always learn in proportion to it."""
        return ()

    @property
    def encoder_tensors(self) -> tuple[str, ...]:
        """Names of the parameters and buffers [..., d_sae] that a feature's activation is proportional to.

        Whoever multiplies all of them by c > 0 for a feature multiplies its activations by c. By default: `W_enc`, and
        those of `scaled_tensors` that have a number for each feature; one number for all of them is none.
        """
        state = self.state_dict()
        by_feature = [name for name in self.scaled_tensors if state[name].shape[-1:] == (self.cfg.d_sae,)]
        return ("W_enc", *(name for name in by_feature if name != "b_dec"))

    @torch.no_grad()
    def fold_scale(self, scale: float, target_scale: float | None = None) -> None:
        """Makes an SAE that was trained on `scale`·x take x, by dividing `scaled_tensors` by `scale`.

        Weights stay, so decoder norms stay 1, and features come out in the units of x.

        Of a transcoder, which was trained to compute `target_scale`·y, features come out in the units of y: the decoder
        stays, `scaled_tensors` are divided by `target_scale`, and what x is multiplied with takes the ratio of scales.
        """
        state = self.state_dict()
        for name in self.scaled_tensors:
            state[name].div_(scale if target_scale is None else target_scale)
        if target_scale is not None:
            matrices = [name for name in self.encoder_tensors if state[name].dim() > 1]
            for name in (*matrices, *(["W_skip"] if self.cfg.skip else [])):
                state[name].mul_(scale / target_scale)

    @torch.no_grad()
    def fold_norms(self) -> None:
        """Moves ‖d_i‖ into the encoder: decoder rows have norm 1, features are multiplied by it, x̂ stays.

        Raises:
            UserError: reconstructions would not stay.
        """
        norms_F = self.W_dec.norm(dim=1).clamp_min(torch.finfo(self.W_dec.dtype).tiny)
        self.W_dec.div_(norms_F[:, None])
        state = self.state_dict()
        for name in self.encoder_tensors:
            state[name].mul_(norms_F)

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        """Makes all decoder rows unit vectors."""
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True))

    @torch.no_grad()
    def project_decoder_gradient(self) -> None:
        """Removes the gradient's component along each (unit) decoder row: it would only change a norm."""
        gradient = self.W_dec.grad
        if gradient is not None:
            gradient.sub_((gradient * self.W_dec).sum(dim=1, keepdim=True) * self.W_dec)

    # ---- b_dec in the encoder ----------------------------------------------------------------------------------------

    def _encoders(self) -> dict[str, Tensor]:
        """Encoder bias, by name -> the matrix [d_in, d_sae] whose product with the encoder's input it is added to."""
        return {"b_enc": self.W_enc}

    @torch.no_grad()
    def subtracting_b_dec(self, subtract: bool) -> Self:
        """The same function, but for rounding, with an encoder that takes x − b_dec (`subtract`) or x.

        W_encᵀ b_dec goes into the encoder's biases, or out of them. An SAE that is so already is returned as it is.

        Raises:
            UserError: it is a transcoder, whose b_dec is none of x.
        """
        if subtract == self.subtracts_b_dec:
            return self
        if self.cfg.is_transcoder:
            raise UserError("subtracting_b_dec: a transcoder's b_dec is of what it computes, not of what it reads")
        sae = copy.deepcopy(self)
        sae.cfg = self.cfg.model_copy(
            update={"hyperparameters": {**self.cfg.hyperparameters, "subtract_b_dec": subtract}}
        )
        for name, W_DF in self._encoders().items():
            sae.get_parameter(name).add_(self.b_dec @ W_DF, alpha=1 if subtract else -1)
        return sae

    # ---- resampling -------------------------------------------------------------------------------------------------

    def features_first(self, name: str, tensor: Tensor) -> Tensor | None:
        """A view [d_sae, ...] of a parameter, or of a tensor of its shape; None where no axis counts features."""
        if name in ("b_dec", "W_skip") or tensor.dim() == 0:
            return None
        return tensor if name == "W_dec" else tensor.movedim(-1, 0)

    @torch.no_grad()
    def replace_features(
        self, features_K: Tensor, directions_KD: Tensor, alive_F: Tensor, objective: Objective
    ) -> None:
        """Gives features new directions, as Bricken et al. 2023 do.

        Encoder rows get a fifth of the mean norm of those of alive features, biases become 0. A transcoder's decoder
        rows are left to `replace_directions`.

        Args:
            features_K: indices of the features.
            directions_KD: a unit vector for each of them.
            alive_F: the features that a mean norm is taken of.
            objective: `norm_weighted`: decoder rows are of the mean norm of the alive ones; else unit vectors.
        """
        for name, parameter in self.learnt_parameters().items():
            by_feature = self.features_first(name, parameter)
            if by_feature is None:
                continue
            if parameter.dim() == 1:
                by_feature[features_K] = 0
            elif name != "W_dec":
                norm = by_feature[alive_F].norm(dim=1).mean()
                by_feature[features_K] = directions_KD * (RESAMPLED_ENCODER_NORM * norm)
            elif not self.cfg.is_transcoder:
                self.replace_directions(features_K, directions_KD, alive_F, objective)

    @torch.no_grad()
    def replace_directions(
        self, features_K: Tensor, directions_KD: Tensor, alive_F: Tensor, objective: Objective
    ) -> None:
        """Gives features new decoder rows; see `replace_features`."""
        norm = self.W_dec[alive_F].norm(dim=1).mean() if objective == "norm_weighted" else 1.0
        self.W_dec[features_K] = directions_KD * norm

    # ---- other forms ------------------------------------------------------------------------------------------------

    def saelens_form(self) -> dict[str, Any]:
        """What SAELens' `cfg.json` says of this function: its `architecture` there, and keys of that, such as `k`.

        The parameters and buffers have to be those of that architecture, in names and shapes.

        Raises:
            UserError: SAELens has none.
        """
        raise UserError(f"SAELens has no {self.architecture} SAE")

    def to_jumprelu(self) -> SAE:
        """The same function as a JumpReLU SAE.

        Raises:
            UserError: it is none.
        """
        raise UserError(f"to_jumprelu: a {self.architecture} SAE has no such form")

    # ---- files ------------------------------------------------------------------------------------------------------

    def save(self, directory: str | Path) -> None:
        """Writes `cfg.json` and `sae_weights.safetensors`, a folder that SAELens reads too, to `directory`.

        The folder is made if need be. An SAE of ours that is there already is replaced; a save that fails halfway
        never leaves its files beside new ones.
        """
        write_together(Path(directory), saved_files(self))


def is_finite(tensor: Tensor) -> bool:
    """Whether all of it is; without a copy, as `isfinite` makes."""
    if not tensor.numel():
        return True
    least, most = tensor.detach().aminmax()  # either is NaN where one of the numbers is
    return bool(least.isfinite() and most.isfinite())
