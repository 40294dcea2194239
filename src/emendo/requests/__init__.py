"""What to edit: requests, records (a request with probes), their form as plain values, and validation."""

from emendo.requests.given import requests_of
from emendo.requests.hints import NAMES_ELSEWHERE, SLOT
from emendo.requests.joining import JOINS, Join, Pair, attaches, continuation, keeps_joint, spelled_as_stored
from emendo.requests.reading import record_from_dict
from emendo.requests.records import (
    FIELDS,
    PROBE_KINDS,
    PROMPT_LISTS,
    EditRecord,
    EditRequest,
    Probe,
    check_requests,
    same_text,
)

__all__ = [
    "FIELDS",
    "JOINS",
    "NAMES_ELSEWHERE",
    "PROBE_KINDS",
    "PROMPT_LISTS",
    "SLOT",
    "EditRecord",
    "EditRequest",
    "Join",
    "Pair",
    "Probe",
    "attaches",
    "check_requests",
    "continuation",
    "keeps_joint",
    "record_from_dict",
    "requests_of",
    "same_text",
    "spelled_as_stored",
]
