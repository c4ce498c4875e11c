"""Lineage without an implant: what two models' own weights and hidden states say of a common origin."""
