"""A sweep's folder in storage, and what each of its launches was.

drivers/{session}.json          see `storage.driver_lock`
launches/{id}/launch.json       the sweep, resolved, and its `overrides`; its trials' identities by name, and the
                             `revision` of their numbers
launches/{id}/sweep.yaml        the same to read; versions.json, frontier.csv and .json, frontier.png, pursuit.csv,
                             report.html
launches/{id}/evaluation.json   on which held-out tokens, by fingerprint, its SAEs are evaluated, by which encoders,
                             with which probes, and which snapshots
launches/{id}/record.json       what was produced for it (`activations.production_log`)
launches/{id}/events.jsonl      what happened: {"time", "event"} a line
launches/{id}/stopped/         trials that its scheduler has stopped (see `storage.stopped`)
launches/{id}/references/       SAEs from elsewhere that it is compared with (see `storage.references`)
launches/{id}/DONE              it is finished: every trial is done, and MLflow has all of it
trials/{name}-{identity}/       see `storage.trial_directory`
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import platform
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import NotRequired, TypedDict

from gsae_ray.config import plain_yaml
from gsae_ray.config.features import FeatureSettings
from gsae_ray.config.trial import TrialSpec
from gsae_ray.errors import DamagedError, UserError
from gsae_ray.files import LOCAL, JSONFile, Storage
from gsae_ray.hardware import machine
from gsae_ray.storage.evaluations import EvaluationRequest
from gsae_ray.version import REVISION, WHY, __version__

if TYPE_CHECKING:
    from gsae_ray.config.sweep import Sweep

DONE = "DONE"
OPERATIONAL = {
    *("producers.count", "producers.budget_gib", "producers.chunk_mib", "producers.timeout_s"),
    *("trials.max_concurrent", "trials.hang_timeout_s", "trials.room_timeout_s"),
    *("references", "tracking.registry", "evaluation.features"),
    *(f"evaluation.features.{key}" for key in FeatureSettings.model_fields),
}
"""Keys that may differ when a launch is resumed: they change no result."""
Resume = bool | Literal["auto"]
"""Whether to go on with the newest launch; `auto`: with the newest that is not finished, where there is one and the
sweep is the same."""


class _Launch(TypedDict):
    sweep: dict[str, Any]
    trials: dict[str, str]
    overrides: NotRequired[list[str]]
    revision: NotRequired[int]


class _Evaluated(TypedDict):
    fingerprint: str
    encoders: list[int | str | None]
    snapshots: NotRequired[list[int]]


FIRST_ENGINE, FIRST_PRECISION = "dense", "float32"
"""Those of launches from before there were others, which name none."""
FIRST_TRAINING = {"engine": FIRST_ENGINE, "precision": FIRST_PRECISION, "snapshots_at": []}
"""What `training` did not say before there were others, or any."""
FIRST_SCHEDULER = {"stop_dominated": False, "grace_tokens": None}
FIRST_ENTRY = {"target": None, "skip": [False], "target_l0": None}
"""What an entry of `saes` did not say before there were transcoders, and SAEs that ask for an L0."""
LAUNCH = JSONFile(
    _Launch, "run without --resume: trials that are done are not trained again", sealed=True, once_unsealed=True
)
EVALUATED = JSONFile(_Evaluated, "the same command with --resume writes it again", sealed=True)
VERSIONS = JSONFile(list[dict[str, str]], "those of earlier sessions are not known any more")


def begin_launch(
    folder: Path,
    sweep: Sweep,
    trials: Sequence[TrialSpec],
    resume: Resume,
    overrides: Sequence[str] = (),
    storage: Storage = LOCAL,
) -> tuple[str, list[str]]:
    """Writes down a new launch, or finds the one to go on with.

    Args:
        folder: of the sweep.
        sweep: with what it says of its model and data looked up.
        trials: of the sweep, which its launches have the identities of.
        resume: see `Resume`.
        overrides: those of the sweep file, for whoever resumes without them (`recorded_overrides`).
        storage: in which the folder is.

    Returns:
        its id, and what the user should know: how this session differs from those before.

    Raises:
        UserError: there is nothing to resume, or it has changed (not with `auto`).
    """
    description, identities = json.loads(sweep.model_dump_json()), {trial.name: trial.identity for trial in trials}
    found, notices = _resumable(folder, description, identities, resume, storage)
    if found is not None:
        launch, before = found
        storage.remove(launch / DONE)
        _write_sweep(launch, before["sweep"], storage)  # to read, and to be mirrored: it may be gone
        return launch.name, _add_versions(launch, storage)
    # In UTC, since the newest is found by name, from machines anywhere.
    launch_id = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"
    target = folder / "launches" / launch_id
    storage.make_folder(target)
    _add_versions(target, storage)
    _write_sweep(target, description, storage)
    LAUNCH.write(
        target / "launch.json",
        {"sweep": description, "overrides": list(overrides), "trials": identities, "revision": REVISION},
        storage,
    )
    return launch_id, notices


def check_resume(
    folder: Path, sweep: Sweep, trials: Sequence[TrialSpec], resume: Resume, storage: Storage = LOCAL
) -> Path | None:
    """Refuses what `begin_launch` would refuse, before anything is started.

    Returns:
        the folder of the launch that it would go on with; None for a new one.

    Raises:
        UserError: as `begin_launch`.
    """
    identities = {trial.name: trial.identity for trial in trials}
    found, _ = _resumable(folder, json.loads(sweep.model_dump_json()), identities, resume, storage)
    return None if found is None else found[0]


def _resumable(
    folder: Path, description: dict[str, Any], identities: dict[str, str], resume: Resume, storage: Storage
) -> tuple[tuple[Path, _Launch] | None, list[str]]:
    """The launch to resume, or None where a new one is to be made; and notices about a new one."""
    earlier = _launches(folder, storage)
    newest = LAUNCH.read_whole(earlier[-1] / "launch.json", storage) if earlier else None
    notices = [f"every trial is trained anew: {WHY}"] if newest and _revision(newest) != REVISION else []
    if resume == "auto":
        earlier = [launch for launch in earlier if not storage.exists(launch / DONE)]
    elif resume and not earlier:
        raise UserError(f"--resume: no launch of {folder.name!r} in {folder.parent}; run it without --resume")
    if not resume or not earlier:
        return None, notices
    launch = earlier[-1]
    try:
        before = _read(launch, storage)
        changed, remedy = _changed(before, description, identities, launch.name)
    except DamagedError as error:
        if resume != "auto":
            raise
        changed = str(error)
    if not changed:
        return (launch, before), []
    if resume != "auto":
        raise UserError(f"--resume: {changed}; {remedy}")
    return None, notices or [f"{changed}; this is another launch, and trials that are done are not trained again"]


def finish_launch(folder: Path, launch_id: str, session: int, storage: Storage = LOCAL) -> None:
    """Marks a launch as one that `auto` does not go on with: every trial is done, and MLflow has all of it."""
    storage.replace(folder / "launches" / launch_id / DONE, json.dumps({"session": session}).encode())


def recorded_overrides(folder: Path, storage: Storage = LOCAL) -> list[str]:
    """The overrides that the sweep file had in the newest launch.

    Raises:
        DamagedError: it cannot be read.
    """
    earlier = _launches(folder, storage)
    return _read(earlier[-1], storage).get("overrides", []) if earlier else []


def recorded_engine(folder: Path, storage: Storage = LOCAL) -> str | None:
    """`training.engine` of the newest launch that can be read; None where none can, or its numbers are not ours."""
    for path in reversed(_launches(folder, storage)):
        with contextlib.suppress(DamagedError):
            launch = _read(path, storage)
            engine: str = launch["sweep"].get("training", {}).get("engine", FIRST_ENGINE)
            return engine if _revision(launch) == REVISION else None
    return None


def _launches(folder: Path, storage: Storage) -> list[Path]:
    """Folders of those that are written down whole, the newest last."""
    launches = [folder / "launches" / name for name in storage.names(folder / "launches")]
    return [launch for launch in launches if storage.exists(launch / "launch.json")]


def _read(launch: Path, storage: Storage) -> _Launch:
    found = LAUNCH.read(launch / "launch.json", storage)
    assert found is not None, "that is how it was found"
    return found


def _revision(launch: _Launch) -> int:
    """The revision of a launch's numbers; the first launches do not name theirs, which is 1."""
    return launch.get("revision", 1)


def _changed(
    before: _Launch, description: dict[str, Any], identities: dict[str, str], launch_id: str
) -> tuple[str, str]:
    """What differs from an earlier launch, and what the user can do; both empty where nothing does."""
    anew = "run without --resume"
    if _revision(before) != REVISION:
        return f"launch {launch_id} was begun by another version of gsae-ray: {WHY}", anew
    anew += " (trials that are done are kept)"
    training = {**FIRST_TRAINING, **before["sweep"].get("training", {})}
    saes = [{**FIRST_ENTRY, **entry} for entry in before["sweep"].get("saes", [])]
    tracking = before["sweep"].get("tracking", description.get("tracking"))  # launches of before have none
    now_known = {"training": training, "saes": saes, "tracking": tracking}
    as_now = {"scheduler": FIRST_SCHEDULER, **before["sweep"], **now_known}
    keys = sorted(set(_differences(as_now, description)) - OPERATIONAL)
    if keys:
        return f"the sweep file has changed since launch {launch_id}: {', '.join(keys)}", f"change it back, or {anew}"
    if before["trials"] == identities:
        return "", ""
    others = [name for name, identity in identities.items() if before["trials"].get(name) != identity]
    return (
        f"the model, the data or a parent SAE has changed since launch {launch_id}, though not in the sweep file "
        f"({len(others)} of {len(identities)} trials would be other ones, as "
        f"{others[0] if others else 'those that are gone'})",
        f"bring it back, or {anew}",
    )


def _write_sweep(launch: Path, description: dict[str, Any], storage: Storage) -> None:
    storage.replace(launch / "sweep.yaml", plain_yaml.dump(description).encode())


def _add_versions(launch: Path, storage: Storage) -> list[str]:
    """Adds this session's versions to the launch's, with a notice where they differ from the last one's."""
    path, mine = launch / "versions.json", versions()
    try:
        before = VERSIONS.read(path, storage) or []
    except DamagedError as error:
        VERSIONS.write(path, [mine], storage)
        return [str(error)]
    VERSIONS.write(path, [*before, mine], storage)
    changed = [key for key in mine if before and before[-1].get(key) != mine[key]]
    changes = "; ".join(f"{key}: {before[-1].get(key)} before, {mine[key]} now" for key in changed)
    notice = f"the launch goes on elsewhere; the last bits of SAEs that are not done may depend on that: {changes}"
    return [notice] if changed else []


def trial_folder(folder: Path, trial: TrialSpec, storage: Storage = LOCAL) -> Path:
    """Where a trial keeps its state: by identity, since names tell only what differs within one file."""
    return find_trial(folder, trial.identity, storage) or folder / "trials" / trial.directory_name


def find_trial(folder: Path, identity: str, storage: Storage = LOCAL) -> Path | None:
    """Where the trial of that identity keeps its state, if it has begun."""
    names = [name for name in storage.names(folder / "trials") if name.endswith(f"-{identity[:8]}")]
    return folder / "trials" / names[0] if names else None


def _differences(before: Any, now: Any, path: str = "") -> Iterator[str]:
    """Dotted keys at which two JSON values differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before.keys() | now.keys():
            yield from _differences(before.get(key), now.get(key), f"{path}.{key}" if path else key)
    elif before != now:
        yield path


def versions() -> dict[str, str]:
    """What the numbers of a launch depend on besides its settings."""
    names = ("torch", "transformers", "ray", "mlflow", "datasets", "numpy")
    return {
        "gsae-ray": __version__,
        "python": platform.python_version(),
        "machine": machine(),
        **{name: _version(name) for name in names},
    }


@functools.cache
def _version(package: str) -> str:
    """The version that is installed; to find it, all that is installed is looked through."""
    return importlib.metadata.version(package)


def asked_in(found: _Evaluated) -> EvaluationRequest:
    """What `write_request` wrote, once it is read."""
    return EvaluationRequest(found["fingerprint"], tuple(found["encoders"]), tuple(found.get("snapshots", ())))


def fingerprint_of(launch: Path, storage: Storage = LOCAL) -> str | None:
    """That of the held-out contexts on which a launch's SAEs are evaluated; None where that is not known."""
    found = EVALUATED.read_whole(launch / "evaluation.json", storage)
    return None if found is None else found["fingerprint"]


def write_request(launch: Path, request: EvaluationRequest, storage: Storage = LOCAL) -> None:
    """Writes down what a launch asks for, for whoever reads its results."""
    found: _Evaluated = {"fingerprint": request.fingerprint, "encoders": list(request.encoders)}
    if request.snapshots:
        found["snapshots"] = list(request.snapshots)
    EVALUATED.write(launch / "evaluation.json", found, storage)
