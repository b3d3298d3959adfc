"""Synthetic activations: rows that are made from a dictionary of features that is known. No language model, no Ray."""
