"""The SAE that has an alias in MLflow's model registry."""

from __future__ import annotations

from gsae_ray.errors import UserError
from gsae_ray.results.choice import Choice
from gsae_ray.results.frontier import frontier
from gsae_ray.tracking.registered import holder_of


def chosen_by_alias(experiment: str, site: str | None, alias: str, tracking_uri: str | None) -> Choice:
    """The SAE that has an alias, with its row of its launch's frontier.

    Args:
        experiment: as for `frontier`.
        site: None: the only one that the experiment has registered SAEs of.
        alias: in the registered model of the site.
        tracking_uri: as for `frontier`.

    Raises:
        UserError: nothing has that alias, or its SAE is on no frontier any more.
    """
    holder = holder_of(tracking_uri, experiment, site, alias)
    rows = frontier(experiment, holder.site, holder.launch, tracking_uri)
    row = rows[rows["run_id"] == holder.run_id]
    if row.empty:
        raise UserError(
            f"alias: {alias} is version {holder.version} of {holder.name}, whose run {holder.run_id} is not among "
            f"those of launch {holder.launch} any more; run the sweep again, which moves the alias"
        )
    return Choice(row.reset_index(drop=True), f"{alias} is version {holder.version} of {holder.name}, {holder.said}")
