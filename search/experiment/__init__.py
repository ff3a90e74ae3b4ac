"""What a user writes: the experiment file, and the search space that follows from it."""
