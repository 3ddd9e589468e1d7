"""The only package that imports mlflow: runs, artifacts, models, registry, leaderboard."""
