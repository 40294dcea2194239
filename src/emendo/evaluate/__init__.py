"""Judging a model, edited or not, on levels that are never named alike.

Probability and argmax (`scoring`, `aggregate`), generated text (`generated`, `entropy`, `reference`), next-token
distributions (`shift`, `text_shift`), perplexity; further questions (`probes`, `zsre`); what a sequence of edits keeps
(`retention`).
"""

from emendo.evaluate.aggregate import METRICS, EditScores
from emendo.evaluate.answered import answered
from emendo.evaluate.bootstrap import bootstrap_interval
from emendo.evaluate.drift import (
    Drift,
    NextTokenLogProbs,
    measure_drift,
    next_token_log_probs,
    text_log_probs,
)
from emendo.evaluate.entropy import EntropyScores, entropy_of_records, generation_entropy, ngram_entropy, token_entropy
from emendo.evaluate.generated import GENERATED_METRICS, GenerationScores, generate_texts, generation_scores
from emendo.evaluate.matching import contained_match, exact_match
from emendo.evaluate.metrics import (
    PromptScore,
    RecordScore,
    TargetScore,
    argmax_accuracy,
    harmonic_mean,
    harmonic_score,
    mean_probability,
    neighborhood_magnitude,
    neighborhood_success,
    rewrite_magnitude,
    rewrite_success,
)
from emendo.evaluate.perplexity import Perplexity, packaged_text, perplexity
from emendo.evaluate.probes import ProbeScores, probe_means, probe_scores
from emendo.evaluate.proportion import wilson_interval
from emendo.evaluate.reference import ReferenceVocabulary, reference_score
from emendo.evaluate.retention import Retention, Share, retention
from emendo.evaluate.said import SAID_METRICS, SaidPrompt, SaidRecord, begins_with, said_means, said_records
from emendo.evaluate.samples import SampledPrompt, sampled_prompts
from emendo.evaluate.scoring import RecordScores, evaluate_records, score_records, score_targets
from emendo.evaluate.snapshot import Snapshot
from emendo.evaluate.table import Means, mean_over_records
from emendo.evaluate.text_drift import TextTokens, TokenShift, text_tokens, token_shift
from emendo.evaluate.tokens import TokenScores, score_tokens, token_scores
from emendo.evaluate.zsre import ZSRE_METRICS, ZsreScores, prediction_agreement, token_accuracy, zsre_means, zsre_scores

__all__ = [
    "GENERATED_METRICS",
    "METRICS",
    "SAID_METRICS",
    "ZSRE_METRICS",
    "Drift",
    "EditScores",
    "EntropyScores",
    "GenerationScores",
    "Means",
    "NextTokenLogProbs",
    "Perplexity",
    "ProbeScores",
    "PromptScore",
    "RecordScore",
    "RecordScores",
    "ReferenceVocabulary",
    "Retention",
    "SaidPrompt",
    "SaidRecord",
    "SampledPrompt",
    "Share",
    "Snapshot",
    "TargetScore",
    "TextTokens",
    "TokenScores",
    "TokenShift",
    "ZsreScores",
    "answered",
    "argmax_accuracy",
    "begins_with",
    "bootstrap_interval",
    "contained_match",
    "entropy_of_records",
    "evaluate_records",
    "exact_match",
    "generate_texts",
    "generation_entropy",
    "generation_scores",
    "harmonic_mean",
    "harmonic_score",
    "mean_over_records",
    "mean_probability",
    "measure_drift",
    "neighborhood_magnitude",
    "neighborhood_success",
    "next_token_log_probs",
    "ngram_entropy",
    "packaged_text",
    "perplexity",
    "prediction_agreement",
    "probe_means",
    "probe_scores",
    "reference_score",
    "retention",
    "rewrite_magnitude",
    "rewrite_success",
    "said_means",
    "said_records",
    "sampled_prompts",
    "score_records",
    "score_targets",
    "score_tokens",
    "text_log_probs",
    "text_tokens",
    "token_accuracy",
    "token_entropy",
    "token_scores",
    "token_shift",
    "wilson_interval",
    "zsre_means",
    "zsre_scores",
]
