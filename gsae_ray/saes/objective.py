"""What training minimises."""

from __future__ import annotations

from typing import Literal

Objective = Literal["paper", "norm_weighted"]
"""What training minimises, beyond the architecture's own terms.

paper: plain L1, Σ_i f_i; decoder rows of unit norm, renormalised after every step (Rajamanoharan et al. 2024).
norm_weighted: Σ_i f_i ‖d_i‖ with free norms, which are folded into the encoder when training ends (Conerly et al.
2024, "Update on dictionary learning improvements"; the paper's authors advise it since).
"""
