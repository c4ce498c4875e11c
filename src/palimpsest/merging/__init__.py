"""Merging: a streaming engine, and one file a merge method.

`passes` says what a method is, `engine` runs it over chunks, `plan` decides which tensor is made of which, `folder`
writes the checkpoint. Nothing here holds a whole model, or a whole tensor.
"""
