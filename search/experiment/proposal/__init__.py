"""A first experiment for somebody's images, proposed by `kdsearch init`."""
