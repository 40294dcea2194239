"""JSON over HTTP to one server: the host that was named and no other, with a time limit and errors in words."""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from emendo.errors import InputError, ServerError

KEY_VARIABLE = "EMENDO_SERVER_KEY"
"""Environment variable with the server's API key, sent as a bearer token where it is set."""

_MOST_BYTES = 64 * 2**20
"""Of an answer; the largest that is asked for has a few kilobytes."""

_SHOWN = 300
_LONGEST_WAIT = 86_400.0


@dataclass(frozen=True)
class Call:
    """One request.

    Attributes:
        method: ``"GET"`` or ``"POST"``.
        path: Below the server's address.
        body: What is sent as JSON; None: nothing.
    """

    method: str
    path: str
    body: Any = None

    def __str__(self) -> str:
        return f"{self.method} {self.path}" + ("" if self.body is None else f" {json.dumps(self.body)}")


class ServerClient:
    """A server by its address.

    Args:
        url: Such as ``http://127.0.0.1:8080``, with or without a path that comes before all others.
        timeout: Seconds to wait for each answer.
        dry: Send nothing but GET; other requests are told and answered by None.
        told: Given every request that is sent, or would be.

    Raises:
        InputError: The address is none, or the time limit.
    """

    def __init__(
        self, url: str, *, timeout: float = 60.0, dry: bool = False, told: Callable[[str], None] | None = None
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise InputError(
                f"{url!r} is no address of a server; expected one such as http://127.0.0.1:8000 (--server)"
            )
        if parts.username or parts.password:
            raise InputError(f"the address of the server holds a password; put its key into {KEY_VARIABLE} instead")
        if not 0 < timeout <= _LONGEST_WAIT:
            raise InputError(f"a time limit of {timeout:g} s; expected more than 0 and at most a day (--timeout 60)")
        self.url = url.rstrip("/")
        self.timeout, self.dry, self._told = timeout, dry, told
        # No proxy and no redirect: what an adapter is called and where it lies is for that server alone.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)

    def send(self, call: Call) -> Any:
        """The answer: of JSON its values, otherwise its text; None for what a dry run holds back.

        Raises:
            ServerError: The server was not reached, refused, or answered with too much.
        """
        self.tell(str(call))
        if self.dry and call.method != "GET":
            return None
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key := os.environ.get(KEY_VARIABLE, "").strip():
            headers["Authorization"] = f"Bearer {key}"
        body = None if call.body is None else json.dumps(call.body).encode()
        request = urllib.request.Request(self.url + call.path, body, headers, method=call.method)
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                content = response.read(_MOST_BYTES + 1)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refused(call, error.code, error.read(_MOST_BYTES)) from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise ServerError(
                f"{call.method} {call.path}: no answer of {self.url} ({reason}) within {self.timeout:g} s; expected a "
                "server that runs (--server, --timeout)"
            ) from error
        if len(content) > _MOST_BYTES:
            raise ServerError(f"{call.method} {call.path}: {self.url} answered with more than {_MOST_BYTES:,} bytes")
        return _parsed(content)

    def tell(self, step: str) -> None:
        """Let the user know of a step, in a dry run of one that is not taken."""
        if self._told is not None:
            self._told(step)

    def _refused(self, call: Call, status: int, content: bytes) -> ServerError:
        said = _message(_parsed(content))
        hint = f"; its API key is read from {KEY_VARIABLE}" if status in (401, 403) else ""
        return ServerError(f"{call.method} {call.path}: {self.url} answered {status}: {said}{hint}", status)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Another place is a refusal: the body would go to a host that nobody named."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _parsed(content: bytes) -> Any:
    text = content.decode("utf-8", errors="replace")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _message(answer: Any) -> str:
    """What an error answer says, wherever the server puts it."""
    for name in ("error", "message", "error_message", "detail"):
        if isinstance(answer, dict) and answer.get(name):
            return _message(answer[name])
    text = " ".join(str(answer).split()) or "nothing"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
