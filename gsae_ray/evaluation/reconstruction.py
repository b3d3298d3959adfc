"""What an SAE makes of rows, and what that adds to the sums of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from gsae_ray.config.site import Site
from gsae_ray.errors import UserError, shown
from gsae_ray.evaluation.gradient_pursuit import gradient_pursuit
from gsae_ray.saes import SAE, SAEConfig


class Reconstruction(NamedTuple):
    """Rows through an SAE."""

    y_hat_RD: Tensor
    active_RF: Tensor
    """Which features are active."""
    values: dict[str, Tensor]
    """Name of a sum (`metrics.SUMS`) -> what each row [R] adds to it."""


def check_width(cfg: SAEConfig, site: Site, widths: Mapping[Site, int]) -> None:
    """Checks that an SAE of this configuration is one for a site.

    Args:
        cfg: its configuration.
        site: where it is to be evaluated.
        widths: coordinates of the activations at the site, and of a transcoder's at both of its places.

    Raises:
        UserError: it is a transcoder and the site is none of those, or the other way round, or it takes, or computes,
            activations of another width.
    """
    what = "transcoder" if cfg.is_transcoder else "SAE"
    trained_at = f", trained at {shown(cfg.place)}" if cfg.place else ""
    if cfg.is_transcoder != site.is_transcoders:
        kind = "from one point of a layer to another" if site.is_transcoders else "of one place"
        example = f"{Site.of_point(0, 'mlp_in')}:hook_mlp_out, say" if cfg.is_transcoder else "or module"
        raise UserError(
            f"site: {site} is {kind}, and this is {'a' if cfg.is_transcoder else 'an'} {what}{trained_at}; give a site "
            f"for {'two points' if cfg.is_transcoder else 'one point'} ({example})"
        )
    ends = ((site.source, cfg.d_in, "takes", "d_in"), (site.target, cfg.width_out, "computes", "d_out"))
    for place, width, does, key in ends:
        if width != widths[place]:
            raise UserError(
                f"site: the activations at {place} have {widths[place]} coordinates, and this {what}{trained_at} "
                f"{does} {width} (its {key}); evaluate it at the site, and with the model, that it was trained on"
            )


def encode(sae: SAE, x_RD: Tensor, pursuit_l0: int | None) -> Tensor:
    """Feature activations [R, d_sae] of rows; arguments as of `reconstruct`."""
    return sae.encode(x_RD) if pursuit_l0 is None else gradient_pursuit(x_RD, sae.W_dec, sae.b_dec, pursuit_l0)


def reconstruct(sae: SAE, x_RD: Tensor, y_RD: Tensor, mean_D: Tensor, pursuit_l0: int | None) -> Reconstruction:
    """Encodes rows, decodes them, and measures the difference.

    Args:
        sae: which takes raw activations.
        x_RD: rows that it reads, float32, on the SAE's device.
        y_RD: the rows that it is to compute from those: the same ones, but of a transcoder those of its target.
        mean_D: mean of all held-out rows that are to be computed, float64.
        pursuit_l0: at most so many features a row, found by gradient pursuit, in place of the SAE's own encoder; of no
            transcoder, whose features would then be those of y.
    """
    acts_RF = encode(sae, x_RD, pursuit_l0)
    y_hat_RD = sae.decode(acts_RF, x_RD)
    active_RF = acts_RF > 0
    x, x_hat = y_RD.double(), y_hat_RD.double()
    values = {
        "active": active_RF.sum(1),
        "x_sq": x.square().sum(1),
        "x_hat_sq": x_hat.square().sum(1),
        "x_hat_x": (x_hat * x).sum(1),
        "error_sq": (x - x_hat).square().sum(1),
        "centred_sq": (x - mean_D.to(x.device)).square().sum(1),
    }
    return Reconstruction(y_hat_RD, active_RF, values)
