"""The page of the experiment file, read from the pydantic models that read the file."""

from __future__ import annotations

import re
from typing import Any

from griffe import Docstring, DocstringSectionKind, Parser
from pydantic import BaseModel

from emendo.evaluate.measures import chosen
from emendo.experiments.config import CellEntry, ExperimentConfig, MethodEntry
from emendo.experiments.measures import Measures

_TOP = """# Experiment file

Made from the code. `emendo experiment FILE.yaml --out FOLDER` runs the product of all axes, one cell after the other.
A field that is not known is an error with a suggestion.

```yaml
name: sequence
data: counterfact.jsonl
n: 100
methods: [emendo, memit, {method: rome, settings: {target.steps: 20}}]
mode: sequential-batched
batch_sizes: [10]
seeds: [0, 1]
measures: {generated: true}
```

`emendo experiment FILE.yaml --plan-only` lists the cells, and the time that is left once cells are finished.
"""

_MODELS: tuple[tuple[str, type[BaseModel], str], ...] = (
    ("The file", ExperimentConfig, ""),
    ("An entry of `methods`", MethodEntry, "A name alone, or a mapping with these fields."),
    ("An entry of `cells`", CellEntry, "One explicit cell. What it leaves out is the experiment's."),
    ("`measures`", Measures, "What is measured beside the scores of the records."),
)


def experiment_page() -> str:
    """Markdown.

    Raises:
        LookupError: A field that its class does not describe.
    """
    parts = [_TOP]
    for title, model, lead in _MODELS:
        texts = _descriptions(model)
        parts.append(f"## {title}\n")
        parts += [f"{lead}\n"] if lead else []
        for name, field in model.model_fields.items():
            if name not in texts:
                raise LookupError(f"{model.__name__}.{name} has no description in the class's docstring")
            default = "required" if field.is_required() else f"default: `{_default(field.default)}`"
            parts.append(f"`{name}`: {default}\n:   {texts[name]} Type: `{_type(model, name)}`.\n")
    parts += [
        f"`{name}`: default: `false`\n:   {_sentence(measure.meaning)} Type: `bool`.\n"
        for name, measure in chosen().items()
    ]
    return "\n".join(parts)


def _descriptions(described: type) -> dict[str, str]:
    """Text of each field in a Google-style docstring."""
    sections = Docstring(described.__doc__ or "").parse(Parser.google, warnings=False)
    wanted = (DocstringSectionKind.attributes, DocstringSectionKind.parameters)
    return {
        entry.name: " ".join(entry.description.split()).replace("*", "\\*")
        for section in sections
        if section.kind in wanted
        for entry in section.value
    }


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _type(model: type[BaseModel], name: str) -> str:
    """The annotation as it stands in the code."""
    found = next(c.__annotations__[name] for c in model.__mro__ if name in getattr(c, "__annotations__", {}))
    text = found if isinstance(found, str) else str(found)
    text = re.sub(r"Annotated\[(.*), Field\(.*\)\]", r"\1", text).replace("tuple[int, ...]", "list[int]")
    text = text.replace("_Settings", "dict[str, Setting]").replace("_Axis", "dict[str, Setting | list[Setting]]")
    return re.sub(r"\bSetting\b", "value", text)


def _default(value: Any) -> str:
    if isinstance(value, BaseModel):
        return "{}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
