"""SAEs from elsewhere that a launch is compared with: which they are, and their evaluations.

{sweep}/launches/{id}/references/{identity}.json   what is compared with a launch (`Reference`)
references/{identity}/{fingerprint}.json           its evaluation on the held-out contexts of that fingerprint, for all
                             launches of a storage: the fields of a trial's (see `storage.trial_directory`), `step` is 0

The SAEs themselves stay where they are. What is damaged is as if it were not there, and is made again.
"""

from __future__ import annotations

from pathlib import Path

from typing_extensions import TypedDict

from gsae_ray.errors import DamagedError
from gsae_ray.evaluation.metrics import Evaluation, schema_version
from gsae_ray.files import LOCAL, JSONFile, Storage, digest
from gsae_ray.storage.evaluations import EVALUATION, EvaluationRecord, evaluation_record, schema_of


class Reference(TypedDict):
    """An SAE from elsewhere at a site of a launch."""

    origin: str
    """What the frontier calls it."""
    source: str
    """Where it was read from."""
    site: str
    trained_at: str
    """The site that its own files name; empty where they name none."""
    architecture: str
    d_in: int
    d_sae: int
    sae: str
    """The hash of what it computes (`saes.files.function_hash`)."""


REFERENCE = JSONFile(Reference, "evaluate this SAE again, by `gsae-ray evaluate` or its sweep", sealed=True)


def name_of(reference: Reference) -> str:
    """What a reference is called in lines of text: several may have the same `origin`."""
    origin, source = reference["origin"], reference["source"]
    return origin if Path(source).name == Path(origin).name else f"{origin} ({source})"


def reference_id(reference: Reference) -> str:
    """What the reference's files are named by: the same for the same SAE at the same site."""
    return digest([reference["sae"], reference["site"]])[:16]


def folder_of(root: Path, reference: Reference) -> Path:
    """Where a storage keeps the evaluations of a reference."""
    return root / "references" / reference_id(reference)


def evaluation_of(
    root: Path, reference: Reference, fingerprint: str, storage: Storage = LOCAL
) -> EvaluationRecord | None:
    """The evaluation of a reference, of any schema, if there is one.

    Args:
        root: of the storage.
        reference: the SAE and its site.
        fingerprint: of the held-out contexts.
        storage: in which it is.
    """
    found = EVALUATION.read_whole(_evaluation_path(root, reference, fingerprint), storage)
    return found if found is not None and found["sae"] == reference["sae"] else None


def lacks_evaluation(root: Path, reference: Reference, fingerprint: str, storage: Storage = LOCAL) -> bool:
    """Whether a reference is still to be evaluated, or again, for want of metrics."""
    found = evaluation_of(root, reference, fingerprint, storage)
    return found is None or schema_of(found) < schema_version()


def save_evaluation(
    root: Path, reference: Reference, fingerprint: str, evaluation: Evaluation, storage: Storage = LOCAL
) -> None:
    """Saves the evaluation of a reference. Any process may: all that evaluate it come to the same numbers."""
    path = _evaluation_path(root, reference, fingerprint)
    storage.make_folder(path.parent)
    EVALUATION.write(path, evaluation_record(evaluation, "eval", 0, reference["sae"]), storage)


def _evaluation_path(root: Path, reference: Reference, fingerprint: str) -> Path:
    return folder_of(root, reference) / f"{fingerprint[:16]}.json"


def add_reference(launch: Path, reference: Reference, storage: Storage = LOCAL) -> None:
    """Has a launch compared with a reference, from now on under this `origin`.

    Args:
        launch: the launch's folder.
        reference: the SAE and its site.
        storage: in which the folder is.
    """
    folder = launch / "references"
    storage.make_folder(folder)
    REFERENCE.write(folder / f"{reference_id(reference)}.json", reference, storage)


def references_of(launch: Path, storage: Storage = LOCAL) -> tuple[list[Reference], list[str]]:
    """The references of a launch, and a line about each file of them that is damaged."""
    found, notes = [], []
    for name in storage.names(launch / "references"):
        if name.endswith(".json"):
            try:
                reference = REFERENCE.read(launch / "references" / name, storage)
            except DamagedError as error:
                notes.append(str(error))
            else:
                found += [] if reference is None else [reference]
    return found, notes
