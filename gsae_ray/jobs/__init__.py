"""The laptop's side of a cluster."""
