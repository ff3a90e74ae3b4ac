"""The pictures of a search or a reproduction: one file a picture, and what they share.

Each picture is drawn from a record, or is None as long as there is nothing to show. Accuracies of
searches are held-out accuracies.
"""
