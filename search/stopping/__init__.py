"""Early stopping by successive halving: its rungs, its place in Ray Tune, and replays of it."""
