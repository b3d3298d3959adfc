"""The process that runs a launch."""
