"""Tokens to shared chunks of activations."""
