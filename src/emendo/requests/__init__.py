"""What to edit: requests, records (a request with probes), their JSONL form and validation."""

from emendo.requests.hints import SLOT, shown
from emendo.requests.reading import parse_object, parse_records, read_records, record_from_dict, unique_fields
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
    "PROBE_KINDS",
    "PROMPT_LISTS",
    "SLOT",
    "EditRecord",
    "EditRequest",
    "Probe",
    "check_requests",
    "parse_object",
    "parse_records",
    "read_records",
    "record_from_dict",
    "same_text",
    "shown",
    "unique_fields",
]
