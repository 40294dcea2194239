"""The page of settings, read from the table that `emendo methods NAME` shows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from emendo.methods import BASELINES, METHODS
from emendo.methods.explained import EXPLAINED, NOT_SETTINGS, names_elsewhere
from emendo.methods.table import plain_settings

_TOP = """# Settings

Made from the code. Any setting is given with `--set NAME=VALUE`, with `settings={NAME: VALUE}` in Python, or under
`settings:` in an [experiment file](experiment.md).

* `emendo methods NAME` shows what one method changes, `emendo methods NAME --all` every setting of it.
* `emendo edit … --plan-only` shows every value for your model, and where it comes from.
* A name of other code is answered with the one used here: `--set v_lr=0.1` says `target.learning_rate`.

"""


def settings_page() -> str:
    """Markdown."""
    plain = plain_settings()
    parts = [_TOP, "## Settings of methods\n\nThe default is that of a method which says nothing of its own.\n\n"]
    parts.append(_table(EXPLAINED.keys() & plain.keys(), plain))
    parts.append("\n## Settings of baselines\n\n")
    own = {
        name: value for baseline in reversed(list(BASELINES.values())) for name, value in baseline.settings().items()
    }
    parts.append(_table(EXPLAINED.keys() - plain.keys(), own))
    parts.append("\n`ft` is `ft-l` with `fine_tune.max_change=none`.\n")
    parts.append("\n## Names of other code\n\n| there | here |\n|---|---|\n")
    rows = {name: ", ".join(f"`{here}`" for here in settings) for name, settings in names_elsewhere().items()}
    rows |= {name: f"no setting: {why}" for name, why in NOT_SETTINGS.items()}
    parts += [f"| `{name}` | {rows[name]} |\n" for name in sorted(rows, key=str.lower)]
    parts.append("\n## Where methods differ\n\nEach method against the defaults above.\n\n")
    for method in METHODS.values():
        changed = {n: v for n, v in method.settings().items() if n != "layers" and v != plain[n]}
        told = ", ".join(f"`{name}={_text(value)}`" for name, value in changed.items())
        parts.append(f"* **{method.name}**: {told or 'nothing'}\n")
    return "".join(parts)


def _table(names: Iterable[str], defaults: dict[str, Any]) -> str:
    wanted = set(names)
    rows = ["| setting | default | what it does | elsewhere |\n|---|---|---|---|\n"]
    for name, setting in EXPLAINED.items():
        if name not in wanted:
            continue
        other = ", ".join(f"`{one}`" for one in setting.elsewhere.split(", ") if one)
        where = f"{other} ({setting.where}{'; ' + setting.differs if setting.differs else ''})" if other else ""
        default = "by model" if name == "layers" else f"`{_text(defaults[name])}`"
        rows.append(f"| `{name}` | {default} | {_escaped(setting.meaning)} | {where} |\n")
    return "".join(rows)


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("{", "&#123;")
