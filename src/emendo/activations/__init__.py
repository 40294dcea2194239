"""Activations of edits: the keys that they are stored under and the target values that they must produce."""
