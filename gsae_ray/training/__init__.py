"""Training one SAE. Only `trainable` knows Ray."""
