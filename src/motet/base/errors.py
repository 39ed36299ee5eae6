"""The one exception that a user meets: what is wrong, what was given, what to do."""


class UserError(ValueError):
    """Caused by input; the command line prints its text without a traceback and exits with `exit_code`."""

    exit_code = 2


class Paused(UserError):
    """An alarm ended the run, as the recipe asked for; a checkpoint was saved."""

    exit_code = 3


class Elsewhere(UserError):
    """Raised by the other processes of a run when the first one has failed; that one says what it was."""
