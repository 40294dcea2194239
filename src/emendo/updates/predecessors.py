"""The state that an update was planned on: how many updates, which was the last, and one digest over all of them.

The digest is a chain: that of n updates is made from that of the first n − 1 and the identity of the last. So a state
is named in a few bytes however many updates it holds, the next state costs one hash, and two sequences have one digest
only if they hold the same updates in the same order.

Files of versions 1 to 3 list the identities of all predecessors. The identity of such an update is over that list, so
it is kept; equality and everything else is by the digest, which the list gives.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, ClassVar

_SHA256 = re.compile(r"[0-9a-f]{64}")
_FIELDS = ("chain", "count", "last")


@dataclass(frozen=True)
class Predecessors:
    """Updates in the order in which they were applied, as the one after them names them.

    Args:
        count: How many; 0 is the unedited model.
        chain: Digest over their identities in order; empty for none.
        last: Identity of the last one; empty for none.
        listed: All identities, where a file of an earlier version lists them.
    """

    OBTAINED_BY: ClassVar[str] = "update.preceding or Predecessors.of(ids)"

    count: int = 0
    chain: str = ""
    last: str = ""
    listed: tuple[str, ...] = field(default=(), compare=False, repr=False)

    @classmethod
    def of(cls, ids: Iterable[str]) -> Predecessors:
        """Those with these identities.

        Args:
            ids: In the order in which they were applied.
        """
        known = tuple(ids)
        return cls(len(known), reduce(_linked, known, ""), known[-1] if known else "")

    @classmethod
    def from_header(cls, value: Any) -> Predecessors:
        """What the header of an update file says.

        Raises:
            ValueError: It is neither a list of identities nor an object with count, chain and last.
        """
        if isinstance(value, list):
            if not all(isinstance(id, str) for id in value):
                raise ValueError("preceding must be a list of strings")
            return replace(cls.of(value), listed=tuple(value))
        if not isinstance(value, dict) or tuple(sorted(value)) != _FIELDS:
            raise ValueError(f"preceding must be a list, or an object of {', '.join(_FIELDS)}")
        count, chain, last = value["count"], value["chain"], value["last"]
        if type(count) is not int or count < 1 or not isinstance(last, str):
            raise ValueError("preceding must have a count of at least 1 and the identity of the last")
        if not isinstance(chain, str) or not _SHA256.fullmatch(chain):
            raise ValueError("the chain of preceding must be a SHA-256")
        return cls(count, chain, last)

    def then(self, id: str) -> Predecessors:
        """These and one more.

        Args:
            id: Its identity.
        """
        return Predecessors(self.count + 1, _linked(self.chain, id), id)

    @property
    def header(self) -> list[str] | dict[str, Any]:
        """How an update file names them: a list where it is empty or was one, otherwise count, chain and last."""
        return list(self.listed) if self.listed or not self.count else self.to_dict()

    @property
    def identity(self) -> bytes:
        """What the identity of the update after them is over."""
        return json.dumps(self.header).encode()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"count": self.count, "chain": self.chain, "last": self.last}

    def __len__(self) -> int:
        return self.count

    def __str__(self) -> str:
        if not self.count:
            return "the unedited model"
        return f"1 update ({self.last[:12]}…)" if self.count == 1 else f"{self.count} updates (last {self.last[:12]}…)"


def _linked(chain: str, id: str) -> str:
    """The next digest. The bar keeps apart what is chained and what is added, whatever characters an identity has."""
    return hashlib.sha256(f"{chain}|{id}".encode()).hexdigest()


UNEDITED = Predecessors()
"""No update: the unedited model."""
