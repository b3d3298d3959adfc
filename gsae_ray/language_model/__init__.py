"""Loading language models, and reading and editing their activations."""
