"""YAML that means one thing: every key of a mapping is named once, and nothing stands for something elsewhere."""

from __future__ import annotations

from typing import Any

import yaml

_NULL_ONLY = {
    first: [entry for entry in known if entry[0] == "tag:yaml.org,2002:null"]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
"""How plain values are told apart where only null is not text."""


def loads(text: str, *, as_text: bool = False) -> Any:
    """Parse YAML from a file that anybody may have made.

    Args:
        text: One document.
        as_text: Every plain value but null stays the text that was written, so that ``no`` and ``2.50`` are words.

    Raises:
        ValueError: Not YAML, a key given twice or that is no text, an alias, or nested too deep.
    """
    try:
        loader = _Loader(text)
        if as_text:
            loader.yaml_implicit_resolvers = _NULL_ONLY
        return loader.get_single_data()
    except (RecursionError, yaml.YAMLError) as error:
        raise ValueError(str(error) or "nested too deep") from error


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML whose mappings name every key once (the last would win otherwise, without a word), and without aliases.

    A few lines of aliases of aliases stand for more values than any memory holds, as soon as one is walked or printed.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """A node, or an error for an alias."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.YAMLError(f"the alias *{event.anchor}{event.start_mark}: write its value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, Any]:
        """A mapping, or an error for a repeated key or one that is no text."""
        seen = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if not isinstance(name, str):
                raise yaml.YAMLError(f"a key is a {type(name).__name__}{key.start_mark}, expected a name, in quotes")
            if name in seen:
                raise yaml.YAMLError(f"{name!r} is given twice{key.start_mark}")
            seen.add(name)
        content: dict[str, Any] = super().construct_mapping(node, deep)
        return content
