"""What an SAE makes of rows, and what that adds to the sums of an evaluation."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from gsae_ray.config.site import Site
from gsae_ray.errors import UserError, shown
from gsae_ray.evaluation.gradient_pursuit import gradient_pursuit
from gsae_ray.saes import SAE, SAEConfig


class Reconstruction(NamedTuple):
    """Rows through an SAE."""

    x_hat_RD: Tensor
    active_RF: Tensor
    """Which features are active."""
    values: dict[str, Tensor]
    """Name of a sum (`metrics.SUMS`) -> what each row [R] adds to it."""


def check_width(cfg: SAEConfig, site: Site, width: int) -> None:
    """Checks that an SAE of this configuration takes the activations of a site, which have `width` coordinates.

    Raises:
        UserError: it does not.
    """
    if cfg.d_in != width:
        trained_at = f", trained at {shown(cfg.site)}" if cfg.site else ""
        raise UserError(
            f"site: the activations at {site} have {width} coordinates, and this SAE{trained_at} takes {cfg.d_in} "
            "(its d_in); evaluate it at the site, and with the model, that it was trained on"
        )


def encode(sae: SAE, x_RD: Tensor, pursuit_l0: int | None) -> Tensor:
    """Feature activations [R, d_sae] of rows; arguments as of `reconstruct`."""
    return sae.encode(x_RD) if pursuit_l0 is None else gradient_pursuit(x_RD, sae.W_dec, sae.b_dec, pursuit_l0)


def reconstruct(sae: SAE, x_RD: Tensor, mean_D: Tensor, pursuit_l0: int | None) -> Reconstruction:
    """Encodes rows, decodes them, and measures the difference.

    Args:
        sae: which takes raw activations.
        x_RD: rows, float32, on the SAE's device.
        mean_D: mean of all held-out rows of the site, float64.
        pursuit_l0: at most so many features a row, found by gradient pursuit, in place of the SAE's own encoder.
    """
    acts_RF = encode(sae, x_RD, pursuit_l0)
    x_hat_RD = sae.decode(acts_RF)
    active_RF = acts_RF > 0
    x, x_hat = x_RD.double(), x_hat_RD.double()
    values = {
        "active": active_RF.sum(1),
        "x_sq": x.square().sum(1),
        "x_hat_sq": x_hat.square().sum(1),
        "x_hat_x": (x_hat * x).sum(1),
        "error_sq": (x - x_hat).square().sum(1),
        "centred_sq": (x - mean_D.to(x.device)).square().sum(1),
    }
    return Reconstruction(x_hat_RD, active_RF, values)
