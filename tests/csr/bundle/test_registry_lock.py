"""The lock in the registry's store, over a store that knows what MLflow's knows: names are unique."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from csr.bundle.registry_lock import LockedError, RegistryLock


class Refusal(Exception):
    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.error_code = code


class Registry:
    """Registered models by name; every call is atomic, as a database makes it."""

    def __init__(self) -> None:
        self.models: dict[str, dict[str, str]] = {}
        self._mutex = threading.Lock()

    def create_registered_model(self, name: str, tags: dict[str, Any], description: str) -> None:
        with self._mutex:
            if name in self.models:
                raise Refusal("RESOURCE_ALREADY_EXISTS")
            self.models[name] = dict(tags)

    def get_registered_model(self, name: str) -> SimpleNamespace:
        with self._mutex:
            return SimpleNamespace(tags=dict(self._known(name)))

    def set_registered_model_tag(self, name: str, key: str, value: Any) -> None:
        with self._mutex:
            self._known(name)[key] = str(value)

    def rename_registered_model(self, name: str, new_name: str) -> None:
        with self._mutex:
            if new_name in self.models:
                raise Refusal("RESOURCE_ALREADY_EXISTS")
            self.models[new_name] = self._known(name)
            del self.models[name]

    def delete_registered_model(self, name: str) -> None:
        with self._mutex:
            self._known(name)
            del self.models[name]

    def search_registered_models(self, filter_string: str) -> list[SimpleNamespace]:
        start = filter_string.removeprefix("name LIKE '").removesuffix("%'")
        with self._mutex:
            found = [(name, tags) for name, tags in self.models.items() if name.startswith(start)]
        return [SimpleNamespace(name=name, tags=tags) for name, tags in found]

    def _known(self, name: str) -> dict[str, str]:
        if name not in self.models:
            raise Refusal("RESOURCE_DOES_NOT_EXIST")
        return self.models[name]


def lock(registry: Registry, wait: float = 0.0, silence: float = 600.0) -> RegistryLock:
    return RegistryLock(registry, "csr", "retraining", wait, silence)


def test_a_second_one_is_told_who_is_at_it_and_nothing_is_left_when_all_are_done() -> None:
    registry = Registry()
    with lock(registry) as held:
        held.check()
        with pytest.raises(LockedError, match=rf":{os.getpid()} has been at retraining since 20"), lock(registry):
            pass
    assert registry.models == {}
    with lock(registry):
        assert list(registry.models) == ["csr-lock-retraining"]


def test_one_that_waits_gets_it_when_the_other_is_done() -> None:
    registry, order = Registry(), []

    def second() -> None:
        with lock(registry, wait=10):
            order.append("second")

    with lock(registry):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.3)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_many_at_once_never_hold_it_together() -> None:
    registry, inside, most = Registry(), [0], [0]

    def work() -> None:
        for _ in range(5):
            with lock(registry, wait=60):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.001)
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and registry.models == {}


def abandoned(registry: Registry, silent: float, by: str = "elsewhere:1", place: str = "another machine") -> None:
    tags = {"holder": "old", "by": by, "place": place, "since": "2026", "alive": str(time.time() - silent)}
    registry.create_registered_model("csr-lock-retraining", tags, "")


def test_who_fell_silent_is_taken_for_dead_by_exactly_one() -> None:
    for _ in range(20):
        registry, won = Registry(), []
        abandoned(registry, 700)

        def take(registry: Registry = registry, won: list[str] = won) -> None:
            try:
                with lock(registry):
                    won.append("mine")
                    time.sleep(0.02)
            except LockedError:
                pass

        threads = [threading.Thread(target=take) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert won == ["mine"] and list(registry.models) == ["csr-lock-retraining-dead-old"]
    registry.models["csr-lock-retraining-dead-old"]["alive"] = "0"
    with lock(registry):
        pass
    assert registry.models == {}


def test_who_is_only_slow_keeps_it() -> None:
    registry = Registry()
    abandoned(registry, 500)
    with pytest.raises(LockedError, match="elsewhere:1"), lock(registry):
        pass


def test_a_process_of_this_machine_that_is_gone_is_known_to_be_dead_at_once() -> None:
    from csr.bundle import registry_lock

    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for pid, dead in ((gone.pid, True), (os.getpid(), False)):
        registry = Registry()
        abandoned(registry, 0, f"here:{pid}", registry_lock._place())
        if dead:
            with lock(registry):
                pass
        else:
            with pytest.raises(LockedError), lock(registry):
                pass


def test_one_that_was_taken_over_finds_out_and_leaves_the_new_lock_alone() -> None:
    registry = Registry()
    with lock(registry) as slept:
        registry.models["csr-lock-retraining"]["alive"] = str(time.time() - 700)
        with lock(registry) as other:
            with pytest.raises(LockedError, match="another process took over"):
                slept.check()
            other.check()
            slept.__exit__(None, None, None)
            other.check()


def test_it_says_that_it_is_alive() -> None:
    registry = Registry()
    with lock(registry, silence=0.3):
        time.sleep(0.5)
        assert time.time() - float(registry.models["csr-lock-retraining"]["alive"]) < 0.3
