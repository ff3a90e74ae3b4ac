"""The pictures of a search: one file a picture, and what they share.

Each picture is drawn from a search's record, or is None as long as there is nothing to show.
Accuracies are held-out accuracies.
"""
