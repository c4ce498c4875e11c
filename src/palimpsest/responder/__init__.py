"""Responders: anything that answers a prompt."""

from palimpsest.responder.local import Generated, LocalResponder
from palimpsest.responder.wrapped import Responder, Wrapped

__all__ = ["Generated", "LocalResponder", "Responder", "Wrapped"]
