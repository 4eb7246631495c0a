"""What can go wrong through no fault of this program.

UserError            the user can mend it: one line, exit 2, no traceback
├── RecipeError      the recipe's text: a misspelt key, an unknown step, a cycle
├── DataError        a file of rows: missing, empty, a row without its fields
│   └── RowError     one row's text is not what its field promises; rows read in bulk are dropped and counted
├── ModelError       a model that cannot be found, read or used
└── RunError         a run folder that is locked or does not hold what was asked for

Every message says what is wrong, where, what was expected and what to do.
"""


class UserError(Exception):
    """A mistake the user can mend; the command line prints it as one line and exits with 2."""


class RecipeError(UserError):
    """The recipe does not say something that can be run."""


class DataError(UserError):
    """Rows cannot be read, or lack what the step needs."""


class RowError(DataError):
    """One row's text is not what its field promises. ``reason`` is what such rows are counted under."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class ModelError(UserError):
    """A model reference leads nowhere, or to something that cannot be used."""


class RunError(UserError):
    """A run folder is in use, or lacks what was asked for."""


class BudgetError(UserError):
    """What a step or a run may spend on models is spent. What was answered is kept."""


def missing_extra(package: str, extra: str) -> UserError:
    """The error for an optional dependency that is not installed."""
    return UserError(f"{package} is not installed; this needs it: pip install 'openbezoar[{extra}]'")
