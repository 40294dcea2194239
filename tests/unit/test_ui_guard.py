"""The guard of the page: only requests of the page's own shape get through."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest

from emendo.errors import InputError, OutputError
from emendo.ui.guard import MOST_BYTES, Guard
from emendo.ui.serve import _names, check_host, open_socket
from tests.every import every

HOST, PASSWORD = "127.0.0.1:7860", "correct horse"
POST = {
    "host": HOST,
    "origin": f"http://{HOST}",
    "content-type": "application/json",
    "content-length": "2",
}
PREDICT = "/gradio_api/run/predict"


def answered(
    method: str = "POST",
    path: str = PREDICT,
    headers: dict[str, str] | list[tuple[str, str]] | None = None,
    *,
    body: bytes = b"{}",
    raw: str | None = None,
    kind: str = "http",
    guard: dict[str, Any] | None = None,
) -> tuple[int, bytes | None, dict[str, str]]:
    """Status, the body that the page was given (None where it was given nothing), and the headers of the answer."""
    seen: list[bytes] = []
    sent: list[Any] = []

    async def page(scope: Any, receive: Any, send: Any) -> None:
        seen.append((await receive()).get("body", b""))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-frame-options", b"ALLOW")]})
        await send({"type": "http.response.body", "body": b"page"})

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    given = POST if headers is None else headers
    pairs = given.items() if isinstance(given, dict) else given
    scope = {
        "type": kind,
        "scheme": "http",
        "method": method,
        "path": path,
        "raw_path": (raw or path).encode(),
        "headers": [(name.encode(), value.encode()) for name, value in pairs],
    }
    asyncio.run(Guard(page, frozenset({HOST}), **(guard or {}))(scope, receive, send))
    if sent[0]["type"] == "websocket.close":
        return 1008, None, {}
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], seen[0] if seen else None, found


def test_the_pages_own_requests_get_through_with_headers_that_keep_others_out() -> None:
    status, body, headers = answered()
    assert (status, body) == (200, b"{}")
    assert headers["x-frame-options"] == "DENY"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "default-src 'self'" in headers["content-security-policy"]
    for path in ("/", "/config", "/theme.css", "/assets/index-1.js", "/take/edits.safetensors"):
        assert answered("GET", path, {"host": HOST})[0] == 200


@every(
    ("status", "changed"),
    [
        (403, {"host": "evil.example:7860"}),
        (403, {"host": "127.0.0.1:7861"}),
        (403, {"host": ""}),
        (403, {"origin": "http://evil.example"}),
        (403, {"origin": "null"}),
        (403, {"origin": f"https://{HOST}"}),
        (403, {"origin": None}),
        (403, {"sec-fetch-site": "cross-site"}),
        (403, {"sec-fetch-site": "same-site"}),
        (415, {"content-type": "text/plain"}),
        (415, {"content-type": "multipart/form-data; boundary=x"}),
        (415, {"content-type": None}),
        (411, {"content-length": None}),
        (411, {"content-length": "-1"}),
        (411, {"transfer-encoding": "chunked"}),
        (413, {"content-length": str(MOST_BYTES + 1)}),
    ],
)
def test_a_request_with_one_wrong_header_is_refused(status: int, changed: dict[str, str | None]) -> None:
    headers = {name: value for name, value in {**POST, **changed}.items() if value is not None}
    assert answered(headers=headers)[:2] == (status, None)


@every(
    ("method", "path", "raw", "status"),
    [
        ("PUT", PREDICT, None, 405),
        ("DELETE", "/", None, 405),
        ("OPTIONS", PREDICT, None, 405),
        ("GET", PREDICT, None, 404),
        ("POST", "/", None, 404),
        ("POST", "/gradio_api/upload", None, 404),
        ("POST", "/gradio_api/queue/join", None, 404),
        ("POST", "/gradio_api/run/other", None, 404),
        ("GET", "/gradio_api/file=/etc/passwd", None, 404),
        ("GET", "/gradio_api/proxy=http://evil.example", None, 404),
        ("GET", "/assets/../config", None, 404),
        ("GET", "/assets/../config", "/assets/%2e%2e/config", 404),
        ("GET", "/assets/a", "/assets/%61", 404),
        ("GET", "//evil.example", None, 404),
        ("GET", "/take/../HEAD", None, 404),
        ("GET", "/docs", None, 404),
    ],
)
def test_other_methods_and_paths_are_refused(method: str, path: str, raw: str | None, status: int) -> None:
    assert answered(method, path, raw=raw)[:2] == (status, None)


def test_a_body_longer_than_it_says_and_doubled_headers_and_sockets_are_refused() -> None:
    assert answered(body=b" " * (MOST_BYTES + 1))[:2] == (413, None)
    assert answered(headers=[*POST.items(), ("host", "evil.example")])[:2] == (400, None)
    assert answered(headers=[*POST.items(), ("origin", "http://evil.example")])[:2] == (400, None)
    assert answered("GET", "/", {"host": HOST}, kind="websocket")[:2] == (1008, None)


@pytest.mark.parametrize(
    "sent", [None, "Bearer x", "Basic !!!", "Basic " + base64.b64encode(b"me:wrong").decode(), "Basic"]
)
def test_without_its_password_nothing_of_the_page_is_shown(sent: str | None) -> None:
    headers = {"host": HOST} | ({} if sent is None else {"authorization": sent})
    status, body, found = answered("GET", "/", headers, guard={"password": PASSWORD})
    assert (status, body) == (401, None)
    assert found["www-authenticate"].startswith("Basic ")


def test_the_password_lets_in() -> None:
    coded = base64.b64encode(f"anybody:{PASSWORD}".encode()).decode()
    headers = {**POST, "authorization": f"Basic {coded}"}
    assert answered(headers=headers, guard={"password": PASSWORD})[:2] == (200, b"{}")
    wrong_origin = {**headers, "origin": "http://evil.example"}
    assert answered(headers=wrong_origin, guard={"password": PASSWORD})[:2] == (403, None)


def test_another_address_needs_a_password() -> None:
    for host in ("127.0.0.1", "localhost", "::1"):
        check_host(host, None)
    for host in ("0.0.0.0", "192.168.1.5", "::"):
        with pytest.raises(InputError, match="EMENDO_UI_PASSWORD"):
            check_host(host, None)
        with pytest.raises(InputError, match="at least 10"):
            check_host(host, "short")
        check_host(host, PASSWORD)
    assert _names("127.0.0.1", 7860) == {"127.0.0.1:7860", "localhost:7860", "[::1]:7860"}
    assert _names("192.168.1.5", 80) == {"192.168.1.5:80", "192.168.1.5"}
    assert _names("0.0.0.0", 7860) is None


def test_a_port_that_is_taken_is_said() -> None:
    with open_socket("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(OutputError, match=f"port {port}"):
            open_socket("127.0.0.1", port)
