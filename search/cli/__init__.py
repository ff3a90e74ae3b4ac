"""The command `kdsearch`: a thin shell over the Python interface."""
