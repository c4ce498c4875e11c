"""Removals that act while a model decodes: a responder around the model; nothing is written."""
