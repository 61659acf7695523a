"""``csr status``: what a server answers with."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from serving.commands.connection import add_server, connect


def main(arguments: Sequence[str]) -> None:
    """Prints the models in service, what was refused, and every change there was.

    Raises:
        CSRError: the server refuses.
    """
    parser = argparse.ArgumentParser(prog="csr status", description="What a server answers with, and what it did.")
    add_server(parser)
    given = parser.parse_args(arguments)
    with connect(given) as client:
        answer = client.models()
    for model in answer.models:
        print(f"{model.role}: version {model.version}, bundle {model.digest[:12]}, since {model.since}")
    for role, reason in answer.refused.items():
        print(f"{role} refused: {reason}")
    print("history")
    for change in answer.history:
        what = f"version {change.version}, bundle {change.digest[:12]}" if change.digest else "none"
        print(f"  {change.at}  {change.role}: {what}")
