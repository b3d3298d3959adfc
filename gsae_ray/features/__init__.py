"""Dashboards: the features of SAEs as pages that open from disk, without a network."""
