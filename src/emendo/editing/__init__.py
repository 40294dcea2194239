"""Editing: from requests to an update (`plan`), and the model that holds it (`session`)."""
