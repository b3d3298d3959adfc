"""What sections of a sweep file say that does not go together, as (key, what is wrong with it)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gsae_ray.config.explain import Key
from gsae_ray.config.features import FeatureSettings
from gsae_ray.config.recipe import TrainingSettings
from gsae_ray.config.sae_settings import SAESettings
from gsae_ray.config.sections import ReferenceSettings
from gsae_ray.config.site import Site, SiteSettings
from gsae_ray.config.transcoders import target_problems
from gsae_ray.config.trial import TrialSpec
from gsae_ray.errors import UserError, shown, suggest


def device_problems(settings: TrainingSettings, gpus: float | str) -> Iterator[tuple[str, str]]:
    """What of an entry's training does not run where its trials do, as (key, text).

    Args:
        settings: of the entry.
        gpus: `trials.gpus`.
    """
    engine, precision = settings.engine, settings.precision
    if engine == "sparse-cpu" and gpus != 0:
        yield (
            "engine",
            f"{engine} is for trials on CPUs, and trials.gpus is {gpus}; engine: dense or sparse-cuda runs there, "
            "or set trials.gpus to 0",
        )
    if engine == "sparse-cuda" and gpus == 0:
        yield (
            "engine",
            f"{engine} is for trials on GPUs, and trials.gpus is 0; engine: sparse-cpu or dense runs there, or set "
            "trials.gpus",
        )
    if precision == "float32":
        return
    if gpus == 0:
        yield (
            "precision",
            f"{precision} is for trials on GPUs, and trials.gpus is 0; precision: float32 runs there, or set "
            "trials.gpus",
        )
    elif engine not in ("dense", "auto"):  # auto is dense on GPUs
        yield (
            "precision",
            f"{precision} is for engine: dense, and engine is {engine}; take engine: dense, or precision: float32",
        )


def snapshot_problems(base: TrainingSettings, saes: Sequence[SAESettings]) -> list[tuple[Key, str]]:
    """The `snapshots_at` that no trial has, since it ends before them.

    Args:
        base: `training` of the sweep.
        saes: the entries, each with training that is fine by itself.
    """
    own = {index: entry for index, entry in enumerate(saes) if "snapshots_at" in (entry.model_extra or {})}
    shared = [entry for index, entry in enumerate(saes) if index not in own]
    groups: list[tuple[Key, list[SAESettings]]] = [(("training", "snapshots_at"), shared)]
    groups += [(("saes", index, "snapshots_at"), [entry]) for index, entry in own.items()]
    if base.snapshots_at and not shared:
        return [(groups[0][0], "nothing reads it: every entry of saes has its own; leave it out")]
    found: list[tuple[Key, str]] = []
    for key, entries in groups:
        trained = [entry.training(base) for entry in entries]
        kept = {tokens for training in trained for tokens in training.snapshots_before_end}
        late = [tokens for training in trained[:1] for tokens in training.snapshots_at if tokens not in kept]
        if late:
            longest = max(training.tokens for training in trained)
            found.append((key, f"{shown(late[0])} is not before the end of any trial ({longest} tokens); lower it"))
    return found


def site_problems(
    sites: SiteSettings, every: Sequence[Site], saes: Sequence[SAESettings], references: Sequence[ReferenceSettings]
) -> list[tuple[Key, str]]:
    """What is wrong with filters of entries and sites of references, once it is known which layers are meant.

    Args:
        sites: of the sweep.
        every: the sites that there are.
        saes: the entries.
        references: SAEs from elsewhere.
    """
    found: list[tuple[Key, str]] = []
    for index, entry in enumerate(saes):
        selected = [site for site in every if entry.selects(site)]
        if entry.target is not None:
            found += [(("saes", index, "target"), text) for text in target_problems(entry.target, selected)]
        if not selected:
            found.append((("saes", index, "sites"), "this filter leaves none of the sweep's sites"))
        elif entry.sites is not None:
            for key in ("layers", "points", "modules"):
                missing = [value for value in getattr(entry.sites, key) if value not in getattr(sites, key)]
                found += [
                    (("saes", index, "sites", key), f"{shown(value)} is not among the sweep's own sites")
                    for value in missing
                ]
    if not found:
        own = [entry.site_of(site).name for site in every for entry in saes if entry.selects(site)]
        found += [
            (
                ("references", index, "site"),
                f"no SAE of this sweep is at {shown(given.site)}; {suggest(given.site, own)}",
            )
            for index, given in enumerate(references)
            if given.site not in own
        ]
    return found


def check_distinct(trials: Sequence[TrialSpec]) -> None:
    """Checks that no two trials are the same SAE, or have one name.

    Raises:
        UserError: two are.
    """
    seen: dict[str, str] = {}
    for trial in trials:
        # The same name in one folder, or the same SAE under two names: either way one of them is too much.
        same = next((seen[key] for key in (trial.name, trial.identity) if key in seen), None)
        if same is not None:
            also = "" if same == trial.name else f" (also as {same})"
            raise UserError(f"saes: two entries describe the trial {trial.name}{also}")
        seen |= {trial.name: trial.name, trial.identity: trial.name}


def check_features(trials: Sequence[TrialSpec], settings: FeatureSettings | None) -> None:
    """Checks that the pieces of text of an SAE's features can be in one table.

    Raises:
        UserError: they hold more tokens than its lists can.
    """
    if settings is None:
        return
    widest = max(trials, key=lambda trial: trial.d_sae)
    if (tokens := widest.d_sae * settings.contexts * settings.window) >= 2**31:
        raise UserError(
            f"evaluation.features: {settings.contexts} pieces (contexts) of {settings.window} tokens (window) for each "
            f"feature of {widest.name} are {tokens:,} tokens, and a table of pieces holds {2**31 - 1:,}; lower either"
        )


def check_pursuit(trials: Sequence[TrialSpec], pursuit_l0: Sequence[int]) -> None:
    """Checks that every SAE has the features that gradient pursuit may use.

    Raises:
        UserError: an SAE is narrower than one of `evaluation.pursuit_l0`.
    """
    narrowest = min(trials, key=lambda trial: trial.d_sae)
    for l0 in pursuit_l0:
        if l0 > narrowest.d_sae:
            raise UserError(
                f"evaluation.pursuit_l0: {l0} features a row, but {narrowest.name} has only {narrowest.d_sae}; lower it"
            )
