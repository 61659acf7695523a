"""Readers of a server that only another network reaches; run there: ``python -m tests.serving.faults.asker FOLDER``.

``FOLDER/ask.json`` says whom to ask. What happens is told by files there: ``asking`` once both machines answer; then it
waits for ``killed``, and for a hundred answers after that; ``heard.json``, once the ledger is checked.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import httpx2 as httpx

from serving.client import Client
from tests.serving.faults.load import check_ledger, readers, status, wait_for


def nodes(url: str, key: str) -> set[str]:
    """Machines whose replicas have answered something."""
    page = httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {key}"}, timeout=20, trust_env=False).text
    return set(re.findall(r'csr_request_seconds_count\{[^}]*node="(\w+)"', page))


def main(folder: Path) -> None:
    """Asks until it is told to stop."""
    ask = json.loads((folder / "ask.json").read_text())
    url, key, key_file = ask["url"], ask["key"], folder / "ledger.key"
    wait_for(lambda: status(url, "/health/ready") == 200, 240)
    with Client(url, key) as client:
        digest = client.add_study(("a.png", Path(ask["sample"]).read_bytes())).digest
    with readers(url, key, digest, 8) as heard:
        wait_for(lambda: len(heard.records) > 100 and len(nodes(url, key)) == 2, 120)
        (folder / "asking").touch()
        wait_for((folder / "killed").exists, 60)
        seen = len(heard.records)
        back = wait_for(lambda: len(heard.records) > seen + 100, 60)
        gone = wait_for(lambda: len(nodes(url, key)) == 1, 60)
    found = {"length": check_ledger(heard, ask["store"], key_file), "next_hundred_s": back, "node_gone_s": gone}
    found |= {"acknowledged": len(heard.records), "refused": dict(heard.refused), "longest_s": heard.longest_s}
    (folder / "heard.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
