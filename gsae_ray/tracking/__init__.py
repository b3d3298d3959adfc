"""Storage to MLflow."""
