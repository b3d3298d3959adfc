"""SAEs in MLflow's model registry, looked up by an alias."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from mlflow.entities.model_registry import RegisteredModel
from mlflow.tracking import MlflowClient

from gsae_ray.errors import UserError, suggest
from gsae_ray.tracking.connection import asking, open_tracking
from gsae_ray.tracking.credentials import redacted
from gsae_ray.tracking.registry_names import ALIASES, EXPLAINED, L0, RECOVERED, names_start
from gsae_ray.tracking.tags import EXPERIMENT, LAUNCH, SITE


@dataclasses.dataclass(frozen=True)
class Holder:
    """The version that an alias names."""

    name: str
    version: str
    site: str
    run_id: str
    launch: str
    """That the run belongs to."""
    said: str
    """`L0 22.53, loss recovered 0.9827`: by what it was chosen."""


def holder_of(tracking_uri: str | None, experiment: str, site: str | None, alias: str) -> Holder:
    """Looks up an alias in the registered model of a site.

    Args:
        tracking_uri: of MLflow.
        experiment: its name.
        site: None: the only one that the experiment has a registered model of.
        alias: one of `ALIASES`, or one that somebody has given.

    Raises:
        UserError: there is no such model or alias, its version is no SAE of a run, or MLflow does not answer.
    """
    client = open_tracking(tracking_uri)
    with asking(client.tracking_uri):
        models = _models(client, experiment)
        model = _chosen(models, experiment, site, alias, redacted(client.tracking_uri))
        model = client.get_registered_model(model.name)
        if alias not in model.aliases:
            known = sorted(model.aliases, key=lambda found: (ALIASES.get(found, 0), found))
            hint = suggest(alias, known) if known else "it has none"
            raise UserError(f"alias: no {alias!r} in the registered model {model.name}; {hint}")
        version = client.get_model_version(model.name, str(model.aliases[alias]))
        run = client.get_run(version.run_id) if version.run_id else None
    if run is None or LAUNCH not in run.data.tags:
        raise UserError(
            f"alias: {alias} of {model.name} is version {version.version}, which is no SAE of a sweep's run; give the "
            "alias to another version in MLflow's UI"
        )
    number, site = str(version.version), model.tags[SITE]
    return Holder(model.name, number, site, version.run_id, run.data.tags[LAUNCH], _said(version.tags))


def _said(tags: Mapping[str, str]) -> str:
    """By what a version was chosen."""
    names = [L0, RECOVERED if RECOVERED in tags else EXPLAINED]
    told = [f"{name.replace('_', ' ')} {float(tags[name]):.4g}" for name in names if name in tags]
    return ", ".join(told).replace("l0", "L0") or "entered by hand"


def _models(client: MlflowClient, experiment: str) -> list[RegisteredModel]:
    """The registered models of an experiment."""
    found: list[RegisteredModel] = []
    token: str | None = None
    while token != "":
        page = client.search_registered_models(f"name LIKE '{names_start(experiment)}%'", page_token=token)
        found += [model for model in page if model.tags.get(EXPERIMENT) == experiment and SITE in model.tags]
        token = page.token or ""
    return sorted(found, key=lambda model: model.tags[SITE])


def _chosen(
    models: Sequence[RegisteredModel], experiment: str, site: str | None, alias: str, where: str
) -> RegisteredModel:
    """The registered model of a site, or the only one.

    Raises:
        UserError: there is none, or several.
    """
    sites = [model.tags[SITE] for model in models]
    if not models:
        aliases = "" if alias in ALIASES else f"; the aliases that a launch gives: {suggest(alias, ALIASES)}"
        raise UserError(
            f"alias: no SAE of {experiment!r} is in the model registry at {where}: its launches were before there was "
            "one, or have tracking.registry: false; running the sweep again without that enters them, or give max_l0 "
            f"in the alias's place{aliases}"
        )
    if site is None and len(models) > 1:
        raise UserError(f"site: {len(models)} are in the model registry, name one (one of: {', '.join(sites)})")
    if site is not None and site not in sites:
        raise UserError(f"site: no {site!r} of {experiment!r} is in the model registry; {suggest(site, sites)}")
    return models[0] if site is None else models[sites.index(site)]
