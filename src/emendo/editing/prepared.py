"""One edit in real time: everything that does not depend on the fact is made beforehand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emendo.arguments import checked
from emendo.editing.plan import Plan
from emendo.methods import MethodConfig, ResolvedMethod
from emendo.requests import AnyContext
from emendo.updates.update import ModelUpdate

if TYPE_CHECKING:
    from emendo.editing.session import EditSession, Requests


class PreparedMethod:
    """A method made ready on a session: from here an edit is its search, one pass a layer and triangular solves.

    Second moments, their factors, sampled contexts and the model's identity are at hand. Before each plan and each
    write the parameters that will be written, and those that torch says were touched, are compared with what they
    should be. What somebody writes to another parameter through ``.data`` is only seen by the next
    `EditSession.plan`, `apply` or `rollback`, which compare all of them.

    Args:
        session: The session.
        method: What it plans by, every value fixed.
        contexts: Prefix contexts of every edit, the plain prompt first.
    """

    OBTAINED_BY = "session.prepare()"

    def __init__(
        self, session: EditSession, method: ResolvedMethod[MethodConfig], contexts: tuple[AnyContext, ...]
    ) -> None:
        self.session, self.method, self.contexts = session, method, contexts

    def __repr__(self) -> str:
        layers = ", ".join(map(str, self.method.config.written_layers))
        return f"<PreparedMethod {self.method.config.name} on {self.session.lm.name}, layers {layers}>"

    @checked
    def plan(self, requests: Requests) -> Plan:
        """Work out an edit on the model as it is now, as `EditSession.plan` does; nothing is changed.

        Args:
            requests: The facts to write.

        Raises:
            InputError: Requests cannot be used, or another session has edits in the model.
        """
        return self.session._plan_ready(requests, self)

    @checked
    def apply(self, update: ModelUpdate | Plan) -> None:
        """Add an update, or that of a plan, to the model, as `EditSession.apply` does.

        Raises:
            BaseMismatchError: The update belongs to another model, or was planned on top of other updates.
            WeightsChangedError: Somebody else has changed the weights.
        """
        self.session._apply(update, self.method.config.written_layers)

    @checked
    def edit(self, requests: Requests) -> Plan:
        """Plan an edit and write it.

        Args:
            requests: The facts to write.
        """
        plan = self.plan(requests)
        self.apply(plan)
        return plan
