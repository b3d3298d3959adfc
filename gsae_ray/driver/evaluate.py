"""SAEs from elsewhere on the held-out tokens of a launch, evaluated in this process, without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console

from gsae_ray.config.site import Site
from gsae_ray.driver.display import Display
from gsae_ray.driver.launched import find_launched, own_producer
from gsae_ray.driver.references import evaluate_reference
from gsae_ray.errors import NumericError, UserError, shown, suggest
from gsae_ray.evaluation.reconstruction import check_width
from gsae_ray.results.columns import columns
from gsae_ray.results.frontier import metrics_of
from gsae_ray.results.outcomes import StorageOutcomes
from gsae_ray.results.references import made_for_another_model, open_reference, row_of, trained_elsewhere
from gsae_ray.saes import SAEConfig
from gsae_ray.storage.references import Reference, add_reference, lacks_evaluation, reference_id
from gsae_ray.tracking.references import record_references


def evaluate(
    sources: str | Path | Sequence[str | Path],
    like: str,
    site: str,
    *,
    name: str | None = None,
    launch: str | None = None,
    tracking_uri: str | None = None,
    storage: str | Path | None = None,
    console: Console | None = None,
) -> pd.DataFrame:
    """Evaluates SAEs from elsewhere as a launch's own were, and shows them on its frontier from now on.

    They are spliced into the same model on the same held-out tokens, in this process. What was evaluated before is not
    evaluated again, and one that was interrupted goes on. Storage keeps the evaluations, MLflow mirrors them; the SAEs
    stay where they are.

    Args:
        sources: folders in any format that `gsae_ray.load` reads, trials' directories, ids of runs, or SAEs of the
            Hugging Face hub.
        like: the experiment whose launch they are compared with.
        site: of the launch, where they are spliced in.
        name: what the frontier calls them (its `origin`); default: each by its source.
        launch: its id; default: the newest.
        tracking_uri: of MLflow; default: MLFLOW_TRACKING_URI, or `mlflow.db` in the working directory.
        storage: that of the launch, where its held-out tokens are; default: `gsae_runs` in the working directory.
        console: where progress goes; default: standard error.

    Returns:
        a row for each, with the columns of `gsae_ray.frontier` (`l0_low`, `l0_high` and the like are the ends of 95 %
        intervals over the held-out contexts), and `source`: where it was read from. `attrs["notes"]`: what a reader
        should know, as lines of text.

    Raises:
        UserError: the launch's storage is not here, or its model or data are others now; an SAE cannot be read, or does
            not take the activations of the site.
    """
    say = Display(console or Console(stderr=True)).phase
    found = find_launched(like, launch, storage, "--like", "what is compared with all of them is compared with none")
    root, outcomes, folder, fingerprint = found.root, found.outcomes, found.folder, found.fingerprint
    launch_id, sweep = found.id, found.sweep(say)
    own = [trained.name for trained in sweep.trained_sites]
    if site not in own:
        raise UserError(f"--site: launch {launch_id} has no SAEs at {shown(site)}; {suggest(site, own)}")
    sources = [sources] if isinstance(sources, (str, Path)) else sources
    if not sources:
        raise UserError("evaluate: no SAE; give at least one")
    opened = [_open(str(source), site, name, tracking_uri) for source in sources]
    different = {reference_id(reference): reference for _, reference in opened}.values()
    missing = [reference for reference in different if lacks_evaluation(root, reference, fingerprint)]
    if missing:
        prepared = found.prepared(sweep, say, tracking_uri)
        widths = {Site(name): width for name, width in prepared.layout.widths.items()}
        for cfg, _ in opened:
            check_width(cfg, Site(site), widths)
        with own_producer(prepared, say) as run:
            for reference in missing:
                try:
                    evaluate_reference(reference, root, fingerprint, run, say, tracking_uri)
                except NumericError as error:
                    raise UserError(f"{reference['origin']}: it cannot be evaluated: {error}") from error
                add_reference(folder, reference)
    for _, reference in opened:
        add_reference(folder, reference)
    rows = _rows(outcomes, launch_id, [reference for _, reference in opened])
    rows.attrs["notes"] = [
        line
        for _, reference in opened
        for line in trained_elsewhere(reference["origin"], site, reference["trained_at"])
    ]
    rows.attrs["notes"] += [
        line
        for cfg, reference in opened
        if sweep.model is not None
        for line in made_for_another_model(reference["origin"], sweep.model.name, cfg.section("model").get("name"))
    ]
    try:
        rows.attrs["notes"] += record_references(tracking_uri, like, folder, fingerprint)
    except UserError as error:
        rows.attrs["notes"].append(
            f"MLflow does not show this ({error}); `gsae-ray frontier --storage` does, and the same command again "
            "brings MLflow up to date"
        )
    return rows


def _open(source: str, site: str, name: str | None, tracking_uri: str | None) -> tuple[SAEConfig, Reference]:
    """The configuration of an SAE, without its weights, and the reference that it is to be."""
    sae, reference = open_reference(source, site, name, tracking_uri)
    return sae.cfg, reference


def _rows(outcomes: StorageOutcomes, launch_id: str, references: Sequence[Reference]) -> pd.DataFrame:
    """References as rows of the frontier."""
    found = {outcome.identity: outcome for outcome in outcomes.references(launch_id)}
    rows = []
    for reference in references:
        outcome = found[reference_id(reference)]
        row = row_of(outcome) | metrics_of(outcome.evaluation) | {"on_frontier": False, "source": reference["source"]}
        rows.append(row)
    table = pd.DataFrame(rows)
    return table[[*columns(table), "source"]]
