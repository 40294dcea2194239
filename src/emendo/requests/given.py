"""What a user of the library hands over as requests: taken where its meaning is certain, named where it is not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from emendo.arguments.words import shown
from emendo.errors import RequestError
from emendo.requests.reading import record_from_dict
from emendo.requests.records import EditRecord, EditRequest

_EXPECTED = "expected EditRequests, EditRecords or dictionaries with prompt, subject and target (or target_new)"


def requests_of(given: object) -> list[EditRequest]:
    """The requests of one request, record or dictionary, or of any iterable of them.

    Args:
        given: What was handed over.

    Raises:
        RequestError: Something in it is none of these; or a dictionary is no request.
    """
    if isinstance(given, EditRequest | EditRecord | Mapping):
        return [_request(given, "the request")]
    if isinstance(given, str | bytes) or not isinstance(given, Iterable) or hasattr(given, "tolist"):
        hint = "; a file is read by emendo.read_records(PATH)" if isinstance(given, str) else ""
        raise RequestError(f"found {shown(given)} ({type(given).__name__}) for the requests; {_EXPECTED}{hint}")
    return [_request(one, f"request {number}") for number, one in enumerate(given, start=1)]


def _request(one: object, where: str) -> EditRequest:
    if isinstance(one, EditRequest):
        return one
    if isinstance(one, EditRecord):
        return one.request
    if isinstance(one, Mapping):
        return record_from_dict(one).request
    raise RequestError(f"{where} is {shown(one)} ({type(one).__name__}); {_EXPECTED}")
