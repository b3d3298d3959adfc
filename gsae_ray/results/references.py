"""SAEs from elsewhere as references of a launch: read and described, and as rows of its frontier."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from gsae_ray.config.sections import OWN
from gsae_ray.errors import UserError, shown
from gsae_ray.results.outcomes import Outcome, Outcomes
from gsae_ray.results.saved import load_from
from gsae_ray.storage.references import Reference
from gsae_ray.tracking.tags import CONTENT, EVALUATION, LAUNCH, ORIGIN, SOURCE

if TYPE_CHECKING:
    from gsae_ray.saes import SAE

UNKNOWN = ("seed", "tokens", "batch_size")
"""Whole numbers of a training, which are missing (`pandas.NA`) in a reference's row."""


def open_reference(
    source: str, site: str, origin: str | None = None, tracking_uri: str | None = None
) -> tuple[SAE, Reference]:
    """Reads an SAE from elsewhere.

    Args:
        source: as `load_from` takes it.
        site: where it is compared.
        origin: what the frontier calls it; default: the source.
        tracking_uri: of MLflow, which is asked for a run only.

    Raises:
        UserError: there is none, its files are damaged, or it would be called as the sweep's own SAEs are.
    """
    from gsae_ray.saes.files import function_hash  # here: a frontier is shown without torch

    if (origin or source) == OWN:
        raise UserError(f"name: {OWN!r} is what the frontier calls a sweep's own SAEs; give another")
    sae = load_from(source, tracking_uri)
    path = Path(source).expanduser()
    reference = Reference(
        origin=origin or source,
        source=str(path.resolve()) if path.exists() else source,  # a sweep may be resumed from another folder
        site=site,
        trained_at=sae.cfg.site,
        architecture=sae.architecture,
        d_in=sae.cfg.d_in,
        d_sae=sae.cfg.d_sae,
        sae=function_hash(sae),
    )
    return sae, reference


def check_same(sae: SAE, sae_hash: str | None, source: str) -> None:
    """Checks that an SAE that is read again is the one that was evaluated.

    Raises:
        UserError: it is not.
    """
    from gsae_ray.saes.files import function_hash  # here, as above

    if function_hash(sae) != sae_hash:
        raise UserError(f"{source}: this SAE has changed since it was evaluated; evaluate it again")


def trained_elsewhere(origin: str, site: str, trained_at: str | None) -> list[str]:
    """A line about a reference whose own files name another site than the one that it is compared at."""
    if trained_at in (None, "", site):
        return []
    return [
        f"{origin} is shown at {site}, but its own files say that it was trained at {shown(trained_at, quoted=False)}"
    ]


def made_for_another_model(origin: str, model: str, trained_on: object) -> list[str]:
    """A line about a reference whose own files name another language model than the one that it is spliced into."""
    if not isinstance(trained_on, str) or trained_on in ("", model):
        return []
    return [
        f"{origin} is spliced into {model}, but its own files say that it was trained on "
        f"{shown(trained_on, quoted=False)}"
    ]


def row_of(outcome: Outcome) -> dict[str, Any]:
    """The settings of a reference, as columns of the frontier; what is not known of its training is missing.

    Raises:
        KeyError, ValueError: a tag or a parameter is missing, or makes no sense.
    """
    params = outcome.params
    return {
        "run_id": outcome.run_id,
        "trial": "",
        "site": params["site"],
        "architecture": params["architecture"],
        "recipe": "",
        "variant": "",
        "l1_units": "",
        "engine": "",
        "precision": "",
        "d_sae": int(params["d_sae"]),
        "sparsity": float("nan"),
        "lr": float("nan"),
        **dict.fromkeys(UNKNOWN, pd.NA),
        "parent": "",
        "launch": outcome.tags[LAUNCH],
        "sink_share": float("nan"),
        "found_coefficient": float("nan"),
        "snapshot": False,
        "origin": outcome.tags[ORIGIN],
        "trained_at": params.get("trained_at", ""),
        "fingerprint": outcome.tags[EVALUATION],
        "schema": outcome.schema,
    }


def load_reference(outcomes: Outcomes, row: pd.Series[Any], tracking_uri: str | None) -> SAE:
    """The SAE of a reference's row of the frontier, from where it was read when it was evaluated.

    Raises:
        UserError: it is not there any more, or is another one now.
    """
    outcome = next(found for found in outcomes.references(row["launch"]) if found.run_id == row["run_id"])
    try:
        sae = load_from(outcome.tags[SOURCE], tracking_uri)
    except UserError as error:
        origin = shown(row["origin"], quoted=False)
        raise UserError(f"{origin}: it was read from another folder, and is not kept anywhere else: {error}") from error
    check_same(sae, outcome.tags.get(CONTENT), outcome.tags[SOURCE])
    if not sae.cfg.site:  # its own files name none
        sae.cfg = sae.cfg.model_copy(update={"site": row["site"]})
    return sae
