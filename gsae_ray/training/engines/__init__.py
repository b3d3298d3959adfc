"""Engines: ways to compute the losses and the gradient of a training step, a file each."""
