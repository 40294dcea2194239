"""The whole story of a fact on the page, for a tiny model and for the demo model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from emendo.ledger import EditLedger
from tests.page_server import MILLISECONDS, Server, Tab, same_answers

TABS = ("Ask", "Write", "Inside", "History", "Take away")


def tell(
    browser: Any, server: Server, prompt: str, subject: str, target: str, paraphrase: str, neighbor: str
) -> tuple[str, str]:
    """Ask, write, preview, keep, ask around, look inside, take away, undo; the model is then as it was.

    Returns:
        What the page showed for the prompt before the edit and after it.
    """
    tab = Tab(browser, server)
    first = tab.ask(prompt)
    tab.write(prompt, subject, target, paraphrase, neighbor)
    assert tab.text("#em-read mark").strip("␣") in subject
    tab.click("Preview")
    tab.see("#em-draft h2", "Draft")
    tab.see("#em-draft summary", "Gate: passes").click()
    draft = tab.text("#em-draft")
    for expected in (paraphrase, neighbor, "Gate: passes", "perplexity_ratio", "Verdict"):
        assert expected in draft
    assert tab.serious() == []
    assert server.head()["number"] == 0, "a preview writes nothing"
    tab.click("Keep in the ledger")
    tab.see("#em-draft .empty")
    assert server.head()["number"] == 1
    edited = tab.ask(prompt)
    assert "the kept edits" in edited
    assert f"{subject} → {target}" in edited, "the edit that fires is named"
    assert not same_answers(first, edited)
    for other in (paraphrase, neighbor):
        assert "KL of the next token" in tab.ask(other)
    assert tab.serious() == []
    tab.go("Inside")
    tab.fill("Sentence about the subject, up to the answer", prompt)
    tab.fill("Subject", subject)
    tab.click("Draw the heat maps")
    tab.page.locator("#em-trace svg").nth(2).wait_for(timeout=5 * MILLISECONDS)  # three exact grids of the demo model
    tab.fill("Question to the edited model", prompt)
    tab.fill("Answer to explain", target)
    tab.click("Show contributions and logit lens")
    tab.see("#em-carried h2")
    assert tab.serious() == []
    tab.go("Take away")
    tab.click("Make the update file")
    with tab.page.expect_download() as download:
        tab.see("#em-taken a").click()
    assert Path(download.value.path()).stat().st_size > 100
    tab.click("Make the adapter")
    tab.see("#em-taken a", "adapter.zip")
    assert "emendo edit --model" in tab.text("#em-commands")
    assert tab.serious() == []
    tab.go("History")
    tab.click("Undo it")
    tab.see("#em-history td", "revert")
    tab.click("Verify files and weights")
    tab.see("#em-verified", "bit for bit")
    now, base = tab.page.locator("#em-verified code").all_inner_texts()
    assert now == base == EditLedger(server.ledger).base["weights_sha256"]
    assert tab.serious() == []
    assert same_answers(tab.ask(prompt), first)
    tab.page.set_viewport_size({"width": 390, "height": 844})
    for name in TABS:
        tab.go(name)
        assert tab.too_wide() <= 0, name
    assert tab.wrong == []
    tab.page.close()
    return first, edited
