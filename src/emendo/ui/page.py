"""The page: Gradio components around a desk. What is clicked becomes a call of the desk; what is shown is its state.

Every event is answered at once and outside Gradio's queue, which forgets what waits when a tab is closed. Long work is
a job of the desk, and a timer asks what has changed. Everything found is drawn by `view`, whose templates escape it:
no component here interprets text of models or files (no Markdown, no tables of Gradio's own, no toasts).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from emendo.errors import EmendoError, InputError
from emendo.methods import CATALOGUE
from emendo.ui.desk import Desk
from emendo.ui.fact import Fact
from emendo.ui.view import drawn, panel, version

EVERY = 0.7
"""Seconds between two looks at the desk."""

_AT_ONCE: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
_TITLE = "Emendo"

METHODS = sorted(name for name in CATALOGUE if name != "in-context")
"""In-context editing changes no weights, so there is nothing that a ledger could keep."""


def build(desk: Desk) -> gr.Blocks:
    """The page of a desk."""
    with gr.Blocks(title=_TITLE, analytics_enabled=False) as blocks:
        _Page(desk).lay_out()
    return blocks


def theme() -> gr.themes.Base:
    """Fonts of the system alone: none is asked from another host."""
    sans = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "DejaVu Sans", "sans-serif")
    mono = ("ui-monospace", "DejaVu Sans Mono", "monospace")
    calm = gr.themes.Base(
        primary_hue="blue", neutral_hue="slate", radius_size="sm", spacing_size="sm", font=sans, font_mono=mono
    )
    return calm.set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_title_text_color="*neutral_700",
        button_primary_background_fill="#1f5f8b",
        button_primary_background_fill_hover="#174a6d",
        button_primary_background_fill_dark="#1f5f8b",
        button_primary_text_color="white",
        input_placeholder_color="*neutral_500",
    )


class _Page:
    """The components and what happens when they are used."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.panels: dict[str, gr.HTML] = {}

    def lay_out(self) -> None:
        self.shown = gr.State({})
        self._panel("top")
        with gr.Row(elem_id="em-status"):
            with gr.Column(scale=8, min_width=200):
                self._panel("job")
            self.cancel = gr.Button("Cancel", size="sm", min_width=80, scale=0, interactive=False)
        self.problem = gr.HTML(drawn("problem", problem=""), elem_id="em-problem", apply_default_css=False)
        with gr.Tabs():
            with gr.Tab("Ask", render_children=True):
                self._ask()
            with gr.Tab("Write", render_children=True):
                self._write()
            with gr.Tab("Inside", render_children=True):
                self._look()
            with gr.Tab("History", render_children=True):
                self._history()
            with gr.Tab("Take away", render_children=True):
                self._take()
        self._happens(self.cancel.click, lambda shown: self.desk.cancel(shown.get("running", 0)), [self.shown])
        outputs = [
            self.shown, *self.panels.values(), self.cancel, self.keep, self.discard, self.force,
            self.undone, self.goal, self.first, self.second,
        ]  # fmt: skip
        gr.Timer(EVERY).tick(self._refresh, [self.shown], outputs, **_AT_ONCE)

    def _panel(self, name: str) -> None:
        self.panels[name] = gr.HTML(panel(name, self.desk.state()), elem_id=f"em-{name}", apply_default_css=False)

    def _happens(self, event: Any, action: Callable[..., Any], inputs: list[Any]) -> None:
        """Call the desk; what it refuses stands on the page, as text."""

        def handler(*values: Any) -> str:
            try:
                action(*values)
            except EmendoError as error:
                return drawn("problem", problem=str(error))
            return drawn("problem", problem="")

        event(handler, inputs, self.problem, **_AT_ONCE)

    # ---- the tabs -----------------------------------------------------------------------------------------

    def _ask(self) -> None:
        prompt = gr.Textbox(label="Prompt", placeholder="The Eiffel Tower is located in the city of", lines=1)
        chat = self._chat("A question, asked in the model's chat template")
        ask = gr.Button("Ask", variant="primary")
        self._panel("asked")
        for event in (ask.click, prompt.submit):
            self._happens(event, lambda prompt, chat: self.desk.ask(_text(prompt), chat=bool(chat)), [prompt, chat])

    def _chat(self, label: str) -> gr.Checkbox:
        """Whether something is asked in chat; not to be ticked where the model has no template."""
        there = self.desk.session.lm.has_chat_template
        return gr.Checkbox(label=label if there else f"{label} (this model has none)", value=False, interactive=there)

    def _write(self) -> None:
        prompt = gr.Textbox(
            label="Sentence, up to the answer", placeholder="The Eiffel Tower is located in the city of", lines=1
        )
        with gr.Row():
            subject = gr.Textbox(label="What it is about", placeholder="The Eiffel Tower", min_width=160)
            target = gr.Textbox(label="New answer", placeholder="Rome", min_width=160)
            true = gr.Textbox(label="Present answer (optional)", placeholder="Paris", min_width=160)
        chat = self._chat("The sentence is a question, asked in the model's chat template")
        read = gr.HTML(drawn("read", found={"problem": "", "tokens": []}), elem_id="em-read", apply_default_css=False)
        with gr.Row():
            paraphrases = gr.Textbox(label="Paraphrases, one a line: should give the new answer too", lines=3)
            neighbors = gr.Textbox(label="Neighbors, one a line: should stay as they are", lines=3)
        with gr.Accordion("Settings", open=False):
            settings = self.desk.settings
            method = gr.Dropdown(METHODS, value=settings.method, label="Method")
            system = gr.Textbox(label="System prompt of a question (optional)", lines=1)
            message = gr.Textbox(label="Why (kept in the record)", lines=1)
            old = gr.Checkbox(label="Replace what the ledger has about this fact", value=False)
            gated = gr.Checkbox(
                label="Judge it by the gate", value=self.desk.gate is not None, interactive=self.desk.gate is not None
            )
        preview = gr.Button("Preview", variant="primary")
        self._panel("draft")
        with gr.Row():
            self.keep = gr.Button("Keep in the ledger", interactive=False)
            self.discard = gr.Button("Discard", interactive=False)
        self.force = gr.Textbox(label="Confirmation, to keep it against the gate", visible=False, lines=1)
        fact = [prompt, subject, target, true, paraphrases, neighbors, chat, system]
        shown = [prompt, subject, target, chat, system]
        gr.on([box.change for box in shown], self._read, shown, read, trigger_mode="always_last", **_AT_ONCE)
        self._happens(preview.click, self._preview, [*fact, method, message, old, gated])
        self._happens(self.keep.click, self._keep, [self.shown, self.force])
        self._happens(self.discard.click, self.desk.discard, [])

    def _look(self) -> None:
        gr.HTML('<div class="em"><h2>Where a fact is kept</h2></div>', apply_default_css=False)
        prompt = gr.Textbox(label="Sentence about the subject, up to the answer", lines=1)
        with gr.Row():
            subject = gr.Textbox(label="Subject", min_width=160)
            answer = gr.Textbox(label="Answer (optional: what the model says)", min_width=160)
        edited = gr.Checkbox(label="With the kept edits", value=False)
        trace = gr.Button("Draw the heat maps", variant="primary")
        self._panel("trace")
        self._happens(
            trace.click,
            lambda prompt, subject, answer, edited: self.desk.trace(
                _text(prompt), _text(subject), _text(answer), edited=bool(edited)
            ),
            [prompt, subject, answer, edited],
        )
        gr.HTML('<div class="em"><h2>What carries an answer</h2></div>', apply_default_css=False)
        asked = gr.Textbox(label="Question to the edited model", lines=1)
        said = gr.Textbox(label="Answer to explain", lines=1)
        chat = self._chat("Asked in the model's chat template")
        carry = gr.Button("Show contributions and logit lens")
        self._panel("carried")
        self._happens(
            carry.click,
            lambda asked, said, chat: self.desk.carried(_text(asked), _text(said), chat=bool(chat)),
            [asked, said, chat],
        )

    def _history(self) -> None:
        with gr.Row(elem_classes="em-line"):
            self.undone = gr.Dropdown([], label="Active edit", scale=4, min_width=200, allow_custom_value=True)
            undo = gr.Button("Undo it", scale=0, min_width=120)
        with gr.Row(elem_classes="em-line"):
            self.goal = gr.Dropdown([], label="State", scale=4, min_width=200, allow_custom_value=True)
            go = gr.Button("Go there", scale=0, min_width=120)
        why = gr.Textbox(label="Why (kept in the record)", lines=1)
        verify = gr.Button("Verify files and weights")
        self._panel("verified")
        self._panel("history")
        self._happens(undo.click, self._undo, [self.undone, why])
        self._happens(go.click, self._go, [self.goal, why])
        self._happens(verify.click, self.desk.verify, [])
        gr.HTML('<div class="em"><h2>Compare two states</h2></div>', apply_default_css=False)
        with gr.Row():
            self.first = gr.Dropdown([], label="One state", min_width=200, allow_custom_value=True)
            self.second = gr.Dropdown([], label="The other", min_width=200, allow_custom_value=True)
        prompts = gr.Textbox(label="Prompts, one a line", lines=3)
        chat = self._chat("Questions, asked in the model's chat template")
        compare = gr.Button("Compare")
        self._panel("compared")
        self._happens(
            compare.click,
            lambda first, second, prompts, chat: self.desk.compare(
                _chosen(first, "one state"), _chosen(second, "the other state"), _text(prompts), chat=bool(chat)
            ),
            [self.first, self.second, prompts, chat],
        )

    def _take(self) -> None:
        with gr.Row():
            update = gr.Button("Make the update file")
            adapter = gr.Button("Make the adapter")
        self._panel("taken")
        gr.HTML('<div class="em"><h2>Commands of what was done</h2></div>', apply_default_css=False)
        self._panel("commands")
        self._happens(update.click, lambda: self.desk.take("update"), [])
        self._happens(adapter.click, lambda: self.desk.take("adapter"), [])

    # ---- what is clicked ----------------------------------------------------------------------------------

    def _read(self, prompt: str, subject: str, target: str, chat: bool, system: str) -> str:
        fact = Fact.typed(*map(_text, (prompt, subject, target)), chat=bool(chat), system=_text(system))
        return drawn("read", found=self.desk.read_fact(fact))

    def _preview(self, *values: Any) -> None:
        *typed, chat, system, method, message, old, gated = values
        self.desk.preview(
            Fact.typed(*map(_text, typed), chat=bool(chat), system=_text(system)),
            replace_old=bool(old),
            message=_text(message),
            method=_text(method) or None,
            gated=bool(gated),
        )

    def _keep(self, shown: dict[str, Any], typed: str) -> None:
        self.desk.keep(_text(shown.get("draft_id")), _text(typed))

    def _undo(self, chosen: Any, why: str) -> None:
        self.desk.undo(_chosen(chosen, "an active edit"), _text(why))

    def _go(self, chosen: Any, why: str) -> None:
        self.desk.checkout(_chosen(chosen, "a state"), _text(why))

    # ---- what is shown ------------------------------------------------------------------------------------

    def _refresh(self, shown: dict[str, Any]) -> list[Any]:
        """New values of what has changed since this tab last asked, in the order of the outputs."""
        state = self.desk.state()
        known = dict(shown)
        drawn_now = []
        for name in self.panels:
            if (now := version(name, state)) == known.get(name):
                drawn_now.append(gr.skip())
            else:
                known[name] = now
                drawn_now.append(panel(name, state))
        running = next((job["number"] for job in state["jobs"] if job["state"] == "running"), 0)
        draft = state["draft"]
        known["running"], known["draft_id"] = running, draft["id"] if draft else ""
        changes = [
            _changed(known, "cancel", bool(running), lambda on: gr.update(interactive=on)),
            _changed(known, "keep", (bool(draft), bool(draft and draft["refused"])), _keep_button),
            _changed(known, "discard", bool(draft), lambda on: gr.update(interactive=on)),
            _changed(known, "force", bool(draft and draft["refused"]), lambda on: gr.update(visible=on, value="")),
            *self._choices(known, state),
        ]
        return [known, *drawn_now, *changes]

    def _choices(self, known: dict[str, Any], state: dict[str, Any]) -> list[Any]:
        """Edits that can be undone, and states that can be gone to or compared."""
        moved = state["versions"].get("history")
        if known.get("choices") == moved:
            return [gr.skip()] * 4
        known["choices"] = moved
        rows = state["history"]
        edits = [(_named(row), row["id"]) for row in rows if row["active"]]
        states = [*((_named(row), row["id"]) for row in rows), ("the unedited model", "base")]
        newest = rows[0]["id"]
        return [
            gr.update(choices=edits, value=edits[0][1] if edits else None),
            gr.update(choices=states, value=newest),
            gr.update(choices=states, value="base"),
            gr.update(choices=states, value=newest),
        ]


def _keep_button(state: tuple[bool, bool]) -> Any:
    there, refused = state
    return gr.update(value="Keep it against the gate" if refused else "Keep in the ledger", interactive=there)


def _changed(known: dict[str, Any], name: str, value: Any, update: Callable[[Any], Any]) -> Any:
    if known.get(f"now_{name}") == value:
        return gr.skip()
    known[f"now_{name}"] = value
    return update(value)


def _named(row: dict[str, Any]) -> str:
    return f"{row['number']} · {row['operation']} · {row['what'] or row['id'][:12]}"


def _chosen(value: Any, what: str) -> str:
    if not value:
        raise InputError(f"nothing is chosen; expected {what}")
    return str(value)


def _text(value: Any) -> str:
    """What a field holds; one that was never shown holds None."""
    return str(value or "")
