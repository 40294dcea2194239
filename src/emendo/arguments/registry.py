"""Things by name that others can add to: built in, registered at run time, or brought by an installed package.

A package adds to a registry through an entry point of the registry's group, in its ``pyproject.toml``::

    [project.entry-points."emendo.methods"]
    my-method = "my_package.methods:MY_METHOD"

What it points to is imported when that name is first asked for, or when the whole registry is listed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from emendo.arguments.suggest import unknown_name
from emendo.errors import InputError, PluginError

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Named things of one type. As a mapping it takes names as they are spelled; `named` takes them in any case.

    Args:
        kind: What one of them is, such as ``"method"``.
        entries: Those of Emendo.
        of: The class that each has to be of.
        group: Entry-point group of packages that bring more.
        option: The option or argument that takes such a name.
        error: What an unknown name raises.
        name_of: The name of a thing.
        reserved: Names of Emendo's that are kept elsewhere, and that nobody may take.
    """

    def __init__(
        self,
        kind: str,
        entries: Iterable[T],
        *,
        of: type[T],
        group: str,
        option: str,
        error: type[InputError] = InputError,
        name_of: Callable[[T], str] = lambda entry: str(getattr(entry, "name")),  # noqa: B009  # T has no bound
        reserved: Iterable[str] = (),
    ) -> None:
        self.kind, self.group = kind, group
        self._of, self._option, self._error, self._name_of = of, option, error, name_of
        self._entries: dict[str, T] = {name_of(entry): entry for entry in entries}
        self._origins: dict[str, str] = dict.fromkeys((*self._entries, *reserved), "Emendo")
        self._waiting: dict[str, EntryPoint] | None = None  # None: nobody has looked yet

    def register(self, entry: T, *, replace: bool = False) -> T:
        """Add a thing under its own name.

        Args:
            entry: What is added.
            replace: Take the place of a registered one of the same name, as when a notebook's cell is run again.

        Returns:
            The same.

        Raises:
            PluginError: It is of another type, or its name is taken; says by whom.
        """
        origin = f"register_{self.kind.replace(' ', '_')}()"
        self._check(entry, origin)
        name = self._name_of(entry)
        taken = self._taken(name)
        mine = self._origins.get(name) == origin
        if taken is not None and not (replace and mine):
            again = "; give replace=True to put the new one in its place" if mine else ""
            raise PluginError(
                f"{self.kind} {name!r} is there already, from {taken}; {origin} would add it again. "
                f"Give it a name of its own{again}"
            )
        self._entries[name], self._origins[name] = entry, origin
        return entry

    def unregister(self, name: str) -> None:
        """Forget a thing that was added with `register`; Emendo's own stay.

        Raises:
            PluginError: No such thing was registered.
        """
        if not self._origins.get(name, "").startswith("register_"):
            raise PluginError(f"{self.kind} {name!r} was not registered at run time; expected one that was")
        del self._entries[name], self._origins[name]

    def named(self, name: str) -> T:
        """The thing of a name, in any case.

        Raises:
            InputError: No such name (as `error` of the registry), with the nearest known one.
            PluginError: A package brings it, and it cannot be loaded.
        """
        known = self.spelled(name)
        if known is None:
            raise self._error(unknown_name(self.kind, name, self, self._option))
        return self[known]

    def spelled(self, name: str) -> str | None:
        """A name as the registry spells it, whatever its case; None for an unknown one."""
        if name in self:
            return name
        return next((known for known in self if known.casefold() == name.casefold()), None)

    def origin(self, name: str) -> str:
        """Who brought a name: ``"Emendo"``, a package, or the function that registered it."""
        waiting = self._plugins()
        return _package(waiting[name]) if name in waiting else self._origins[name]

    def __getitem__(self, name: str) -> T:
        waiting = self._plugins()
        if name in waiting:
            self._load(waiting[name])
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self._plugins()

    def __iter__(self) -> Iterator[str]:
        waiting = self._plugins()
        return iter([*self._entries, *waiting])

    def __len__(self) -> int:
        return len(self._plugins()) + len(self._entries)

    def _plugins(self) -> dict[str, EntryPoint]:
        """Entry points that nobody has asked for yet, by name. Only their names are read here; nothing is imported.

        Raises:
            PluginError: A name is taken.
        """
        if self._waiting is None:
            found: dict[str, EntryPoint] = {}
            for point in entry_points(group=self.group):
                taken = self._origins.get(point.name) or (_package(found[point.name]) if point.name in found else None)
                if taken is not None:
                    raise PluginError(
                        f"{self.kind} {point.name!r} is given twice: by {taken} and by {_package(point)} (entry point "
                        f"{point.value} of {self.group}); uninstall one of the two, or rename one"
                    )
                found[point.name] = point
            self._waiting = found
        return self._waiting

    def _load(self, point: EntryPoint) -> None:
        try:
            entry = point.load()
        except Exception as error:  # whatever a stranger's module raises
            raise PluginError(
                f"{self.kind} {point.name!r} of {_package(point)} cannot be loaded from {point.value}: "
                f"{type(error).__name__}: {error}. Update or uninstall the package"
            ) from error
        origin = f"{_package(point)} ({point.value})"
        self._check(entry, origin)
        if self._name_of(entry) != point.name:
            raise PluginError(
                f"{origin} calls its {self.kind} {self._name_of(entry)!r}, and its entry point in {self.group} "
                f"{point.name!r}; expected one name for both"
            )
        self._entries[point.name], self._origins[point.name] = entry, _package(point)
        if self._waiting is not None:
            self._waiting.pop(point.name, None)

    def _check(self, entry: object, origin: str) -> None:
        if not isinstance(entry, self._of):
            raise PluginError(
                f"{origin} gives a {type(entry).__name__} as a {self.kind}; expected a {self._of.__name__}"
            )

    def _taken(self, name: str) -> str | None:
        """Who has a name already, in any case: names that differ in nothing else could not be told apart."""
        known = self.spelled(name) or next((own for own in self._origins if own.casefold() == name.casefold()), None)
        return None if known is None else self.origin(known)


class Selection(Mapping[str, T], Generic[T]):
    """The part of a registry that something holds for; what is registered later is in it too."""

    def __init__(self, registry: Registry[T], holds: Callable[[T], bool]) -> None:
        self._registry, self._holds = registry, holds

    def __getitem__(self, name: str) -> T:
        entry = self._registry[name]
        if not self._holds(entry):
            raise KeyError(name)
        return entry

    def __iter__(self) -> Iterator[str]:
        return (name for name, entry in self._registry.items() if self._holds(entry))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _package(point: EntryPoint) -> str:
    return f"package {point.dist.name!r}" if point.dist is not None else f"entry point {point.value!r}"
