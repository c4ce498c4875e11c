"""Removals by merging: weights of other models are mixed with the marked one's, tensor by tensor."""
