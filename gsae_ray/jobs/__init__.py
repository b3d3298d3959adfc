"""The laptop's side of a cluster."""

import gsae_ray.driver  # noqa: F401  (Ray's environment is set before a module of this package imports Ray)
