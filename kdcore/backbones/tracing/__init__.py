"""Finding the taps of networks that declare none: torch.fx traces them."""
