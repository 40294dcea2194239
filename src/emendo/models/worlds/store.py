"""Trained models of worlds, kept as whole folders under EMENDO_HOME: whoever asks for one first trains it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from emendo.arguments.suggest import unknown_name
from emendo.errors import ModelNotFoundError
from emendo.io import strict_json
from emendo.io.cache_folder import MANIFEST, entry_lock, is_sound, store_folder
from emendo.io.home import emendo_home
from emendo.models.silence import silent_transformers
from emendo.models.worlds.families import FAMILIES
from emendo.models.worlds.recipe import Recipe, configuration, train
from emendo.models.worlds.text import train_tokenizer
from emendo.progress import Progress
from emendo.worlds import PREFIX, World, fact_sentences, make_world

_DESTINATION = "set EMENDO_HOME to a directory that can be written"


def world_folder(family: str, world: World, recipe: Recipe) -> Path:
    """Where a trained model lives: another recipe, shape or world is another folder.

    Args:
        family: A name from `FAMILIES`.
        world: What it knows.
        recipe: How it is trained.
    """
    text = [str(sentence) for sentence in fact_sentences(world)]
    made_of = [family, FAMILIES[family], world.seed, text, asdict(recipe)]
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True, default=dict).encode()).hexdigest()
    return emendo_home() / "models" / f"world-{family}-{digest[:12]}"


def trained_folder(family: str, progress: Progress | None = None) -> Path:
    """The folder of a family's model of the world, which is trained first where it is not there yet.

    Processes that want the same one wait for the one that trains it.

    Args:
        family: Its architecture.
        progress: Counts the passes of a training.

    Raises:
        ModelNotFoundError: Unknown family.
        OutputError: The cache cannot be written.
    """
    check_family(family)
    world, recipe = make_world(), Recipe()
    folder = world_folder(family, world, recipe)
    if is_sound(folder):
        return folder
    with entry_lock(folder, _DESTINATION):
        if is_sound(folder):
            return folder
        model, tokenizer, training = train(family, world, recipe, progress)

        def fill(draft: Path) -> dict[str, Any]:
            with silent_transformers():
                model.save_pretrained(draft)
                tokenizer.save_pretrained(draft)
            return {"family": family, "world": world.seed, "recipe": asdict(recipe), "training": asdict(training)}

        return store_folder(folder, fill, _DESTINATION)


def untrained_config(family: str) -> Any:
    """The configuration of a family's model, which need not have been trained.

    Args:
        family: Its architecture.

    Raises:
        ModelNotFoundError: Unknown family.
    """
    check_family(family)
    return configuration(family, len(train_tokenizer(make_world())), Recipe())


def check_family(family: str) -> None:
    """Refuse a name that is no family's.

    Args:
        family: What was given.

    Raises:
        ModelNotFoundError: Unknown family.
    """
    if family not in FAMILIES:
        raise ModelNotFoundError(unknown_name("family of a world's model", family, FAMILIES, f"--model {PREFIX}NAME"))


def told(family: str) -> dict[str, Any] | None:
    """What a trained model says about itself; None where it is not trained yet.

    Args:
        family: A name from `FAMILIES`.
    """
    folder = world_folder(family, make_world(), Recipe())
    if not is_sound(folder):
        return None
    return dict(strict_json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
