"""What a distillation method is: what it reads of both networks, what is searched, its loss."""
