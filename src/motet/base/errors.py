"""The one exception that a user meets: what is wrong, what was given, what to do."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Caused by input; the command line prints its text without a traceback and exits with `exit_code`."""

    exit_code = 2


class Paused(UserError):
    """An alarm ended the run, as the recipe asked for; a checkpoint was saved."""

    exit_code = 3


class Elsewhere(UserError):
    """Raised by the other processes of a run when the first one has failed; that one says what it was."""


def how_to_install(extra: str) -> str:
    return f"python3 tools/install.py --extras {extra}, or pip install 'motet[{extra}]'"


@contextmanager
def naming(key: str) -> Iterator[None]:
    """Errors inside say which key of the recipe led there: "stage.sft.data[0]: rows.jsonl, line 3: ..."."""
    try:
        yield
    except UserError as error:
        if type(error) is Elsewhere or str(error).startswith((f"{key}:", f"{key}.")):
            raise
        raise UserError(f"{key}: {error}") from error


def bad_row(error: UserError) -> UserError:
    """The same for a row that the recipe might have dropped."""
    return UserError(f'{error}\nCorrect it, or set on_bad_row = "drop".')
