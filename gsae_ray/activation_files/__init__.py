"""Activations on disk: what `gsae-ray collect` writes, and what sweeps read in place of a language model."""
