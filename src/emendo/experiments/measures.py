"""What is measured in a cell: settings, and a switch for every measure of the table in `emendo.evaluate.measures`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from pydantic_core import PydanticCustomError

from emendo.arguments.suggest import unknown_name
from emendo.evaluate.measure import Measure
from emendo.evaluate.measures import MEASURES, chosen


class Measures(BaseModel):
    """What is measured beside the scores of the records.

    Beside these fields every measure of `emendo.evaluate.measures` that is chosen by name is one, such as
    ``generated=True``; it is False where it is left out.

    Attributes:
        perplexity: On `perplexity_text`, before and after.
        perplexity_text: A UTF-8 text file; None: the passage that comes with Emendo.
        perplexity_tokens: Read at most so many tokens of it; None: all.
        perplexity_batches: In modes that restore the model, perplexity is measured after so many batches at most,
            evenly spaced, and averaged (geometric mean).
        samples: Records whose prompts are continued in words, before and after.
        new_tokens: Tokens of each continuation.
        checkpoints: Sequential modes: numbers of edits after which the curve gets a point; empty: ten, evenly spaced.
        retention_first: Retention is measured on the first so many edits.
    """

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    perplexity: bool = True
    perplexity_text: str | None = None
    perplexity_tokens: int | None = Field(default=None, ge=2)
    perplexity_batches: int = Field(default=32, ge=1)
    samples: int = Field(default=4, ge=0)
    new_tokens: int = Field(default=12, ge=1)
    checkpoints: Annotated[tuple[int, ...], Field(strict=False)] = ()
    retention_first: int = Field(default=100, ge=1)

    def wanted(self, zsre: bool = False) -> tuple[Measure, ...]:
        """The measures that are made, in the order of summaries.

        Args:
            zsre: Whether the records are of zsRE.
        """
        switches = self.model_extra or {}
        return tuple(
            measure for name, measure in MEASURES.items() if (zsre if measure.by_format else switches.get(name))
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return self.model_dump(mode="json")

    @model_validator(mode="before")
    @classmethod
    def _switches(cls, given: Any) -> Any:
        """A switch for every measure, and for nothing else."""
        if not isinstance(given, dict):
            return given
        names = list(chosen())
        for name, value in given.items():
            if name not in cls.model_fields:
                if name not in names:
                    known = [*cls.model_fields, *names]
                    raise PydanticCustomError("measure", unknown_name("measure", name, known, "measures:"))
                if not isinstance(value, bool):
                    raise PydanticCustomError("measure", f"{name} is true or false, found {value!r:.80}")
        return dict.fromkeys(names, False) | given

    @model_serializer(mode="wrap")
    def _described(self, values: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What later versions added is named only where it is set: older folders stay valid."""
        later = {name for name, measure in chosen().items() if measure.since > 0}
        return {name: value for name, value in values(self).items() if name not in later or value}
