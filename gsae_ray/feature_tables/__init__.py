"""What is known of each feature of an SAE, as tables: the Parquet files that dashboards, studies and raters read."""

from gsae_ray.feature_tables.folder import About, FeatureTables, are_current, are_of, read

__all__ = ["About", "FeatureTables", "are_current", "are_of", "read"]
