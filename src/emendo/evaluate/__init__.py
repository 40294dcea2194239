"""Judging a model, edited or not: target scores, CounterFact metrics, perplexity."""

from emendo.evaluate.aggregate import METRICS, EditScores
from emendo.evaluate.bootstrap import bootstrap_interval
from emendo.evaluate.metrics import (
    PromptScore,
    RecordScore,
    TargetScore,
    argmax_accuracy,
    harmonic_score,
    mean_probability,
    neighborhood_magnitude,
    neighborhood_success,
    rewrite_magnitude,
    rewrite_success,
)
from emendo.evaluate.perplexity import Perplexity, packaged_text, perplexity
from emendo.evaluate.scoring import (
    RecordScores,
    evaluate_records,
    score_targets,
)
from emendo.evaluate.tokens import TokenScores, score_tokens, token_scores

__all__ = [
    "METRICS",
    "EditScores",
    "Perplexity",
    "PromptScore",
    "RecordScore",
    "RecordScores",
    "TargetScore",
    "TokenScores",
    "argmax_accuracy",
    "bootstrap_interval",
    "evaluate_records",
    "harmonic_score",
    "mean_probability",
    "neighborhood_magnitude",
    "neighborhood_success",
    "packaged_text",
    "perplexity",
    "rewrite_magnitude",
    "rewrite_success",
    "score_targets",
    "score_tokens",
    "token_scores",
]
