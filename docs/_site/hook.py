"""What `mkdocs build` runs: pages that are made from the code, and their places in the navigation."""

from __future__ import annotations

from typing import Any

from api_pages import api_pages
from cli_pages import cli_pages
from experiment_page import experiment_page
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from notebook_pages import notebook_pages
from root_pages import root_pages
from settings_page import settings_page


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the made pages of commands and modules where the navigation names their folder."""
    made = {"reference/cli": list(cli_pages()), "reference/api": list(api_pages())}
    config.nav = _filled(config.nav, made)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every page that is made."""
    pages = {
        **cli_pages(),
        **api_pages(),
        **notebook_pages(),
        **root_pages(),
        "reference/settings.md": settings_page(),
        "reference/experiment.md": experiment_page(),
    }
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def _filled(nav: Any, made: dict[str, list[str]]) -> Any:
    """The navigation with a folder's pages in place of its name."""
    if isinstance(nav, list):
        return [_filled(entry, made) for entry in nav]
    if isinstance(nav, dict):
        return {title: _filled(entry, made) for title, entry in nav.items()}
    return made.get(nav, nav)
