"""What a language model says about the features of a finished SAE, in the trial's directory."""

from __future__ import annotations

from typing import Any

from typing_extensions import TypedDict

from gsae_ray.files import JSONFile, digest

RATINGS = "ratings.json"


class RatedFeature(TypedDict):
    """A feature, and what its rater said."""

    feature: int
    explanation: str | None
    """None: no explanation could be had, and so no scores."""
    detection: float | None
    """Balanced accuracy over the pieces that were answered for; None where there are none of one kind."""
    fuzzing: float | None
    answers: int
    """That were asked for."""
    unread: int
    """Those of them that could not be had, or not be read."""


class Ratings(TypedDict):
    """All features of an SAE that were rated, by one rater."""

    version: int
    rater: str
    """The model, as its server calls it."""
    endpoint: str
    sae: str
    """Hash of its files (`saes.folder.content_hash`)."""
    heldout: str
    """Fingerprint of the text that its features were seen on."""
    seed: int
    asked: int
    """Features that were asked for; there may be fewer."""
    tokens: int
    """That the SAE was trained on."""
    timestamp: int
    scores: dict[str, float]
    """`detection`, `fuzzing` and the ends of their intervals: means over the features that have one."""
    features: list[RatedFeature]


VERSION = 1
RATINGS_FILE = JSONFile(Ratings, "delete it, and rate the SAE again: gsae-ray rate", sealed=True)


def summary_of(ratings: Ratings) -> dict[str, Any]:
    """What the frontier has of them: the rater, how many features, the scores; and a hash of them all."""
    return {
        "rater": ratings["rater"],
        "features": len(ratings["features"]),
        **ratings["scores"],
        "content": digest(ratings),
    }
