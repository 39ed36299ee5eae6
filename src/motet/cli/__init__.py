"""The command line. Nothing heavy is imported before a command needs it: `motet --help` is instant."""

from __future__ import annotations

import os
import sys

import click

# in the order in which --help lists them
# isort: off
from motet.cli import stages, experiments, proofs, reading, data  # noqa: F401
from motet.cli.root import cli

# isort: on

__all__ = ["cli", "main"]


def main() -> None:
    """Prints what a user can mend without a traceback (exit code 2); Ctrl-C says how to go on (130)."""
    from motet.base.errors import Elsewhere, UserError

    try:
        cli(prog_name="motet", standalone_mode=False)
    except Elsewhere:
        sys.exit(2)
    except UserError as error:
        _say(str(error))
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        without = " (without --from)" if "--from" in sys.argv else ""
        click.echo(f"motet: stopped; the same command{without} goes on from here", err=True)
        sys.exit(130)
    except BrokenPipeError:  # `motet judge ... | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(141)
    except OSError as error:
        if error.errno != 28:
            raise
        where = f" ({error.filename})" if error.filename else ""
        click.echo(f"motet: the disk is full{where}. Nothing that was finished is lost: free some room, and the same "
                   "command goes on.", err=True)  # fmt: skip
        sys.exit(2)


def _say(error: str) -> None:
    """Of several processes with the same error the first one says it; the end of that one ends the others."""
    from motet.base.run import follows

    if follows():
        import faulthandler
        import signal
        import time

        faulthandler.unregister(signal.SIGTERM)
        time.sleep(10.0)
    click.echo(f"motet: {error}", err=True)
