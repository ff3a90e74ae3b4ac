"""How the trials of a search rank, and every form in which that is shown."""
