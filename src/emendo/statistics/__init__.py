"""Second moments of preserved keys: collected in one pass, merged, stored and verified."""

from emendo.statistics.collect import collect_moments
from emendo.statistics.corpus import Corpus, DatasetCorpus, TextCorpus, open_corpus
from emendo.statistics.expert_moment import ExpertSecondMoment
from emendo.statistics.mixture import MixturePart, parse_mixture
from emendo.statistics.obtain import Corpora, describe_for_method, obtain_for_method, obtain_moments
from emendo.statistics.openings import OpeningsCorpus
from emendo.statistics.sample import SelfSampledCorpus
from emendo.statistics.second_moment import SecondMoment
from emendo.statistics.spec import Fingerprint, MomentSpec, default_tokens
from emendo.statistics.store import MomentHeader, MomentStore, StoredMoment, StoreEntry, read_moment

__all__ = [
    "Corpora",
    "Corpus",
    "DatasetCorpus",
    "ExpertSecondMoment",
    "Fingerprint",
    "MixturePart",
    "MomentHeader",
    "MomentSpec",
    "MomentStore",
    "OpeningsCorpus",
    "SecondMoment",
    "SelfSampledCorpus",
    "StoreEntry",
    "StoredMoment",
    "TextCorpus",
    "collect_moments",
    "default_tokens",
    "describe_for_method",
    "obtain_for_method",
    "obtain_moments",
    "open_corpus",
    "parse_mixture",
    "read_moment",
]
