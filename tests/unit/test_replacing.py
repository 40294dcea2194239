"""Nothing that people have goes before what takes its place is whole and on the disk: who may touch files, and where.

Every file of Emendo's is read as a program. Outside `emendo.io`, whose helpers are tested with a fault at every call,
files are written only into a draft that one of those helpers gave, and what renames or removes anything is in the table
below, each with the reason why nothing can be lost by it.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import emendo
from tests.every import every

ROOT = Path(emendo.__file__).parent

TOUCHES = {
    # files are removed
    "editing/plan_memory.py keep unlink": "plans that can be made again, after the new one is kept",
    "evaluate/remembered.py _forget_older rmtree": "answers that can be asked again, after the new ones are kept",
    "experiments/folder.py summary rmtree": "updates of a finished cell, whose summary has just been read",
    "experiments/folder.py finish rmtree": "the same, after the summary is on the disk",
    "ledger/store.py locked unlink": "what no record leads to, left by a killed operation",
    "parallel/claims.py release unlink": "a claim of this process",
    "parallel/claims.py sweep unlink": "claims of what is done or of dead processes",
    "parallel/claims.py sweep rmdir": "a folder without claims, only while it is empty",
    "parallel/claims.py take unlink": "the claim that this process has just made",
    "report/experiment/write.py _remove_other_plots unlink": "plots that the new pages, now in place, do not show",
    "statistics/obtain.py obtain_moments unlink": "unfinished collections, after the moments are stored",
    "statistics/spread.py collect_by_workers unlink": "units that are in the state that was just saved",
    "tracing/run.py forget_parts rmtree": "finished facts, called after the trace is written",
    "ui/taking.py own_folder rmtree": "files for download of a process that is gone",
    "ui/desk.py close rmtree": "files for download, in a temporary folder of this desk",
    # files are written in place
    "experiments/files.py append_lines open": "a journal: lines are added, and a torn last one is dropped on reading",
    "experiments/files.py locked open": "a lock file, made where there is none and never cut",
    "experiments/meter.py _reset_peak write_text": "a file of the kernel's, which resets a count",
    "ledger/files.py write_durably open": "a draft that must not be there before",
    "ledger/lock.py _note ftruncate": "the note in a lock file, for messages only",
    "ledger/lock.py acquire FileIO": "the lock file, opened to be locked",
    "ledger/lock.py _opened open": "the lock file, made where there is none and never cut",
    "parallel/claims.py _make fdopen": "a claim, made only where there is none",
    "parallel/claims.py _make open": "a claim, made only where there is none",
    "parallel/claims.py renewed open": "a claim of this process, of which nobody needs the old text",
    "parallel/claims.py renewed truncate": "a claim of this process, of which nobody needs the old text",
    "serving/client.py send open": "no file: a server is asked",
    "statistics/obtain.py _opened open": "no file: a corpus is chosen by its name",
    "cli/app.py _drop_output open": "the null device",
}
"""By file, function and call: why it may."""

REMOVES = {"unlink", "remove", "rmtree", "rmdir", "rename", "move", "truncate", "ftruncate", "symlink", "link"}
WRITES = {"write_text", "write_bytes", "FileIO", "fdopen", "copy", "copy2", "copyfile", "copytree"}
LISTS = {"remove", "copy", "move"}
"""Also methods of lists and dictionaries: counted only of these modules."""
MODULES = {"os", "shutil", "Path"}


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Every call with the name of the function that it is in."""

    def walk(node: ast.AST, inside: str) -> Iterator[tuple[str, ast.Call]]:
        for child in ast.iter_child_nodes(node):
            name = child.name if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else inside
            if isinstance(child, ast.Call):
                yield inside, child
            yield from walk(child, name)

    yield from walk(tree, "")


def root(node: ast.expr) -> str:
    """The name that an expression begins with: of ``(draft / name).open`` it is ``draft``."""
    while not isinstance(node, ast.Name):
        inner = getattr(node, "value", None) or getattr(node, "left", None) or getattr(node, "func", None)
        if not isinstance(inner, ast.expr):
            return ""
        node = inner
    return node.id


def touched(call: ast.Call) -> str | None:
    """The name of a call that changes files in place; None of one that does not, or only those of a draft."""
    if isinstance(call.func, ast.Name):
        name, owner = call.func.id, ""
        target = call.args[0] if call.args else None
        if name == "open":
            return None if target is not None and root(target) == "draft" else _opens(call, 1)
        return name if name == "FileIO" else None
    if not isinstance(call.func, ast.Attribute):
        return None
    name, owner = call.func.attr, root(call.func.value)
    if owner == "draft":
        return None
    if name == "replace":  # of a path: one argument, or os.replace with two; of texts and dates others
        texts = owner != "os" and (len(call.args) != 1 or call.keywords)
        return None if texts else name
    if name == "open":
        return _opens(call, 1 if owner in MODULES else 0)
    if name in LISTS and owner not in MODULES:
        return None
    if name in WRITES and owner in ("whole_file", "io"):
        return None
    return name if name in REMOVES | WRITES else None


def _opens(call: ast.Call, place: int) -> str | None:
    """``open`` where its mode, or the flags of os.open, allow writing."""
    modes = [*call.args[place : place + 1], *(word.value for word in call.keywords if word.arg in ("mode", "flags"))]
    text = "".join(ast.unparse(mode) for mode in modes)
    plain = all(isinstance(mode, ast.Constant) for mode in modes)
    writes = set("wax+") & set(text) if plain else "O_RDONLY" not in text
    return "open" if modes and writes else None


def found() -> Counter[str]:
    places: Counter[str] = Counter()
    for path in sorted(ROOT.rglob("*.py")):
        where = path.relative_to(ROOT)
        if where.parts[0] != "io":
            for inside, call in calls(ast.parse(path.read_text(encoding="utf-8"))):
                if (name := touched(call)) is not None:
                    places[f"{where.as_posix()} {inside} {name}"] += 1
    return places


def test_files_are_replaced_and_removed_by_the_helpers_or_for_a_reason_that_is_told() -> None:
    places = found()
    new = {place for place in places if place not in TOUCHES}
    assert not new, (
        "give what replaces files to emendo.io (whole_file, whole_folder, replaced_files), or tell the reason"
    )
    assert not set(TOUCHES) - set(places), "these are gone: take them out of the table"


def test_the_files_of_one_report_are_written_into_one_draft() -> None:
    """Written one by one, a disk that gets full in the middle would leave some of the old and some of the new."""
    writers = sorted(ROOT.glob("report/*/write.py"))
    assert len(writers) >= 5
    for path in writers:
        written = [
            call
            for _, call in calls(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(call.func, ast.Name)
            and call.func.id in ("write_text", "write_bytes", "write_json", "write_trace")
        ]
        assert written
        assert [root(call.args[0]) for call in written] == ["draft"] * len(written), path


@every(
    ("line", "name"),
    [
        ("os.replace(a, b)", "replace"),
        ("draft.replace(path)", None),
        ("path.replace(other)", "replace"),
        ("text.replace('a', 'b')", None),
        ("when.replace(tzinfo=None)", None),
        ("shutil.rmtree(out)", "rmtree"),
        ("rows.remove(row)", None),
        ("os.remove(path)", "remove"),
        ("(out / 'a').write_text('')", "write_text"),
        ("(draft / 'a').write_text('')", None),
        ("path.open('wb')", "open"),
        ("path.open('rb')", None),
        ("path.open()", None),
        ("open(path, 'a')", "open"),
        ("open(path)", None),
        ("open(draft / 'x', 'w')", None),
        ("os.open(path, os.O_WRONLY | os.O_TRUNC)", "open"),
        ("os.open(path, os.O_RDONLY)", None),
        ("path.open(mode)", "open"),
    ],
)
def test_what_counts_as_touching_a_file(line: str, name: str | None) -> None:
    ((_, call), *_) = calls(ast.parse(line))
    assert touched(call) == name
