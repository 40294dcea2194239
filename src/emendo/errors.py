"""The exception tree. Imports nothing, so that every room of the house can raise from it.

::

    EmendoError                     exit code 1: the work was attempted and failed
    ├── InputError (ValueError)     exit code 2: something that the caller gave cannot be used
    │   ├── RequestError            malformed edit requests (all problems at once)
    │   │   ├── ConflictError       requests that contradict or repeat each other
    │   │   └── DatasetError        a data set without one usable row, or of no known format
    │   ├── MethodError             unknown method, unknown or ill-typed setting
    │   ├── PluginError             something that a package or a caller registers and that cannot be taken
    │   ├── LayerError              a layer that the model does not have
    │   ├── UnsupportedModelError   a model family that Emendo does not edit, with the reason
    │   ├── ModelNotFoundError      no model under that name
    │   ├── CorpusError             text for second moments that cannot be read
    │   ├── MomentsError            a second moment that is missing, damaged or of another model
    │   ├── TargetFileError         a file of remembered target searches that is damaged
    │   ├── ExperimentError         a mode, a configuration or a folder that no experiment can use
    │   ├── UpdateFileError         an update file that is missing, truncated or altered
    │   │   └── BaseMismatchError   a sound update that belongs to another base model
    │   ├── LedgerError             a ledger that is missing, damaged or used against its rules
    │   ├── UndoError               an update that algebra alone cannot take out of a sequence
    │   ├── OutputError             an output path that cannot be written
    │   ├── ExportError             updates or a folder that cannot leave in the form asked for
    │   ├── TraceError              a trace that is damaged or holds something else
    │   ├── ReportError             an experiment folder that cannot be reported
    │   ├── HarnessError            tasks of lm-evaluation-harness that cannot be run
    │   ├── GateConfigError         a gate's configuration or canary file that cannot be used (all problems at once)
    │   ├── WeightsChangedError     weights that somebody else has changed since a session saw them
    │   └── InfeasibleError         equality asked of keys that cannot hold it
    ├── GateError                          an edit that its gate refuses; nothing was written
    ├── InterruptError                     Ctrl-C, with what is written nevertheless
    ├── WorkerError                        another model or version than the others, or workers that are lost
    ├── ClaimLostError                     a unit of work that another worker has taken over
    ├── LedgerBusyError (TimeoutError)     another process writes the ledger
    ├── ModelBusyError                     another thread changes the model, and cannot wait for this one
    ├── HubError (ConnectionError)         the Hugging Face Hub refused, or was not reached
    ├── ServerError (ConnectionError)      a server that serves a model refused, or was not reached
    ├── ProbeError                         a server answers otherwise than Emendo computes
    ├── SelfCheckError (RuntimeError)      the wrapper disagrees with the model in it
    └── NumericalError (ArithmeticError)   a computation left the finite numbers

    EmendoWarning (UserWarning)     nothing failed, and a result is not all that its reader may take it for

Every message says what was found, what was expected, and the argument or command that fixes it.
"""

from __future__ import annotations

from collections.abc import Sequence


class EmendoError(Exception):
    """Root of every error that Emendo raises on purpose."""

    exit_code = 1


def _with_problems(message: str, problems: Sequence[str]) -> str:
    """A single problem stands behind the message, so that the error is one line; several are a list under it."""
    if len(problems) == 1:
        return f"{message} {problems[0]}"
    return "\n".join([message, *(f"  {problem}" for problem in problems)])


class InputError(EmendoError, ValueError):
    """Something that the caller gave cannot be used. Nothing was changed."""

    exit_code = 2


class RequestError(InputError):
    """Malformed edit requests.

    Attributes:
        problems: One line for each problem found, never only the first.
    """

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        self.problems = tuple(problems)
        super().__init__(_with_problems(message, self.problems))


class ConflictError(RequestError):
    """Requests that contradict or repeat each other."""


class DatasetError(RequestError):
    """A data set that cannot be read, is of no known format, or holds no usable row."""


class MethodError(InputError):
    """Unknown method, or a setting that it does not have."""


class PluginError(InputError):
    """Something that a package or a caller registers under a name, and that cannot be taken."""


class LayerError(InputError):
    """A layer index that the model does not have."""


class UnsupportedModelError(InputError):
    """A model family that Emendo does not edit."""


class ModelNotFoundError(InputError):
    """No model could be found under the given name."""


class CorpusError(InputError):
    """Text for second moments that cannot be read."""


class MomentsError(InputError):
    """A second moment that is missing, damaged, or belongs to another model."""


class TargetFileError(InputError):
    """A file of remembered target searches that is damaged or holds something else."""


class ExperimentError(InputError):
    """A mode, a configuration or a folder that no experiment can use."""


class UpdateFileError(InputError):
    """An update file that is missing, truncated or altered."""


class BaseMismatchError(UpdateFileError):
    """A sound update that was made for another base model."""


class LedgerError(InputError):
    """A ledger that is missing, damaged, or used against its rules."""


class UndoError(InputError):
    """An update that algebra alone cannot take out of a sequence; replaying the later edits still can."""


class OutputError(InputError):
    """An output path that cannot be written."""


class ExportError(InputError):
    """Updates or a folder that cannot leave in the form that was asked for."""


class TraceError(InputError):
    """A trace that is damaged or holds something else."""


class ReportError(InputError):
    """An experiment folder that cannot be reported."""


class HarnessError(InputError):
    """Tasks of lm-evaluation-harness that cannot be run."""


class GateConfigError(InputError):
    """A gate's configuration, or a file of canary prompts, that cannot be used.

    Attributes:
        problems: One line for each problem found, never only the first.
    """

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        self.problems = tuple(problems)
        super().__init__(_with_problems(message, self.problems))


class InfeasibleError(InputError):
    """Equality was asked of keys that cannot hold it."""


class InterruptError(EmendoError):
    """Ctrl-C after something was written whole: says what. An interrupt before that stays a KeyboardInterrupt."""

    exit_code = 130


class WeightsChangedError(InputError):
    """Weights were changed by somebody else, so that what is known of the model is no longer true of it."""


class ModelBusyError(EmendoError):
    """Another thread changes the model and waits for this one, which therefore cannot wait for it."""


class WorkerError(EmendoError):
    """A worker has another model or version than the others, or workers are lost again and again."""


class ClaimLostError(EmendoError):
    """A unit of work was taken over by another worker, because this one seemed dead. It writes no more."""


class LedgerBusyError(EmendoError, TimeoutError):
    """Another process writes the ledger."""


class HubError(EmendoError, ConnectionError):
    """The Hugging Face Hub refused, or was not reached."""


class ServerError(EmendoError, ConnectionError):
    """A server that serves a model refused, or was not reached.

    Attributes:
        status: Of its HTTP answer; None where there was none.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        self.status = status
        super().__init__(message)


class ProbeError(EmendoError):
    """A server answers otherwise than Emendo computes. Its clients get what they got before."""


class GateError(EmendoError):
    """An edit that its gate refuses. Nothing was written."""


class SelfCheckError(EmendoError, RuntimeError):
    """The wrapper's view of a module disagrees with what the module computes."""


class NumericalError(EmendoError, ArithmeticError):
    """A computation produced values that are not finite."""


class EmendoWarning(UserWarning):
    """Nothing failed, and a result is not all that its reader may take it for; the command shows it as a note."""
