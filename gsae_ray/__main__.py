"""`python -m gsae_ray …`: the command line, where its script is not on the path."""

from gsae_ray.cli.main import main

main(prog_name="gsae-ray")
