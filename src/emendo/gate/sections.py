"""What a gate's file declares of checks: the section of each, Emendo's own ones, and those that others register."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from emendo.arguments import checked
from emendo.arguments.registry import Registry
from emendo.errors import GateConfigError

if TYPE_CHECKING:
    from emendo.gate.evidence import Evidence, Measurement

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Strict(BaseModel):
    """A section in which every field is known, of its type, and fixed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class CheckConfig(Strict):
    """A check.

    Attributes:
        limit: The last value that passes.
        unmeasured: Whether the edit passes or fails where the check cannot be measured.
    """

    limit: Amount
    unmeasured: Literal["pass", "fail"] = "fail"

    def limit_for(self, facts: int) -> float:
        """The last value that passes for an edit of so many facts."""
        return self.limit


class GrowingConfig(CheckConfig):
    """A check of harm that facts add up to, so that one fact may not do what fifty may.

    Attributes:
        limit: The last value that passes for an edit of one fact.
        each: What every further fact adds to it.
        most: What no number of facts gets beyond; None: no such end.
    """

    each: Amount = 0.0
    most: Amount | None = None

    def limit_for(self, facts: int) -> float:
        """The last value that passes for an edit of so many facts."""
        grown = self.limit + self.each * (max(facts, 1) - 1)
        return grown if self.most is None else min(grown, self.most)


class ShareConfig(CheckConfig):
    """A check of a share of prompts.

    Attributes:
        judge: What is compared with the limit: the share itself, or the end of its 95 % Wilson interval that is worse
            (``"worst_end"``: the edit has to show that it is good) or better for the edit (``"best_end"``: it has to be
            shown bad).
    """

    limit: Share
    judge: Literal["estimate", "worst_end", "best_end"] = "estimate"


class MovedConfig(ShareConfig):
    """A check of the share of prompts that moved.

    Attributes:
        above: KL(reference ‖ edited) of the next token, in nats, above which a prompt counts as moved.
    """

    above: Amount = 0.1


class SuccessConfig(ShareConfig):
    """A check of the share of prompts that give the new target.

    Attributes:
        success: ``"argmax"``: every target token is the most likely one; ``"beats_true"``: the target is likelier than
            the true one, which the record must name; ``"generated"``: greedy continuation begins with the target.
    """

    success: Literal["argmax", "beats_true", "generated"] = "argmax"


Reads = Literal["layers", "prompts", "texts"]
"""What is measured only if a check reads it: the change of each layer, canary prompts, canary texts."""


@dataclass(frozen=True)
class GateCheck:
    """A check beside Emendo's own.

    Attributes:
        name: Of its section ``[checks.NAME]``.
        meaning: One line for people.
        measure: Its number from what was seen; snapshots in it answer further questions when they are asked.
        at_least: Whether the limit is the smallest value that passes; else it is the largest.
        config: The class of its section.
        reads: What it needs of the evidence that is not always there.
    """

    name: str
    meaning: str
    measure: Callable[[Evidence], Measurement]
    at_least: bool = False
    config: type[CheckConfig] = CheckConfig
    reads: frozenset[Reads] = frozenset()


class Checks(Strict):
    """Every check that can be declared; one that is None is not made. Registered ones are declared by their names.

    Attributes:
        efficacy: Share of requests that give the new target; at least.
        paraphrase: Share of paraphrase prompts that give it; at least.
        questions: Share of questions about the facts, in chat and plain, that are answered with it; at least.
        neighborhood_flips: Share of neighbors (neighborhood prompts and localities) with another most likely next
            token; at most.
        neighborhood_lost: Of the neighbors that were right before, the share that no longer is; at most. Neighborhood
            prompts are right where their true target is the argmax, localities where one of their answers is said.
        canary_kl_mean: Mean over canary prompts of KL(reference ‖ edited) of the next token, in nats; at most.
        canary_kl_p99: Its 99th percentile.
        canary_moved: Share of canary prompts whose KL is above the check's `above`; at most.
        canary_flips: Share of canary prompts with another most likely next token; at most.
        text_perplexity: Perplexity of canary texts, edited over reference, of the kind where it is largest; at most.
        text_kl: KL(reference ‖ edited) a token of canary texts, in nats, mean of the kind where it is largest; at most.
        text_flips: Of the tokens of canary texts that the reference gave half or more of the probability, the share
            with another most likely one, of the kind where it is largest; at most.
        text_token: KL(reference ‖ edited) right after a token of canary texts, in nats, over all kinds together, of the
            token where it is largest; at most.
        text_firing: Root mean square of one fact's firing over a kind of canary text, of the fact and the kind where it
            is largest; 1 is as at its own key, at every token; at most.
        perplexity_ratio: Perplexity of the packaged text, edited over reference; at most.
        norm_growth: ‖ΔW‖_F / ‖W‖_F of all updates together, in the layer where it is largest; at most.
        relative_cost: tr(ΔW C ΔWᵀ) / tr(W C Wᵀ) of all updates together, in the layer where it is largest; at most.
    """

    efficacy: SuccessConfig | None = None
    paraphrase: SuccessConfig | None = None
    questions: ShareConfig | None = None
    neighborhood_flips: ShareConfig | None = None
    neighborhood_lost: ShareConfig | None = None
    canary_kl_mean: GrowingConfig | None = None
    canary_kl_p99: GrowingConfig | None = None
    canary_moved: MovedConfig | None = None
    canary_flips: ShareConfig | None = None
    text_perplexity: GrowingConfig | None = None
    text_kl: GrowingConfig | None = None
    text_flips: CheckConfig | None = None
    text_token: CheckConfig | None = None
    text_firing: CheckConfig | None = None
    perplexity_ratio: GrowingConfig | None = None
    norm_growth: CheckConfig | None = None
    relative_cost: CheckConfig | None = None

    _registered: dict[str, CheckConfig] = PrivateAttr(default_factory=dict)

    @model_validator(mode="wrap")
    @classmethod
    def _with_registered(cls, values: Any, handler: ModelWrapValidatorHandler[Checks]) -> Checks:
        """Sections of registered checks are read by their own classes, all others by the fields above."""
        if not isinstance(values, dict):
            return handler(values)
        own = {name: value for name, value in values.items() if name not in cls.model_fields and name in GATE_CHECKS}
        checks = handler({name: value for name, value in values.items() if name not in own})
        for name, value in own.items():
            checks._registered[name] = GATE_CHECKS[name].config.model_validate(value)
        return checks

    @model_serializer(mode="wrap")
    def _all(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """With the registered ones."""
        return {**handler(self), **{name: check.model_dump(mode="json") for name, check in self._registered.items()}}

    @classmethod
    def names(cls) -> list[str]:
        """Every check that can be declared."""
        return [*cls.model_fields, *GATE_CHECKS]

    def declared(self) -> dict[str, CheckConfig]:
        """The checks to make, by name, in the order of reports."""
        found = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: check for name, check in found.items() if check is not None} | self._registered

    def reads(self, what: Reads) -> bool:
        """Whether a registered check reads something that is only there if it is asked for."""
        return any(what in GATE_CHECKS[name].reads for name in self._registered)

    @property
    def ask_prompts(self) -> bool:
        """Whether a check is about canary prompts."""
        return any((self.canary_kl_mean, self.canary_kl_p99, self.canary_moved, self.canary_flips)) or self.reads(
            "prompts"
        )

    @property
    def read_texts(self) -> bool:
        """Whether a check is about canary texts."""
        own = (self.text_perplexity, self.text_kl, self.text_flips, self.text_token, self.text_firing)
        return any(own) or self.reads("texts")


GATE_CHECKS: Registry[GateCheck] = Registry(
    "gate check",
    (),
    of=GateCheck,
    group="emendo.gate_checks",
    option="[checks.NAME]",
    error=GateConfigError,
    reserved=tuple(Checks.model_fields),
)
"""Checks beside Emendo's own, which are the fields of `Checks`."""


@checked
def register_gate_check(check: GateCheck, *, replace: bool = False) -> GateCheck:
    """Add a check: ``[checks.NAME]`` of a gate's file then declares it.

    Args:
        check: The entry.
        replace: Take the place of a registered one of the same name.

    Raises:
        PluginError: The name is taken, or it is no check.
    """
    return GATE_CHECKS.register(check, replace=replace)
