"""The version of the package, and the revision of how numbers are computed.

The revision is part of every identity, so that what another computed is not reused.
"""

__version__ = "0.1.0"

REVISION = 2
"""Raised when the same sweep file comes to other numbers than before, with the reason in `WHY`."""

WHY = (
    "numbers of before may be wrong where modules write in place, token columns were cut anew, rows of massive norm "
    "set the scale, or text was stale; nothing of before is taken for done"
)
"""Why the last revision was needed, for a launch to tell."""
