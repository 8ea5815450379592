"""The one tree of errors, and the exit codes that scripts may rely on.

    CloudftError            1   something went wrong that no other row names
    ├── UsageError          2   the command was typed wrong (Click's own code too)
    ├── ConfigError         3   cloudft.yaml is missing, malformed or contradicts itself
    ├── DataError           4   a data file is empty, broken or unfit for training
    ├── NotFound            5   no such run, model, base or file
    ├── Busy                6   something of the same kind is still going on
    ├── StoreError          7   the store refuses, or cannot be reached
    ├── ProviderError       8   the provider refuses, or cannot be reached
    ├── BudgetError         9   the budget does not allow it
    ├── RunFailed          10   the run ended without a model
    ├── IntegrityError     11   what arrived is not what was sent
    ├── EnvironmentProblem 12   this computer lacks something: a package, Docker, disk space
    ├── VerifyError        13   the model was made, but it is not fit to be served
    └── Interrupted       130   Ctrl-C; the message says what goes on running, and what it costs

0 is success, and nothing else is.

Every message says what failed and where, what that means for money and data, and what to do next.
"""

from __future__ import annotations


class CloudftError(Exception):
    """An error that a person can act on; the command line prints it without a traceback.

    Args:
        what: what failed, and where.
        effect: what it means for money and data ("nothing was rented; no file was changed").
        hint: what to do next, with the command to type.
    """

    exit_code = 1

    def __init__(self, what: str, *, effect: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.effect = effect
        self.hint = hint

    def as_dict(self) -> dict[str, object]:
        """The form that ``--json`` prints; ``error`` is the nearest kind of the tree above."""
        return {
            "error": next(kind.__name__ for kind in type(self).__mro__ if kind.__module__ == __name__),
            "what": self.what,
            "effect": self.effect,
            "hint": self.hint,
            "exit_code": self.exit_code,
        }


class UsageError(CloudftError):
    exit_code = 2


class ConfigError(CloudftError):
    exit_code = 3


class DataError(CloudftError):
    exit_code = 4


class NotFound(CloudftError):
    exit_code = 5


class Busy(CloudftError):
    exit_code = 6


class StoreError(CloudftError):
    exit_code = 7


class ProviderError(CloudftError):
    exit_code = 8


class BudgetError(CloudftError):
    exit_code = 9


class RunFailed(CloudftError):
    exit_code = 10


class IntegrityError(CloudftError):
    exit_code = 11


class EnvironmentProblem(CloudftError):
    exit_code = 12


class VerifyError(CloudftError):
    exit_code = 13


class Interrupted(CloudftError):
    exit_code = 130
