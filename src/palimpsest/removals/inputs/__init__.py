"""Removals that act on the input: a responder that looks at the prompt first; nothing is written."""
