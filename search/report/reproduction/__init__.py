"""A reproduction beside the published figures: differences, tables and files."""
