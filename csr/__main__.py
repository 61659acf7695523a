"""The command line ``csr``; also ``python -m csr``.

A command is an entry point of the group ``csr.commands`` that takes the rest of the command line, so that the library
need not know the server's commands or the pipeline's. What those need beyond the library may not be installed: each is
an extra. Whatever a person can mend ends with one sentence and status 1.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points

from csr.errors import CSRError

GROUP = "csr.commands"
EXTRAS = {"serving": "serving", "pipelines": "pipeline"}  # a command's package → the extra that brings what it needs


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and exits."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    commands = {each.name: each for each in entry_points(group=GROUP)}
    listed = ", ".join(sorted(commands))
    if not given or given[0] in ("-h", "--help"):
        print(f"usage: csr COMMAND …\n\ncommands: {listed}\ncsr COMMAND --help says more.")
        sys.exit(0 if given else 2)
    if given[0] not in commands:
        near = difflib.get_close_matches(given[0], commands, n=1, cutoff=0)
        hint = f"did you mean {near[0]!r}? " if near else ""
        sys.exit(f"csr: unknown command {given[0]!r}; {hint}commands: {listed}")
    command = commands[given[0]]
    try:
        status = command.load()(given[1:])
        sys.stdout.flush()
    except CSRError as error:
        sys.exit(f"csr: {error}")
    except ModuleNotFoundError as error:
        package, missing = command.module.partition(".")[0], (error.name or "").partition(".")[0]
        if package not in EXTRAS or missing in ("", "csr", *EXTRAS):
            raise
        extra = EXTRAS[package]
        sys.exit(f"csr {given[0]} needs the extra {extra} ({missing} is missing): pip install 'csr[{extra}]'")
    except BrokenPipeError:  # as with `| head`; Python would complain of it once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    if status:
        sys.exit(status)


if __name__ == "__main__":
    main()
