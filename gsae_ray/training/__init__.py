"""Training one SAE on one row stream. No Ray, no MLflow."""
