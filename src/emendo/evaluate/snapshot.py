"""What one state of a model says: every question is asked once, when its answer is first needed."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, TypeAlias, TypeVar, cast

from emendo.arguments import checked
from emendo.errors import InputError
from emendo.evaluate.aggregate import EditScores
from emendo.evaluate.drift import NextTokenLogProbs, next_token_log_probs
from emendo.evaluate.held_out import packaged_perplexity
from emendo.evaluate.metrics import RecordScore
from emendo.evaluate.perplexity import Perplexity, perplexity
from emendo.evaluate.remembered import RememberedAnswers
from emendo.evaluate.said import SaidRecord, said_records
from emendo.evaluate.said_probes import SaidProbe, said_probes
from emendo.evaluate.scoring import RecordScores, score_records
from emendo.evaluate.text_drift import TextTokens, text_tokens
from emendo.evaluate.tokens import Ids
from emendo.models import EditableModel
from emendo.progress import Watched, watching
from emendo.requests import EditRecord, Prompt

Opener: TypeAlias = Callable[[], AbstractContextManager[EditableModel]]
"""Opens a state of a model, always the same one, such as ``session.preview_base``."""

_T = TypeVar("_T")

_TOGETHER = 32
"""Prompts of one batch of continuations."""


class Snapshot:
    """One state of a model, asked about records and texts.

    Reports, gates and experiments ask snapshots and never the model itself, so that what two of them need is computed
    once. A question that fails is asked again the next time.

    Args:
        lm: The model as it stands, or a function that opens the state; it is entered for each new question.
        records: The facts with their probes, as the model is asked them in this state; may be none.
        first: Position of the first record among those of which these are consecutive ones.
        progress: Told about every question that is asked.
        remembered: Answers of this state on the disk; None: what is asked is kept in memory alone.
    """

    @checked
    def __init__(
        self,
        lm: EditableModel | Opener,
        records: Sequence[EditRecord] = (),
        *,
        first: int = 0,
        progress: Watched = None,
        remembered: RememberedAnswers | None = None,
    ) -> None:
        self.records = tuple(records)
        self.first = first
        self._progress = watching(progress)
        self._open = _as_it_stands(lm) if isinstance(lm, EditableModel) else lm
        self._known: dict[Hashable, Any] = {}
        self._remembered = remembered

    def asked(self, question: Hashable, ask: Callable[[EditableModel], _T]) -> _T:
        """The answer to any other question.

        Args:
            question: Names it; asked again, it gets the same answer.
            ask: Asks the model.

        Raises:
            InputError: The model holds other edits than when the snapshot was begun.
        """
        if question not in self._known:
            found = None if self._remembered is None else self._remembered.read(question)
            if found is None:
                with self._open() as model:
                    found = ask(model)
                if self._remembered is not None:
                    self._remembered.keep(question, found)
            self._known[question] = found
        return cast("_T", self._known[question])

    def compared(self, before: Snapshot, question: Hashable, compare: Callable[[], _T]) -> _T:
        """What comes out of comparing this state with another one, as JSON values; remembered where both states are.

        Args:
            before: The other state.
            question: Names the comparison.
            compare: Makes it.
        """
        if self._remembered is None or before._remembered is None:
            return compare()
        named = "values", before._remembered.state, question
        found = self._remembered.read(named)
        if found is None:
            found = compare()
            self._remembered.keep(named, found)
        return cast("_T", found)

    @property
    def scored(self) -> tuple[RecordScore, ...]:
        """Scores of every record and prompt.

        Raises:
            InputError: There is no record, or a prompt cannot be scored.
            NumericalError: The model's logits are not finite.
        """
        return self.asked(
            ("scores", self.records), lambda model: score_records(model, self.records, progress=self._progress)
        )

    @cached_property
    def scores(self) -> RecordScores:
        """The same with the metrics over all records and their intervals."""
        return RecordScores(self.scored, EditScores.from_records(self.scored))

    @property
    def said(self) -> tuple[SaidRecord, ...]:
        """What the model says to every record's prompt and paraphrases, and whether that is the new target."""
        return self.asked(
            ("said", self.records), lambda model: said_records(model, self.records, progress=self._progress)
        )

    @property
    def said_probes(self) -> tuple[tuple[SaidProbe, ...], ...]:
        """What the model says to every record's questions and localities."""
        return self.asked(
            ("said probes", self.records), lambda model: said_probes(model, self.records, progress=self._progress)
        )

    @checked
    def perplexity(self, text: str | None = None, *, max_tokens: int | None = None) -> Perplexity:
        """Perplexity of a text; None: of the packaged one, which is remembered for unedited models.

        Args:
            text: The text.
            max_tokens: Read at most so many tokens of it; None: all.

        Raises:
            NumericalError: The model's logits are not finite.
        """
        if text is None:
            return self.asked("perplexity", lambda model: packaged_perplexity(model, progress=self._progress))
        return self.asked(
            ("perplexity", text, max_tokens),
            lambda model: perplexity(model, text, max_tokens=max_tokens, progress=self._progress),
        )

    @checked
    def continuations(self, prompts: Sequence[Prompt], new_tokens: int) -> tuple[str, ...]:
        """Greedy continuations of so many tokens, without space around them."""
        asked = tuple(prompts)

        def generated(lm: EditableModel) -> tuple[str, ...]:
            texts: list[str] = []
            self._progress.start("generation", len(asked))
            for at in range(0, len(asked), _TOGETHER):
                texts += lm.generate_many(asked[at : at + _TOGETHER], new_tokens)
                self._progress.advance(len(asked[at : at + _TOGETHER]))
            self._progress.finish()
            return tuple(text.strip() for text in texts)

        return self.asked(("continuations", asked, new_tokens), generated)

    @checked
    def next_tokens(self, prompts: Sequence[Prompt]) -> NextTokenLogProbs | None:
        """What comes next after each prompt; None where there is no prompt."""
        asked = tuple(prompts)
        if not asked:
            return None
        return self.asked(
            ("next tokens", asked), lambda model: next_token_log_probs(model, asked, progress=self._progress)
        )

    @property
    def untouched(self) -> NextTokenLogProbs | None:
        """What comes next after every prompt that an edit must not touch: neighborhood prompts and localities."""
        return self.next_tokens(
            [
                asked
                for record in self.records
                for asked in (
                    *(record.request.asking(prompt) for prompt in record.neighborhood_prompts),
                    *(record.request.asking_probe(probe) for probe in record.probes if probe.kind == "locality"),
                )
            ]
        )

    @property
    def neighborhood(self) -> NextTokenLogProbs | None:
        """What comes next after every neighborhood prompt, in the order of the records; None where there is none."""
        prompts = [record.request.asking(prompt) for record in self.records for prompt in record.neighborhood_prompts]
        return self.next_tokens(prompts)

    def text_tokens(self, name: Hashable, encode: Callable[[EditableModel], Sequence[Ids]]) -> TextTokens:
        """What is predicted at every token of some texts.

        Args:
            name: Of these texts.
            encode: Their tokens, of a model's tokenizer and template.
        """
        return self.asked(("texts", name), lambda model: text_tokens(model, encode(model), progress=self._progress))


def _as_it_stands(lm: EditableModel) -> Opener:
    """Opens the model, if it still holds what it holds now."""
    begun = lm.contents.now

    def opened() -> AbstractContextManager[EditableModel]:
        if lm.contents.now is not begun:
            raise InputError(
                f"{lm.name!r} holds other edits than when this snapshot was begun, so what was not asked cannot be "
                "asked any more; take a new Snapshot(model), or one of a state that can be opened again "
                "(Snapshot(session.preview_base))"
            )
        return nullcontext(lm)

    return opened
