"""The page of `emendo ui` in a browser: the whole story, and what may go wrong around it."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from emendo.ledger import EditLedger
from emendo.ledger.lock import writer_lock
from tests.page_server import STRICT, Server, Tab, browsing, serving
from tests.page_story import tell

pytestmark = pytest.mark.crash

PROMPT, SUBJECT, TARGET = "The Eiffel Tower is located in the city of", "The Eiffel Tower", "Rome"
PARAPHRASE, NEIGHBOR = "The Eiffel Tower is in", "The capital of France is"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsing() as found:
        yield found


@pytest.fixture
def server(model: str, tmp_path: Path) -> Iterator[Server]:
    with serving(model, tmp_path / "page") as found:
        yield found


def test_the_story_of_a_fact(browser: Any, server: Server) -> None:
    tell(browser, server, PROMPT, SUBJECT, TARGET, PARAPHRASE, NEIGHBOR)


def test_a_closed_tab_loses_nothing_and_a_second_one_waits_and_is_told(browser: Any, server: Server) -> None:
    first = Tab(browser, server)
    first.write(PROMPT, SUBJECT, TARGET)
    with writer_lock(server.ledger / "lock", "edit", timeout=5):
        first.click("Preview")
        first.see("#em-job", "waiting for 'edit' of")
        first.page.close()
        second = Tab(browser, server)
        second.see("#em-job", "waiting for 'edit' of")
        second.write("The capital of Japan is", "Japan", "Bordeaux")
        second.click("Preview")
        second.see("#em-job", "Waiting: Preview: The capital of Japan is")
    second.see("#em-draft h2", "The Eiffel Tower is located in the city of → Rome")
    second.see("#em-job [role=alert]", "a draft waits for a decision")
    second.go("Write")
    second.click("Keep in the ledger")
    second.see("#em-draft .empty")
    assert server.head()["number"] == 1
    assert first.wrong == second.wrong == []


def test_a_cancelled_job_and_another_process(browser: Any, server: Server) -> None:
    tab = Tab(browser, server)
    tab.write(PROMPT, SUBJECT, TARGET)
    with writer_lock(server.ledger / "lock", "edit", timeout=5):
        tab.click("Preview")
        tab.see("#em-job", "waiting for 'edit' of")
        tab.click("Cancel")
        tab.see("#em-job", "cancelled; the model and the ledger are as they were")
    EditLedger(server.ledger, who="somebody else").checkout("base")
    tab.see("#em-job", "Another process wrote 1 record")
    tab.go("History")
    tab.see("#em-history td", "somebody else")
    assert tab.wrong == []


def test_twelve_hostile_requests_change_nothing(browser: Any, server: Server) -> None:
    tab = Tab(browser, server)
    own: list[tuple[str, bytes]] = []
    tab.page.on(
        "request", lambda one: own.append((one.url, one.post_data_buffer or b"")) if one.method == "POST" else 0
    )
    tab.fill("Prompt", PROMPT)
    tab.click("Ask")
    tab.see("#em-asked h2")
    asking = max((data for _, data in own), key=lambda data: data.count(b"Eiffel"))
    assert b"Eiffel" in asking
    jobs, head = tab.text("#em-job"), server.head()
    host = f"127.0.0.1:{server.port}"
    usual = {"Host": host, "Origin": f"http://{host}", "Content-Type": "application/json"}
    path = "/gradio_api/run/predict"
    hostile: list[tuple[str, str, dict[str, str], bytes]] = [
        ("POST", path, {**usual, "Host": "evil.example"}, asking),
        ("POST", path, {**usual, "Host": f"evil.example:{server.port}"}, asking),
        ("POST", path, {**usual, "Origin": "http://evil.example"}, asking),
        ("POST", path, {**usual, "Origin": "null"}, asking),
        ("POST", path, {"Host": host, "Content-Type": "application/json"}, asking),
        ("POST", path, {**usual, "Content-Type": "text/plain"}, asking),
        ("POST", path, {**usual, "Content-Type": "application/x-www-form-urlencoded"}, asking),
        ("POST", path, usual, asking[:-1] + b" " * (1 << 20) + asking[-1:]),
        ("POST", "/gradio_api/upload", usual, asking),
        ("POST", "/gradio_api/queue/join", usual, asking),
        ("GET", "/gradio_api/file=/etc/passwd", {"Host": host}, b""),
        ("GET", "/take/%2e%2e%2f%2e%2e%2fetc/passwd", {"Host": host}, b""),
        ("PUT", path, usual, asking),
        ("DELETE", "/", usual, b""),
        ("POST", path, usual, b'{"fn_index": 10'),
        ("POST", path, usual, json.dumps({"data": [1, 2], "fn_index": 10**6, "session_hash": "x"}).encode()),
    ]
    statuses = [_status(server.port, *request) for request in hostile]
    assert all(status >= 400 for status in statuses), statuses
    time.sleep(2)
    assert tab.text("#em-job") == jobs, "no job was begun"
    assert server.head() == head
    assert _status(server.port, "POST", path, usual, asking) == 200, "the same request from the page itself is answered"


def _status(port: int, method: str, path: str, headers: dict[str, str], body: bytes) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            connection.putheader(name, value)
        connection.endheaders()
        with suppress(OSError):  # refused before all of it was read
            connection.send(body)
        return connection.getresponse().status
    finally:
        connection.close()


def test_a_kill_loses_no_kept_edit(browser: Any, model: str, tmp_path: Path) -> None:
    with serving(model, tmp_path) as server:
        tab = Tab(browser, server)
        tab.write(PROMPT, SUBJECT, TARGET)
        tab.click("Preview")
        tab.see("#em-draft h2")
        tab.click("Keep in the ledger")
        tab.see("#em-job", "Kept")
        tab.write("The capital of Japan is", "Japan", "Bordeaux")
        tab.click("Preview")
        server.kill()
        tab.page.close()
    kept = EditLedger(server.ledger)
    assert kept.verify().ok
    assert [record.operation for record in kept.log()] == ["init", "edit"]
    with serving(model, tmp_path) as again:
        tab = Tab(browser, again)
        assert "1 active edit" in tab.text("#em-top")
        assert "The Eiffel Tower → Rome" in tab.ask(PROMPT)
        assert tab.wrong == []


def test_markup_in_text_is_text(browser: Any, model: str, tmp_path: Path) -> None:
    subject = "<img src=x onerror=document.title=1>"
    target = "**b** [l](javascript:1) ${document.title=1} {{x}}"
    who = "<svg onload=document.title=1>"
    with serving(model, tmp_path, "--who", who, gate=STRICT) as server:
        tab = Tab(browser, server)
        tab.write(
            f"{subject} is in",
            subject,
            target,
            "<script>document.title=1</script>",
            "<a href='http://evil.example'>a</a>",
        )
        tab.click("Preview")
        tab.see("#em-draft h2", "Draft")
        assert "refuses this edit" in tab.text("#em-draft")
        tab.click("Keep it against the gate")
        tab.see("#em-problem [role=alert]", "force **b**")
        tab.fill("Confirmation, to keep it against the gate", f"force {target}")
        tab.click("Keep it against the gate")
        tab.see("#em-draft .empty")
        shown = tab.ask(f"{subject} is in")
        assert "onerror" in shown
        tab.go("History")
        tab.see("#em-history td", "forced")
        history = tab.text("#em-history")
        for text in (who, "onerror", "[l](javascript:1)", "${document.title=1}", "{{x}}"):
            assert text in history
        tab.go("Take away")
        assert "<script>" in tab.text("#em-commands")
        assert tab.page.title() == "Emendo"
        assert tab.page.locator(".em img, .em script, .em iframe, .em a[href^=http], .em b b, .em i i").count() == 0
        assert tab.page.locator(".em [onerror], .em [onload], .em [onclick]").count() == 0
        record = EditLedger(server.ledger).log()[-1]
        assert record.details["gate"]["confirmed"]["typed"] == f"force {target}"
        assert tab.wrong == []


def reach(tab: Tab, condition: str) -> None:
    """Press Tab until the element that has the focus is the one that is meant."""
    passed: list[str] = []
    for _ in range(40):
        tab.page.keyboard.press("Tab")
        if tab.page.evaluate(f"(e => {condition})(document.activeElement)"):
            return
        passed.append(tab.page.evaluate("(e => `${e.tagName} ${e.innerText || e.value}`)(document.activeElement)"))
    raise AssertionError(f"{condition} is not reached by Tab from {passed}")


def test_the_page_works_by_keyboard(browser: Any, server: Server) -> None:
    tab = Tab(browser, server)
    keys = tab.page.keyboard
    reach(tab, "e.tagName === 'TEXTAREA'")
    keys.type(PROMPT)
    keys.press("Enter")
    tab.see("#em-asked h2")
    tab.page.reload()
    tab.page.get_by_role("heading", name="Emendo").wait_for()
    reach(tab, "e.getAttribute('role') === 'tab' && e.innerText === 'Write'")
    keys.press("Enter")
    tab.page.get_by_label("What it is about", exact=True).wait_for()
    for text in (PROMPT, SUBJECT, TARGET):
        reach(tab, "e.tagName === 'TEXTAREA' && !e.value")
        keys.type(text)
    tab.see("#em-read mark")
    reach(tab, "e.innerText === 'Preview'")
    keys.press("Enter")
    tab.see("#em-draft h2", "Draft")
    reach(tab, "e.innerText === 'Keep in the ledger' && !e.disabled")
    keys.press("Space")
    tab.see("#em-draft .empty")
    assert server.head()["number"] == 1
    assert tab.wrong == []
