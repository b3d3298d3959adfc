"""The evaluation of SAEs from elsewhere on the held-out tokens of a launch. No Ray here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from gsae_ray.config.site import Site
from gsae_ray.config.sweep import Sweep
from gsae_ray.errors import UserError
from gsae_ray.evaluation.metrics import Evaluation
from gsae_ray.evaluation.reconstruction import check_width
from gsae_ray.evaluation.task import Evaluate
from gsae_ray.files import disk_space_needed
from gsae_ray.results.references import check_same, open_reference
from gsae_ray.results.saved import load_from
from gsae_ray.saes import to_bytes
from gsae_ray.storage.references import Reference, name_of, save_evaluation


def read_references(sweep: Sweep, widths: Mapping[Site, int], tracking_uri: str | None) -> tuple[Reference, ...]:
    """The references of a sweep file: each is read once, to be refused before anything runs if it does not fit.

    Args:
        sweep: with its layers numbered.
        widths: of the activations at its sites.
        tracking_uri: of MLflow, which is asked for runs only.

    Raises:
        UserError: an SAE cannot be read, or takes activations of another width.
    """
    found = []
    for index, settings in enumerate(sweep.references):
        site = Site(settings.site)
        try:
            sae, reference = open_reference(settings.source, settings.site, settings.origin, tracking_uri)
            check_width(sae.cfg, site, widths)
        except UserError as error:
            raise UserError(f"references.{index}: {error}") from error
        found.append(reference)
    return tuple(found)


def evaluate_reference(
    reference: Reference,
    root: Path,
    fingerprint: str,
    run: Callable[[Evaluate], Evaluation],
    say: Callable[[str], None],
    tracking_uri: str | None = None,
) -> None:
    """Evaluates an SAE from elsewhere, and saves its evaluation.

    Args:
        reference: the SAE and its site.
        root: of the storage.
        fingerprint: of the held-out contexts.
        run: has a producer evaluate an SAE.
        say: is told what goes on.
        tracking_uri: of MLflow, which is asked for runs only.

    Raises:
        UserError: the SAE cannot be read any more, or is another one now.
        NumericError: the language model's own numbers at the site are not finite.
    """
    say(f"evaluating {name_of(reference)} at {reference['site']}")
    sae = load_from(reference["source"], tracking_uri)
    check_same(sae, reference["sae"], reference["source"])
    evaluation = run(Evaluate(reference["site"], *to_bytes(sae)))
    with disk_space_needed(root):
        save_evaluation(root, reference, fingerprint, evaluation)
