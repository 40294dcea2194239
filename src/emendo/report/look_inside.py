"""The pages that look inside a model and its edits: what reports say of them, and where they lie beside a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Look:
    """A page that a command makes.

    Attributes:
        name: Of the command, of its page, and of the folder in which the page lies beside a report.
        what: What it shows.
        arguments: Of the command, run in the folder of an edit.
    """

    name: str
    what: str
    arguments: str

    @property
    def command(self) -> str:
        """As it is run in the folder of a report."""
        return f"emendo {self.name} {self.arguments} --out {self.name}"

    @property
    def link(self) -> str:
        """Its page, from the report."""
        return f"{self.name}/{self.name}.html"


LOOKS = (
    Look("see", "what each single edit reads, writes and carries", ". --model MODEL --requests FACTS"),
    Look("diff", "what changed on prompts of your own", "base . --model MODEL --prompts FILE"),
    Look("trace", "which states of the unedited model carry a fact", "--model MODEL --facts FACTS"),
    Look("layers", "which layers of the model take an edit", "--model MODEL --facts FACTS"),
)
"""In the order in which reports name them."""


def pages_beside(folder: Path) -> list[tuple[Look, str]]:
    """The pages that are there, each with the way to it from a report in the folder.

    Args:
        folder: Of the report; a page lies in a folder of its own there, or is what the report is a part of.
    """
    ways = [(look, way) for look in LOOKS for way in (look.link, f"../{look.name}.html")]
    return [(look, way) for look, way in ways if (folder / way).is_file()]
