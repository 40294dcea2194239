"""Work in independent units, by one process, several, or a cluster; every result is the one of the serial run."""

from emendo.parallel.claims import Claim, Claims
from emendo.parallel.joined import Joined
from emendo.parallel.processes import Processes
from emendo.parallel.recipe import WorldRecipe
from emendo.parallel.serial import Serial
from emendo.parallel.units import Finished, ReadyWorld, Unit, Workers, World

__all__ = [
    "Claim",
    "Claims",
    "Finished",
    "Joined",
    "Processes",
    "ReadyWorld",
    "Serial",
    "Unit",
    "Workers",
    "World",
    "WorldRecipe",
]
