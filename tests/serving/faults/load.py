"""Readers who ask all the time, and remember what they were told."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2 as httpx

from serving.client import Client, ClientError, InteractionRequest, ServerUnreachableError
from serving.store import Store

LONGEST_S = 60.0  # that a request with all its repetitions may take


@dataclass
class Heard:
    """What readers were told: entries of the ledger, refusals by code, and how long it took."""

    records: list[tuple[int, str]] = field(default_factory=list)
    models: set[str] = field(default_factory=set)
    refused: Counter[str] = field(default_factory=Counter)
    longest_s: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, outcome: tuple[int, str] | str, model: str, seconds: float) -> None:
        with self._lock:
            self.longest_s = max(self.longest_s, seconds)
            if isinstance(outcome, str):
                self.refused[outcome] += 1
            else:
                self.records.append(outcome)
                self.models.add(model)

    def said(self) -> str:
        return f"{len(self.records)} acknowledged, refused {dict(self.refused)}, longest {self.longest_s:.1f} s"


@contextmanager
def readers(url: str, key: str, digest: str, count: int) -> Iterator[Heard]:
    """Interactions from several readers while the block runs; none of them may hang."""
    heard, stop = Heard(), threading.Event()

    def read(number: int) -> None:
        with Client(url, key, timeout=httpx.Timeout(20.0, connect=5.0)) as client:
            turn = 0
            while not stop.is_set():
                turn += 1
                request = InteractionRequest(alpha=(number * 1000 + turn) % 997 / 997)
                started = time.monotonic()
                model, outcome = "", ""
                try:
                    answer = client.interact(digest, request)
                    model = answer.model.digest
                    heard.add((answer.record.number, answer.record.hash), model, time.monotonic() - started)
                    continue
                except ClientError as error:
                    outcome = error.code
                except ServerUnreachableError:
                    outcome = "unreachable"
                heard.add(outcome, model, time.monotonic() - started)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield heard
    finally:
        stop.set()
        for thread in threads:
            thread.join(LONGEST_S)
        assert not any(thread.is_alive() for thread in threads), "a reader hangs"
        assert heard.longest_s < LONGEST_S


def check_ledger(heard: Heard, url: str, key_file: Path) -> int:
    """Everything that was acknowledged is there, once, and the chain is whole. Returns the ledger's length."""
    store = Store.open(url, key_file.read_bytes().strip())
    try:
        verified = store.ledger.verify()
        assert verified.faults == ()
        there = {(row["number"], row["hash"]) for row in store.ledger.entries()}
        assert set(heard.records) <= there
        assert len(set(heard.records)) == len(heard.records), "two answers were told the same entry"
        return verified.head.number
    finally:
        store.database.close()


def wait_for(condition: Callable[[], bool], seconds: float) -> float:
    """Returns after how many seconds it came true."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"not within {seconds:.0f} s"
        time.sleep(0.05)
    return time.monotonic() - started


def status(url: str, path: str) -> int:
    """Of a GET; 0 if nobody answers."""
    try:
        return httpx.get(url + path, timeout=15, trust_env=False).status_code
    except httpx.TransportError:
        return 0
