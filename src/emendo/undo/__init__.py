"""Take an update out of a sequence without a model: algebra on what the updates store.

`without` is fast and approximate where the real model is not linear; replaying the later edits (planning their requests
again) is exact and takes a target search for each. `docs/guides/undo.md` derives the one and compares it with the
other.
"""

from emendo.undo.removal import metric_layers, without

__all__ = ["metric_layers", "without"]
