"""A sweep file, and the trials that it expands to."""
