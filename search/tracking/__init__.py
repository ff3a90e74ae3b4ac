"""Everything that talks to MLflow: runs, the runs table of its pages, the model registry."""
