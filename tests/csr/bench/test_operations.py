"""What ``python -m csr.bench.operations`` shows."""

from __future__ import annotations

import re
import time

import pytest
import torch

from csr.bench.operations import main, profiled


def test_an_operations_share_is_its_own_and_what_was_before_is_not_counted() -> None:
    matrix = torch.ones(400, 400)
    runs: list[int] = []

    def body() -> None:
        runs.append(1)
        if len(runs) == 1:
            torch.sin(matrix)
        for _ in range(20):
            matrix @ matrix
        time.sleep(0.05)

    found, _ = profiled("products", body)
    assert len(runs) == 2
    shares = {each.name: each for each in found.operations}
    assert found.operations[0].name == "aten::mm" and shares["aten::mm"].calls == 20
    assert shares["aten::matmul"].share < shares["aten::mm"].share  # it calls mm, which is not its own time
    assert "aten::sin" not in shares
    assert sum(each.share for each in found.operations) < 1 - 0.05 / found.seconds + 0.01  # sleeping is no operation
    first, second, *_ = found.table(top=2).splitlines()
    assert re.fullmatch(r"products: \d+\.\d\d s, \d+% of it in torch's operations", first)
    assert "aten::mm" in second and second.endswith("20 ×") and len(found.table(top=2).splitlines()) == 3


def test_every_stage_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--device", "cpu", "--train", "32", "--side", "64", "--backbone", "test_convnext", "--top", "3"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("device ")
    heads = [line.partition(":")[0] for line in lines[1:] if not line.startswith("  ")]
    assert heads == ["stage 1", "features", "stage 2", "stage 3"]
    assert any("convolution" in line for line in lines[2:5])
