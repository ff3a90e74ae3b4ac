"""Ray clusters: connecting, their machines, searches submitted to them."""
