"""Responders: anything that answers a prompt."""

from palimpsest.responder.local import Generated, LocalResponder

__all__ = ["Generated", "LocalResponder"]
