"""Backdoors: attacks by poisoned training data, on classifiers and on models that generate."""
