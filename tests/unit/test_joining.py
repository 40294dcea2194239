"""How a target joins its prompt: the table, what a request says, and what was stored before requests said it."""

from __future__ import annotations

import re
import sys
import unicodedata
from pathlib import Path

import pytest

from emendo.errors import RequestError
from emendo.requests import EditRecord, EditRequest, continuation, keeps_joint, record_from_dict
from emendo.requests.joining import _CURRENCY, RULES, Rule, stored_join
from tests.every import every

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "data.md"


@every("rule", RULES, ids=lambda rule: rule.name)
def test_the_example_of_a_rule_attaches(rule: Rule) -> None:
    prompt, target = rule.example
    assert rule.holds(prompt, target)
    assert continuation(prompt, target) == (prompt, target)


@every(
    ("prompt", "target"),
    [
        *[("Price: €", "20"), ("It costs US$", "20"), ("#", "tag"), ("https://", "louvre.fr"), ("C:\\", "Users")],
        *[("https://louvre.fr/?lang=", "fr"), ("AT&", "T"), ("10^", "6"), ("x<", "5"), ("It lies at −", "20")],
        *[("It costs about ~", "5"), ("c'est l'", "Italie"), ("O’", "Brien"), ("dell'", "Aquila"), ("1,", "000")],
        *[("v2.", "0"), ("the 80", "s"), ("2", "½"), ("COVID", "-19"), ("twenty", "-five"), ("Rome", "—the city")],
        *[("The tower", "’s height"), ("is", "n't"), ("the boys", "' house"), ("It is (in Rome", ")"), ("m", "™")],
        *[('He said "Rome', '"'), ("It is “Rome", "”"), ("Il dit «Rome", "»"), ("a", "\u0301"), ("It is", "…")],
        *[("价格是", "20元"), ("在2024", "年"), ("答案：", "Paris"), ("Paris", "，"), ("ꦗꦮ", "ꦗꦮ")],
        *[("ดู", "โรม"), ("ព", "ព"), ("ບ", "ບ"), ("မ", "မ")],
        *[("It is\n", "Rome"), ("It is\t", "Rome"), ("It is\u00a0", "Rome"), ("`", "code"), ("It is `x", "`")],
    ],
)
def test_text_without_a_space_gets_none(prompt: str, target: str) -> None:
    assert continuation(prompt, target) == (prompt, target)


@every(
    ("prompt", "target"),
    [
        *[("It costs 20 €", "a day"), ("It costs 20€", "a day"), ("x =", "5"), ("2 + 2 =", "4"), ("2 +", "2")],
        *[("The language C#", "is"), ("R &", "D"), ("3 *", "4"), ("In 1889.", "It"), ("1914,", "1915")],
        *[("It is", ".NET"), ("It is", ".22"), ("It is", "-5"), ("use", "-v"), ("It is", "%PATH%"), ("It is", "$20")],
        *[("It is", "'Rome'"), ("In 1990", '"Rome"'), ("It is", "“Rome”"), ("It is", "(Rome)"), ("It is", "#1")],
        *[("See https://louvre.fr.", "It"), ("See https://louvre.fr", "today"), ("Follow", "@louvre")],
        *[("The path is", "/usr/bin"), ("It is 20", "km"), ("Answer:", "30"), ("The boys'", "Rome"), ("Who?", "Rome")],
        *[("位于", "Paris"), ("에펠탑은", "로마"), ("에펠탑은", "20"), ("Han bor i", "”Rom”")],
    ],
)
def test_other_text_gets_one_space(prompt: str, target: str) -> None:
    assert continuation(prompt, target) == (prompt, f" {target}")


@pytest.mark.parametrize(("prompt", "target"), [("A ticket is $", "20"), ("It is", "Rome"), ("位于", "巴黎")])
def test_a_request_can_say_it(prompt: str, target: str) -> None:
    assert continuation(prompt, target, "space") == (prompt, f" {target}")
    assert continuation(prompt, target, "none") == (prompt, target)
    # Whitespace that is there stands, whatever is said.
    for join in ("auto", "space", "none"):
        assert continuation(f"{prompt} ", target, join) == (prompt, f" {target}")
        assert continuation(prompt, f"\n{target}", join) == (prompt, f"\n{target}")


def test_every_sign_of_a_currency_is_one() -> None:
    signs = {chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) == "Sc"}
    assert {sign for sign in signs if not re.fullmatch(f"[{_CURRENCY}]", sign)} == set()


def test_the_page_holds_the_table() -> None:
    page = PAGE.read_text(encoding="utf-8")
    part = page.partition("<!-- joins -->\n")[2].partition("<!-- /joins -->")[0]
    rows = [f"| {rule.name} | `` {rule.example[0]} `` | `` {rule.example[1]} `` |" for rule in RULES]
    assert part.splitlines()[2:] == rows


def test_requests_are_stored_with_it_and_rows_where_it_is_said() -> None:
    said = EditRequest("A ticket to {} is $", "Rome", "20", join="space")
    assert EditRequest.from_dict(said.to_dict()) == said
    assert record_from_dict(EditRecord(said).to_dict()) == EditRecord(said)
    plain = EditRequest("A ticket to {} is $", "Rome", "20")
    assert EditRequest.from_dict(plain.to_dict()) == plain
    assert "join" not in EditRecord(plain).to_dict()
    assert record_from_dict(EditRecord(plain).to_dict()) == EditRecord(plain)


@pytest.mark.parametrize("join", ["attach", "", None, 1, "None"])
def test_another_word_is_refused(join: object) -> None:
    row = {"prompt": "{} is in", "subject": "Rome", "target": "Italy", "join": join}
    with pytest.raises(RequestError, match="join must be one of auto, space, none, found"):
        record_from_dict(row)


@pytest.mark.parametrize(
    ("prompt", "target", "text"),
    [
        ("A ticket to {} is $", "20", "A ticket to Rome is $ 20"),  # as it was then
        ("{} is in", "Italy", "Rome is in Italy"),
        ("{} is (", "Italy", "Rome is (Italy"),
        ("{}位于", "意大利", "Rome位于意大利"),
        ("{} is in ", "Italy", "Rome is in Italy"),
        ("{} is in\n", "Italy", "Rome is in\nItaly"),
        ("{} is ꦗꦮ", "ꦗꦮ", "Rome is ꦗꦮ ꦗꦮ"),
    ],
)
def test_what_was_stored_without_it_is_the_text_that_it_was(prompt: str, target: str, text: str) -> None:
    old = EditRequest.from_dict({"id": "", "prompt": prompt, "subject": "Rome", "target": target})
    assert "".join(continuation(old.text, old.target, old.join)) == text
    assert old.join == stored_join(old.text, target)
    assert EditRequest.from_dict(old.to_dict()) == old


@pytest.mark.parametrize(
    ("prompt", "text", "target", "kept"),
    [
        ("A ticket is $", "20.", "20", True),
        ("A ticket is $", " 20.", "20", False),
        ("It is", " Rome.", "Rome", True),
        ("It is", "Rome.", "Rome", False),
        ("It is", ' "Rome".', "Rome", True),
        ("It is:", "Rome.", "Rome", True),
        ("It is\n", " Rome", "Rome", True),
        ("位于", " 巴黎", "巴黎", True),
        ("It is", "", "Rome", True),
    ],
)
def test_generated_text_is_held_to_the_spelling(prompt: str, text: str, target: str, kept: bool) -> None:
    assert keeps_joint(prompt, text, target) is kept
