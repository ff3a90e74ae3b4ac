"""What is known of a search and its trials, and where it is stored."""
