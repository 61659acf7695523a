"""The code's revision, as manifests and MLflow runs name it."""

from __future__ import annotations

import subprocess


def revision() -> str:
    """The git revision, with ``-dirty`` if tracked files differ from it; ``unknown`` outside a repository."""
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode:
        return "unknown"
    command = ["git", "status", "--porcelain", "--untracked-files=no", "--", ":!dvc.lock", ":!reports"]
    changed = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return head.stdout.strip() + ("-dirty" if changed else "")
