"""Early stopping: its rules by name, their place in Ray Tune, and replays of them."""
