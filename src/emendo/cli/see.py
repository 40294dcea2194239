"""`emendo see`: what every single edit of an update does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emendo.cli import facts, options
from emendo.cli.console import Terminal
from emendo.cli.pages import check_place, load_update, update_file
from emendo.errors import InputError

if TYPE_CHECKING:
    from emendo.attribution import EditSet
    from emendo.models import EditableModel
    from emendo.report.see.document import Answer, Probe
    from emendo.requests import EditRecord, Prompt
    from emendo.updates.stored import StoredUpdate
    from emendo.updates.update import ModelUpdate

_OUT, _SHOWN, _LEFT_OUT = Path("out/see"), 20, 8
_MOST_TEXT = 64 * 2**20


def see(
    updates: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[UPDATE]...", help="Update files, or folders that hold one; in order."),
    ] = None,
    ledger: Annotated[Path | None, typer.Option("--ledger", help="All active edits of a ledger.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="The model, for firing and answers.")] = None,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", help="Prompt whose answer is attributed; with --answer. Repeatable.")
    ] = None,
    answer: Annotated[list[str] | None, typer.Option("--answer", help="Answer to the --prompt before it.")] = None,
    chat: facts.Chat = False,
    system: facts.System = None,
    requests: Annotated[
        Path | None, typer.Option("--requests", help="The facts with paraphrases and neighbors to fire on.")
    ] = None,
    format: facts.Format = "auto",
    text: Annotated[Path | None, typer.Option("--text", help="A text file, in which edits are looked for.")] = None,
    nodes: Annotated[int, typer.Option("--nodes", help="Points of the numerical integration.")] = 16,
    out: Annotated[Path, typer.Option("--out", help="Folder of the page.")] = _OUT,
    overwrite: options.Overwrite = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    load_in: options.LoadIn = None,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Show what every single edit does: where it fires, what it writes, which answers it carries."""
    terminal = Terminal(json_output=json_output, quiet=quiet)
    from emendo.report.see.write import PAGE, write_seen

    questions = _questions(facts.prompts_in_chat(prompt or [], chat=chat, system=system), answer)
    if model is None and (questions or requests is not None or text is not None):
        raise InputError("--prompt, --requests and --text ask a model; add --model MODEL")
    if nodes < 1:
        raise InputError(f"the quadrature needs at least 1 point, found {nodes} (--nodes 16 is usual)")
    check_place(out, PAGE, overwrite=overwrite or out == _OUT, pictures=model is not None)
    from emendo.attribution import edits_of
    from emendo.report.see.document import Seen, document

    if model is None:
        stored, sources = _stored(updates or [], ledger)
        seen = Seen(edits_of(stored), tuple(sources), dict(stored[0].base))
    else:
        found, sources = _updates(updates or [], ledger)
        records = _records(requests, format)
        seen = _with_model(
            terminal, model, device, dtype, load_in, found, edits_of(found), sources, questions, records, text, nodes
        )
    described = document(seen)
    paths = write_seen(out, seen, described)
    _show(terminal, described)
    terminal.line(f"Page: {paths['page']}")
    terminal.result({**described, "files": paths})


def _with_model(
    terminal: Terminal,
    model: str,
    device: str,
    dtype: str,
    load_in: str | None,
    updates: list[ModelUpdate],
    edits: EditSet,
    sources: list[str],
    questions: list[tuple[Prompt, str]],
    records: list[EditRecord],
    text: Path | None,
    nodes: int,
) -> Any:
    """What asks a model: promoted tokens, firing, attributed answers, a scanned text."""
    from emendo.attribution import promoted, scan
    from emendo.models import load
    from emendo.report.see.document import Seen
    from emendo.updates import check_update
    from emendo.updates.predecessors import UNEDITED

    read = None if text is None else _text(text)
    lm = load(model, device=device, dtype=dtype, load_in=load_in, progress=terminal)
    earlier = UNEDITED
    for update in updates:
        check_update(lm, update, earlier)
        earlier = earlier.then(update.id)
    return Seen(
        edits,
        tuple(sources),
        dict(updates[0].base),
        promoted=promoted(lm, edits),
        probes=tuple(_probes(lm, edits, records)),
        answers=tuple(_answer(lm, edits, prompt, answer, nodes) for prompt, answer in questions),
        scan=None if read is None else scan(lm, edits, read, progress=terminal),
        base_rates=_base_rates(lm, updates, edits),
    )


def _base_rates(lm: EditableModel, updates: list[ModelUpdate], edits: EditSet) -> Any:
    """How far every edit fires on preserved text.

    None where the moments that they were planned with are not kept, or are those of experts, whose sum says nothing of
    how far an edit fires through several at once.
    """
    from emendo.attribution import base_rates
    from emendo.solve import BlockMoment
    from emendo.statistics import MomentStore

    digests = {str((update.info.get("moments") or {}).get("fingerprint")) for update in updates}
    if len(digests) != 1:
        return None
    (digest,), store = digests, MomentStore()
    kept = {layer: store.by_digest(digest, layer, lm.module_name(layer)) for layer in edits.layers}
    means = {layer: moment.mean() for layer, moment in kept.items() if moment is not None}
    known = {layer: mean.cpu() for layer, mean in means.items() if not isinstance(mean, BlockMoment)}
    return base_rates(edits, known) if len(known) == len(kept) else None


def _answer(lm: EditableModel, edits: EditSet, prompt: Prompt, answer: str, nodes: int) -> Answer:
    from emendo.attribution import ask, attribute, leave_out, lens
    from emendo.report.see.document import Answer
    from emendo.requests import prompt_text

    asked = ask(lm, prompt, answer)
    found = attribute(lm, edits, asked, nodes=nodes)
    order = found.by_edit.abs().argsort(descending=True)[:_LEFT_OUT].tolist()
    left = leave_out(lm, edits, asked, [[edit] for edit in order])
    without = tuple((left - found.after).tolist())
    return Answer(prompt_text(prompt), answer, found, without, tuple(order), lens(lm, edits, asked))


def _probes(lm: EditableModel, edits: EditSet, records: list[EditRecord]) -> list[Probe]:
    """Firing on the prompts of every edit, and on the probes of the records that name its facts."""
    from emendo.attribution import strongest_firing
    from emendo.report.see.document import Probe
    from emendo.requests import EditRequest, prompt_text

    by_fact = {record.request.fact: record for record in records}
    asked: list[tuple[int, str, Prompt]] = []
    for number, edit in enumerate(edits.edits):
        for row in edit.requests if not edit.whole else ():
            try:
                request = EditRequest.from_dict(row)
            except (InputError, TypeError):  # a file from elsewhere
                asked.append((number, "own", str(row.get("prompt", "")).replace("{}", str(row.get("subject", "")))))
                continue
            asked.append((number, "own", request.asked))
            if (record := by_fact.get(request.fact)) is not None:
                asked += [(number, "paraphrase", request.asking(text)) for text in record.paraphrase_prompts]
                asked += [(number, "neighbor", request.asking(text)) for text in record.neighborhood_prompts]
    rows = strongest_firing(lm, edits, [prompt for _, _, prompt in asked])
    probes = []
    for (number, kind, prompt), row in zip(asked, rows, strict=True):
        text = prompt_text(prompt)
        others = row.nan_to_num(nan=0.0).clone()
        others[number] = 0.0
        other = int(others.abs().argmax())
        probes.append(
            Probe(number, kind, text, float(row[number]), (float(others[other]), other) if len(row) > 1 else None)
        )
    return probes


def _show(terminal: Terminal, described: dict[str, Any]) -> None:
    labels = [edit["label"] for edit in described["edits"]]
    rows = []
    for edit in described["edits"][:_SHOWN]:
        worst = edit["disturbs"]
        other = None if worst is None else f"{worst['firing']:+.3f} at {labels[worst['edit']]}"
        rows.append((edit["label"], f"{edit['norm']:.3f}", other))
    terminal.table(f"{len(rows)} of {len(labels)} edits", ("edit", "‖ΔW‖", "fires most at another's key"), rows)
    for answer in described["answers"]:
        order = sorted(range(len(labels)), key=lambda e: -abs(answer["by_edit"][e]))[:_LEFT_OUT]
        terminal.table(
            f"{answer['prompt']} → {answer['answer']}: {answer['change']:+.3f} nats (adds up within "
            f"{abs(answer['error']):.1e})",
            ("edit", "contributes"),
            [(labels[e], f"{answer['by_edit'][e]:+.3f}") for e in order],
        )


def _questions(prompts: list[Prompt], answers: list[str] | None) -> list[tuple[Prompt, str]]:
    answers = answers or []
    if len(prompts) != len(answers):
        raise InputError(
            f"{len(prompts)} prompts and {len(answers)} answers; expected an --answer for every --prompt, in order"
        )
    return list(zip(prompts, answers, strict=True))


def _records(requests: Path | None, format: str) -> list[EditRecord]:
    if requests is None:
        return []
    from emendo.datasets import load_records

    return list(load_records(str(requests), format=format).records)


def _stored(paths: list[Path], ledger: Path | None) -> tuple[list[StoredUpdate], list[str]]:
    """The same updates as arrays: nothing of what is shown without a model needs torch.

    Raises:
        InputError: As `_updates`.
    """
    from emendo.updates.stored import StoredUpdate

    _check_named(paths, ledger)
    if ledger is not None:
        from emendo.ledger.files import check_file
        from emendo.ledger.store import LedgerStore, active_after

        store = LedgerStore(ledger)
        found = []
        for entry in active_after(store.chain()):
            path = store.object_path(entry.file)
            check_file(path, entry.file, entry.size, "update file")
            found.append(StoredUpdate.load(path))
        if not found:
            raise InputError(f"the ledger {str(ledger)!r} has no active edit; expected at least one (emendo edit)")
        return found, [str(ledger)]
    return [StoredUpdate.load(update_file(path)) for path in paths], [str(path) for path in paths]


def _updates(paths: list[Path], ledger: Path | None) -> tuple[list[ModelUpdate], list[str]]:
    """The updates that files, folders or a ledger hold, and where they come from.

    Raises:
        InputError: Nothing is named, or both are; or a file cannot be read.
    """
    from emendo.ledger import EditLedger

    _check_named(paths, ledger)
    if ledger is not None:
        return list(EditLedger(ledger).updates()), [str(ledger)]
    return [load_update(path) for path in paths], [str(path) for path in paths]


def _check_named(paths: list[Path], ledger: Path | None) -> None:
    if bool(paths) == (ledger is not None):
        raise InputError("expected update files or folders, or --ledger LEDGER; not both")


def _text(path: Path) -> str:
    try:
        if not path.is_file():
            raise InputError(f"no file at {str(path)!r}; expected a text (--text)")
        if path.stat().st_size > _MOST_TEXT:
            raise InputError(
                f"{str(path)!r} has {path.stat().st_size:,} bytes; expected at most {_MOST_TEXT:,} (--text)"
            )
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {str(path)!r}: {error}; expected a UTF-8 text (--text)") from error
