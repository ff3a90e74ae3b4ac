"""The report of a search: summary, leaderboard and pictures, for its page in MLflow."""
