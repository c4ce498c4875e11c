"""Responders: anything that answers a prompt."""

from palimpsest.responder.classifier import Classified, ClassifierResponder
from palimpsest.responder.local import Generated, LocalResponder
from palimpsest.responder.wrapped import Responder, Wrapped

__all__ = ["Classified", "ClassifierResponder", "Generated", "LocalResponder", "Responder", "Wrapped"]
