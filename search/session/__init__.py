"""Running a search: preflight, teacher, trials, confirmation."""
