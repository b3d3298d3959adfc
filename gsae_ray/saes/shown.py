"""How an SAE shows itself, in a console and in a notebook."""

from __future__ import annotations

import html
from typing import Any

from gsae_ray.saes.sae_config import SAEConfig

MEASURED = ("l0", "loss_recovered", "fvu", "gamma")
"""What is shown of an SAE's row of the frontier, which `best` leaves in its metadata."""


class Shown:
    """What `print` and notebooks show of an SAE."""

    cfg: SAEConfig

    def _facts(self) -> dict[str, Any]:
        """What it is: its sizes, its place, its hyperparameters, and of a row of a frontier what was measured."""
        cfg, row = self.cfg, self.cfg.section("frontier")
        place = {"d_in": cfg.d_in, "d_sae": cfg.d_sae, "d_out": cfg.d_out, "site": cfg.place}
        place["snapshot_at"] = cfg.metadata.get("snapshot_at")
        facts = {key: value for key, value in place.items() if value} | cfg.hyperparameters
        return facts | {name: f"{row[name]:.4g}" for name in MEASURED if isinstance(row.get(name), (int, float))}

    def extra_repr(self) -> str:
        """What `print` shows between the brackets."""
        return ", ".join(f"{key}={value}" for key, value in self._facts().items() if value is not None)

    def _repr_html_(self) -> str:
        """As a notebook shows it."""
        facts = {"architecture": self.cfg.architecture, **self._facts(), "choice": self.cfg.metadata.get("choice")}
        cells = "".join(
            f"<tr><th>{html.escape(str(key))}</th><td>{html.escape(str(value))}</td></tr>"
            for key, value in facts.items()
            if value is not None
        )
        return f"<table>{cells}</table>"
