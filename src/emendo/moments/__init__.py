"""Second moments of preserved keys: collected in one pass, merged, stored and verified."""

from emendo.moments.collect import collect
from emendo.moments.corpus import (
    Corpus,
    DatasetCorpus,
    SelfSampledCorpus,
    TextCorpus,
    open_corpus,
)
from emendo.moments.obtain import obtain, obtain_for_method
from emendo.moments.second_moment import SecondMoment
from emendo.moments.spec import Fingerprint, MomentSpec, default_tokens
from emendo.moments.store import (
    MomentHeader,
    MomentStore,
    StoredMoment,
    StoreEntry,
    read_moment,
)

__all__ = [
    "Corpus",
    "DatasetCorpus",
    "Fingerprint",
    "MomentHeader",
    "MomentSpec",
    "MomentStore",
    "SecondMoment",
    "SelfSampledCorpus",
    "StoreEntry",
    "StoredMoment",
    "TextCorpus",
    "collect",
    "default_tokens",
    "obtain",
    "obtain_for_method",
    "open_corpus",
    "read_moment",
]
