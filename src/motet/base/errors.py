"""The one exception that a user meets: what is wrong, what was given, what to do."""


class UserError(ValueError):
    """Caused by input; the command line prints its text without a traceback and exits with 2."""
