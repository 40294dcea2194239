"""Data sets of facts to edit: CounterFact, zsRE, KnowEdit, MQuAKE, known facts and own files, as validated records."""

from emendo.datasets.fields import Fields
from emendo.datasets.formats import FORMATS, DataFormat, format_named, recognise, register_data_format
from emendo.datasets.hub import HubSource, parse_source
from emendo.datasets.json_rows import Row
from emendo.datasets.loading import (
    LoadedRecords,
    Rejected,
    count_reasons,
    load_records,
    parse_records,
    read_records,
    read_rows,
)
from emendo.datasets.rows import split_rows
from emendo.datasets.selection import PARTS, Part, part_of, select
from emendo.datasets.writing import write_records

__all__ = [
    "FORMATS",
    "PARTS",
    "DataFormat",
    "Fields",
    "HubSource",
    "LoadedRecords",
    "Part",
    "Rejected",
    "Row",
    "count_reasons",
    "format_named",
    "load_records",
    "parse_records",
    "parse_source",
    "part_of",
    "read_records",
    "read_rows",
    "recognise",
    "register_data_format",
    "select",
    "split_rows",
    "write_records",
]
