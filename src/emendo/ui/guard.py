"""What stands between the network and the page: only the page's own requests get through.

A page on this machine is reachable by every other page that the same browser has open, and with ``--host`` by the
network. So every request is held to the few shapes that the page's own have: host, origin, method, path, type, size,
and the password where there is one. Everything else is refused before Gradio sees it.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, TypeAlias

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

MOST_BYTES = 256 * 1024
"""Of the body of a request: far more than a person types."""

_GET = re.compile(
    r"/|/config|/theme\.css|/favicon\.ico|/manifest\.json|/(?:assets|static)/[\w./-]+"
    r"|/gradio_api/heartbeat/\w+|/take/[\w.-]+"
)
_POST = re.compile(r"/gradio_api/run/predict/?")
_HOST = re.compile(r"(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?")

HEADERS = {
    # Nothing is fetched from, sent to, or framed by another host, whatever a model's text may say.
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' "
    "'unsafe-inline'; img-src 'self' data:; font-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; "
    "base-uri 'self'; form-action 'none'; object-src 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
}
"""Headers of every answer; Gradio's own script needs to be inline and to make functions of its templates."""


class Guard:
    """An ASGI application around another one.

    Args:
        app: The page.
        hosts: Names and ports by which the page is reached, such as ``127.0.0.1:7860``; None: any, with a password.
        password: What the browser has to send; None: none.
    """

    def __init__(self, app: App, hosts: frozenset[str] | None, password: str | None = None) -> None:
        self._app, self._hosts, self._password = app, hosts, password

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        refused = self._refused(scope)
        if refused is not None:
            await _refuse(send, *refused)
            return
        body = b""
        if scope["method"] == "POST":
            read = await _read(receive)
            if read is None:
                await _refuse(send, 413, f"a request has at most {MOST_BYTES} bytes")
                return
            body = read
        await self._app(scope, _once(body, receive), _with_headers(send))

    def _refused(self, scope: Scope) -> tuple[int, str] | None:
        """Status and reason, where a request is not one of the page's own."""
        headers = _headers(scope)
        if headers is None:
            return 400, "a header that may stand once stands twice"
        host = headers.get("host", "").lower()
        if not _HOST.fullmatch(host) or (self._hosts is not None and host not in self._hosts):
            return 403, "this page is not known by that host name"
        origin = headers.get("origin")
        if origin is not None and origin.lower() != f"{scope['scheme']}://{host}":
            return 403, "the request comes from another page"
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return 403, "the request comes from another site"
        if self._password is not None and not self._knows(headers.get("authorization", "")):
            return 401, "a password is needed"
        return _wrong_request(scope, headers, origin)

    def _knows(self, given: str) -> bool:
        """Whether a header of basic authentication has the password; the user's name does not matter."""
        kind, _, coded = given.partition(" ")
        if kind.lower() != "basic" or self._password is None:
            return False
        try:
            text = base64.b64decode(coded, validate=True).decode("utf-8")
        except (binascii.Error, UnicodeDecodeError):
            return False
        _, _, password = text.partition(":")
        return hmac.compare_digest(password.encode(), self._password.encode())


def _wrong_request(scope: Scope, headers: Mapping[str, str], origin: str | None) -> tuple[int, str] | None:
    method, path = scope["method"], scope["path"]
    raw = scope.get("raw_path", path.encode()).decode("latin-1")
    if method not in ("GET", "HEAD", "POST"):
        return 405, "expected GET or POST"
    # What is decoded differs from what was sent only where somebody hides something.
    allowed = _POST if method == "POST" else _GET
    if raw.partition("?")[0] != path or ".." in path or "//" in path or not allowed.fullmatch(path):
        return 404, "there is nothing here"
    if method != "POST":
        return None
    if origin is None:
        return 403, "a request that asks for something says which page it comes from"
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return 415, "expected application/json"
    if "transfer-encoding" in headers or not headers.get("content-length", "").isdecimal():
        return 411, "expected the length of the request"
    if int(headers["content-length"][:12]) > MOST_BYTES:
        return 413, f"a request has at most {MOST_BYTES} bytes"
    return None


_ONCE = ("host", "origin", "content-length", "content-type", "authorization", "transfer-encoding")


def _headers(scope: Scope) -> dict[str, str] | None:
    """Headers by name; None where one is there twice that may be there once."""
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        key = name.decode("latin-1").lower()
        if key in found and key in _ONCE:
            return None
        found[key] = value.decode("latin-1")
    return found


async def _read(receive: Receive) -> bytes | None:
    """The body; None where it is longer than it may be, whatever its header said."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return bytes(body)
        body += message.get("body", b"")
        if len(body) > MOST_BYTES:
            return None
        if not message.get("more_body"):
            return bytes(body)


def _once(body: bytes, receive: Receive) -> Receive:
    """Gives the body that was read, and then whatever comes."""
    given = False

    async def read() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return read


def _with_headers(send: Send) -> Send:
    added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [(name, value) for name, value in message.get("headers", []) if name.decode().lower() not in HEADERS]
            message = {**message, "headers": [*kept, *added]}
        await send(message)

    return sent


async def _refuse(send: Send, status: int, why: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"cache-control", b"no-store")]
    if status == 401:
        headers.append((b"www-authenticate", b'Basic realm="Emendo", charset="UTF-8"'))
    await _with_headers(send)({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"{why}\n".encode()})
