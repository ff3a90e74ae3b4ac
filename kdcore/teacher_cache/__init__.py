"""A cache of the teacher's outputs, local and shared between machines."""
