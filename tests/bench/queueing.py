"""A discrete-event simulation of interactions: replicas that reason, and one ledger that they commit to in groups.

Requests arrive at random (Poisson) and go to the replica with the shorter queue of two drawn by chance, as Ray Serve
routes them. A replica works on as many at once as it has cores. What it has worked out waits for the ledger: one
transaction at a time writes, for all replicas; whoever's turn it is takes along all that waits in its replica, and the
answers leave when the transaction is durable (`serving.store.ledger`). Turns go round in the order in which replicas
began to wait. A transaction takes ``commit_s``, and ``entry_s`` for each entry in it.

What it leaves out: the network, retries, requests that give up, and replicas that slow each other down because they
share cores, memory or disks.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass
from typing import Literal

import numpy as np

_WORKED_OUT, _COMMITTED = range(2)


@dataclass(frozen=True)
class System:
    """What is simulated; times in seconds.

    Args:
        rate: requests a second.
        replicas, cores: replicas, and what each works on at once.
        service_s: processor time of a request, the mean.
        commit_s, entry_s: of a transaction, and of each entry more in it; both 0: there is no ledger.
        service: how the processor time varies: not at all, or as an exponential distribution.
    """

    rate: float
    replicas: int
    cores: int
    service_s: float
    commit_s: float = 0.0
    entry_s: float = 0.0
    service: Literal["constant", "exponential"] = "exponential"

    @property
    def busy(self) -> float:
        """Share of the replicas' cores that is in use; from 1 on queues grow without end."""
        return self.rate * self.service_s / (self.replicas * self.cores)

    @property
    def ledger_busy(self) -> float:
        """Share of time that entries alone take, however they are grouped; from 1 on no grouping helps."""
        return self.rate * self.entry_s


@dataclass(frozen=True)
class Simulated:
    """What became of the requests.

    Args:
        latency_s: n, of each request from its arrival to its answer.
        waited_s: n, of that the time before a core was free.
        entries: mean number in a transaction; NaN without a ledger.
        commits: transactions a second.
    """

    latency_s: np.ndarray
    waited_s: np.ndarray
    entries: float
    commits: float

    def percentile(self, share: float) -> float:
        """In seconds."""
        return float(np.percentile(self.latency_s, share))


def simulate(system: System, requests: int, seed: int = 0, warm_up: float = 0.1) -> Simulated:
    """Runs so many requests, and leaves out the first share of them, which find everything empty.

    Raises:
        ValueError: more arrives than can be done: there is no steady state to be told.
    """
    if system.busy >= 1 or system.ledger_busy >= 1:
        raise ValueError(f"too much to do: cores {system.busy:.0%} busy, the ledger {system.ledger_busy:.0%}")
    return _Run(system, requests, seed).finished(round(warm_up * requests))


class _Run:
    def __init__(self, system: System, requests: int, seed: int) -> None:
        self._system, rng = system, np.random.default_rng(seed)
        self._arrived = np.cumsum(rng.exponential(1 / system.rate, requests))
        varies = system.service == "exponential"
        self._service = rng.exponential(system.service_s, requests) if varies else np.full(requests, system.service_s)
        self._drawn = rng.integers(0, system.replicas, (requests, 2)).tolist()
        self._started, self._answered = np.zeros(requests), np.zeros(requests)
        self._free, self._load = [system.cores] * system.replicas, [0] * system.replicas
        self._queues: list[deque[int]] = [deque() for _ in range(system.replicas)]
        self._results: list[list[int]] = [[] for _ in range(system.replicas)]  # that wait for the ledger
        self._turns: deque[int] = deque()
        self._writes = False
        self._groups: list[int] = []
        self._events: list[tuple[float, int, int, int]] = []  # when, what, request or group, replica

    def finished(self, left_out: int) -> Simulated:
        for request, when in enumerate(self._arrived.tolist()):
            self._until(when)
            self._arrive(when, request)
        self._until(math.inf)
        kept = slice(left_out, None)
        span = float(self._answered.max())
        return Simulated(
            (self._answered - self._arrived)[kept],
            (self._started - self._arrived)[kept],
            float(np.mean(self._groups)) if self._groups else math.nan,
            len(self._groups) / span,
        )

    def _until(self, end: float) -> None:
        """All that happens before a moment."""
        while self._events and self._events[0][0] <= end:
            when, what, number, replica = heapq.heappop(self._events)
            if what == _WORKED_OUT:
                self._work_out(when, number, replica)
            else:
                self._commit(when, replica)

    def _arrive(self, when: float, request: int) -> None:
        replica = min(self._drawn[request], key=lambda each: self._load[each])
        self._load[replica] += 1
        if self._free[replica]:
            self._free[replica] -= 1
            self._start(when, request, replica)
        else:
            self._queues[replica].append(request)

    def _start(self, when: float, request: int, replica: int) -> None:
        self._started[request] = when
        heapq.heappush(self._events, (when + float(self._service[request]), _WORKED_OUT, request, replica))

    def _work_out(self, when: float, request: int, replica: int) -> None:
        if self._queues[replica]:
            self._start(when, self._queues[replica].popleft(), replica)
        else:
            self._free[replica] += 1
        if not (self._system.commit_s or self._system.entry_s):
            self._answer(when, request, replica)
            return
        self._results[replica].append(request)
        if len(self._results[replica]) == 1:
            self._turns.append(replica)
        self._next_turn(when)

    def _next_turn(self, when: float) -> None:
        if self._writes or not self._turns:
            return
        self._writes, replica = True, self._turns.popleft()
        self._group, self._results[replica] = self._results[replica], []
        self._groups.append(len(self._group))
        took = self._system.commit_s + len(self._group) * self._system.entry_s
        heapq.heappush(self._events, (when + took, _COMMITTED, 0, replica))

    def _commit(self, when: float, replica: int) -> None:
        for request in self._group:
            self._answer(when, request, replica)
        self._writes = False
        self._next_turn(when)

    def _answer(self, when: float, request: int, replica: int) -> None:
        self._answered[request] = when
        self._load[replica] -= 1
