"""Removals on the weights: pruning, quantisation, noise. Tensors are read, changed and written one after the other."""
