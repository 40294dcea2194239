"""What to ask of an edit beside its own prompt: neighbors, paraphrases and questions, proposed for given requests."""

from emendo.expansion.expand import Expansion, Found, expand_records
from emendo.expansion.relations import Recognition, Relation, packaged_relations, recognise_relation

__all__ = [
    "Expansion",
    "Found",
    "Recognition",
    "Relation",
    "expand_records",
    "packaged_relations",
    "recognise_relation",
]
