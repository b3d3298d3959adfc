"""Publishing the SAEs of a frontier: a folder that is a repository of the Hugging Face hub, and its upload."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pandas as pd

from gsae_ray.config.synthetic import SYNTHETIC
from gsae_ray.errors import UserError, first_line, shown
from gsae_ray.evaluation.metrics import METRICS, AbsentSumError, resampled
from gsae_ray.names import folder_name, local_path
from gsae_ray.results.comparison import check_tokens, own_saes, sequences, snapshot_of
from gsae_ray.results.frontier import frontier
from gsae_ray.results.intervals import Interval, interval, of
from gsae_ray.results.model_card import PICTURE, PublishedSAE, model_card
from gsae_ray.results.plots import save_frontier
from gsae_ray.results.saved import load_run
from gsae_ray.saes import SAE
from gsae_ray.saes.folder import visible_files
from gsae_ray.saes.hub import is_repository
from gsae_ray.saes.saelens_config import NO_FORM
from gsae_ray.saes.serialise import saelens_form_or_reason, weight_bytes
from gsae_ray.version import __version__


def push(
    experiment: str,
    repo: str,
    site: str | None = None,
    launch: str | None = None,
    tracking_uri: str | None = None,
    tokens: int | str | None = None,
    private: bool = False,
    base_model: str | None = None,
    license: str | None = None,
    dry_run: str | Path | None = None,
) -> str:
    """Publishes the SAEs on a sweep's frontier in a repository of the Hugging Face hub, in one commit.

    Each is a folder `{site}/width_{N}/l0_{N}`, which SAELens and `gsae_ray.load` read. Besides there are the frontier's
    picture and a model card. What is in the repository under other names stays; pushing the same again changes nothing.

    Args:
        experiment: as for `frontier`.
        repo: `owner/name`; it is made if need be.
        site: only SAEs of this one.
        launch: as for `frontier`.
        tracking_uri: as for `frontier`.
        tokens: as for `frontier`.
        private: make a new repository private; one that is there has to be.
        base_model: the language model's name on the hub, where the sweep read it from a folder.
        license: of the SAEs, as the hub writes it (`apache-2.0`).
        dry_run: write the repository's files to this new or empty folder, and upload nothing.

    Returns:
        The repository's address; of a dry run, the folder.

    Raises:
        UserError: as `frontier`; no SAE is on it, or one cannot be had; the folder has files; or the hub refuses.
    """
    _check_repository(repo)
    folder = None if dry_run is None else _new_folder(dry_run)
    if folder is None:
        _check_token()
    rows = frontier(experiment, site, launch, tracking_uri, tokens=tokens)
    if tokens is None:
        check_tokens(rows)  # each number of them has a frontier of its own
    chosen = rows[rows["on_frontier"]]
    if chosen.empty:
        raise UserError("; ".join([f"push: no SAE of {experiment!r} is on a frontier", *rows.attrs["notes"]]))
    with tempfile.TemporaryDirectory(prefix="gsae-") as temporary:
        files = Path(temporary)
        published = list(_write_saes(files, chosen, tracking_uri, base_model))
        save_frontier(own_saes(rows), files / PICTURE)  # origins of references may be paths of this machine
        (files / "README.md").write_text(
            model_card(repo, experiment, published, rows.attrs["notes"], license), encoding="utf-8"
        )
        if folder is not None:
            shutil.copytree(files, folder, dirs_exist_ok=True)
            return str(folder)
        return _upload(files, repo, private, f"{len(chosen)} SAEs of {experiment}, by gsae-ray {__version__}")


# ---- checks before anything is fetched ------------------------------------------------------------------------------


def _check_repository(repo: str) -> None:
    """Refuses what is no name of a repository.

    Raises:
        UserError: it is none.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id  # type: ignore[attr-defined]

    if not is_repository(repo):
        raise UserError(f"--repo: {shown(repo)} is no repository of the hub; give owner/name")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"--repo: {first_line(error)}") from error


def _check_token() -> None:
    from huggingface_hub import get_token

    if get_token() is None:
        raise UserError(
            "--repo: the hub wants a token that may write; set HF_TOKEN, or have the files only (--dry-run DIR)"
        )


def _new_folder(path: str | Path) -> Path:
    folder = local_path(path, "--dry-run")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--dry-run: {folder} is a file; give a folder")
    if visible_files(folder):
        raise UserError(f"--dry-run: {folder} has files; give a new or empty folder")
    return folder


# ---- what is published ----------------------------------------------------------------------------------------------


def _write_saes(
    root: Path, rows: pd.DataFrame, tracking_uri: str | None, base_model: str | None
) -> Iterator[PublishedSAE]:
    """Writes the SAEs of table rows, each to a folder of its own; one at a time is in memory."""
    names = folder_names(rows)
    for name, (_, row) in zip(names, rows.iterrows(), strict=True):
        sae = _public(load_run(row["run_id"], tracking_uri, "push", snapshot_of(row)), base_model)
        folder = name if names.count(name) == 1 else f"{name}_{hashlib.sha256(weight_bytes(sae)).hexdigest()[:8]}"
        sae.save(root / folder)
        in_saelens = not str(saelens_form_or_reason(sae)["architecture"]).startswith(NO_FORM)
        yield PublishedSAE(row, sae.cfg, in_saelens, folder, *_intervals(row, tracking_uri))


def folder_names(rows: pd.DataFrame) -> list[str]:
    """`{site}/width_{N}/l0_{N}` of each SAE, L0 being rounded. Several may share one."""
    columns = (rows[name] for name in ("site", "d_sae", "l0"))
    return [f"{folder_name(site)}/width_{d_sae}/l0_{round(l0)}" for site, d_sae, l0 in zip(*columns, strict=True)]


def _intervals(row: pd.Series[Any], tracking_uri: str | None) -> tuple[dict[str, Interval], int]:
    """The intervals of the metrics that are shown, and the number of contexts that they are over."""
    sums = sequences(row["run_id"], tracking_uri, snapshot=snapshot_of(row))
    shown_metrics = [name for name, metric in METRICS.items() if metric.table and name in resampled(features=True)]
    found: dict[str, Interval] = {}
    for name in shown_metrics:
        with contextlib.suppress(AbsentSumError):  # without a language model some are
            found[name] = interval(of(name), [[sums]])
    return found, len(np.atleast_1d(sums["rows"]))


def _public(sae: SAE, base_model: str | None) -> SAE:
    """The SAE with metadata that may be read by anybody: of paths of this machine the last name only.

    Raises:
        UserError: the language model was read from a folder, and nobody says what it is called.
    """
    metadata = dict(sae.cfg.metadata)
    model, dataset = metadata.get("model"), metadata.get("dataset")
    if isinstance(model, dict):
        if base_model is None and _is_local(model):
            raise UserError(
                f"--base-model: the sweep's language model was {shown(model['name'])}, a folder; give its name on the "
                "hub, or what it is to be called"
            )
        metadata["model"] = {**model, "name": base_model or model.get("name")}
    elif base_model is not None:
        metadata["model"] = {"name": base_model}
    if isinstance(dataset, dict) and _is_local(dataset):
        metadata["dataset"] = {**dataset, "name": PurePath(dataset["name"]).name}
    sae.cfg = sae.cfg.model_copy(update={"metadata": _without_paths(metadata)})
    return sae


def _is_local(source: dict[str, Any]) -> bool:
    """Whether a sweep read its model or data from files: of what comes from the hub the commit was written down."""
    ours = source.get("name") in ("builtin", SYNTHETIC)
    return isinstance(source.get("name"), str) and not ours and source.get("revision") is None


def _is_path(text: str) -> bool:
    """Whether a text is a path of this machine, and not a name of the hub."""
    return text.startswith(("/", "~", "./", "../")) or ("/" in text and Path(text).exists())


def _without_paths(value: Any) -> Any:
    """A JSON value in which of each path of this machine the last name is left."""
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_paths(item) for item in value]
    return PurePath(value).name if isinstance(value, str) and _is_path(value) else value


# ---- upload ---------------------------------------------------------------------------------------------------------


def _upload(folder: Path, repo: str, private: bool, message: str) -> str:
    """Makes the folder's files part of a repository by one commit; none where they are there already.

    Raises:
        UserError: the hub refuses or cannot be reached, or the repository is public and should be private.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    from gsae_ray.hub import explained_by_hub

    files = sorted(path for path in folder.rglob("*") if path.is_file())
    hub = HfApi(library_name="gsae-ray", library_version=__version__)
    with explained_by_hub(f"--repo: cannot push to {repo}"):
        address = hub.create_repo(repo, private=private or None, exist_ok=True)
        if private and not hub.model_info(repo).private:
            raise UserError(f"--private: {repo} is there already, and public; name another, or make it private first")
        additions = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in files]
        # Not `upload_folder`, which may make several commits: SAEs without the card that is of them.
        hub.create_commit(repo, additions, commit_message=message)
    return str(address)
