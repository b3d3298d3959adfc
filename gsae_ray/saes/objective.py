"""What training minimises."""

from __future__ import annotations

from typing import Literal

Choice = Literal["paper", "norm_weighted"]
"""The objectives that a sweep file chooses between."""
Objective = Literal["paper", "norm_weighted", "unit_norm"]
"""What training minimises, beyond the architecture's own terms.

paper: plain L1, Σ_i f_i; decoder rows of unit norm, renormalised after every step (Rajamanoharan et al. 2024).
norm_weighted: Σ_i f_i ‖d_i‖ with free norms, which are folded into the encoder when training ends (Conerly et al.
2024, "Update on dictionary learning improvements"; the paper's authors advise it since).
unit_norm: the loss of an architecture that has one objective only; decoder rows as in `paper`.
"""
CHOICES: tuple[Choice, ...] = ("paper", "norm_weighted")
SparsityUnits = Literal["l1", "square_norm"]
"""Units of the coefficient of a sparsity penalty: `training.l1_units`, or E‖x‖², of which it is a share."""
