"""Protections: changes that leave a model's function as it is and make merging it useless, one file a method."""
