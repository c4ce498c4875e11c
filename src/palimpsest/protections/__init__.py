"""Protections against unauthorised merging, one file a method; `traits` says what each takes, costs and changes."""
