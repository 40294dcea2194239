"""Experiments: grids of cells, each one method on one selection of records in one mode, resumable after any kill."""

from emendo.experiments.cells import Cell
from emendo.experiments.config import ExperimentConfig, find_config, read_config
from emendo.experiments.measures import Measures
from emendo.experiments.modes import MODES, SCHEDULES, batch_ranges, check_mode, default_batch_size, default_schedule
from emendo.experiments.run import Experiment, PlannedCell
from emendo.experiments.summary import comparable

__all__ = [
    "MODES",
    "SCHEDULES",
    "Cell",
    "Experiment",
    "ExperimentConfig",
    "Measures",
    "PlannedCell",
    "batch_ranges",
    "check_mode",
    "comparable",
    "default_batch_size",
    "default_schedule",
    "find_config",
    "read_config",
]
