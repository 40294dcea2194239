"""Arguments of public functions, held to their annotations before anything runs: what is wrong is said in words.

`checked` reads the annotations of a function and refuses what does not fit with an `InputError`, so that nobody meets
an `AttributeError` from inside. Annotations say ranges as well: ``Annotated[int, Between(1, 10)]``, or one of the names
below. Everywhere, numbers are finite, whole numbers fit into 64 bits, a sequence of texts is not one text, texts can be
written as UTF-8 and paths have no NUL.
"""

from emendo.arguments.checks import check_fields, check_width, checked, checks_of
from emendo.arguments.ranges import (
    Anything,
    Between,
    Confidence,
    Count,
    Measured,
    NotNegative,
    Positive,
    Resamples,
    Seed,
    Share,
    Size,
    TokenId,
)

__all__ = [
    "Anything",
    "Between",
    "Confidence",
    "Count",
    "Measured",
    "NotNegative",
    "Positive",
    "Resamples",
    "Seed",
    "Share",
    "Size",
    "TokenId",
    "check_fields",
    "check_width",
    "checked",
    "checks_of",
]
