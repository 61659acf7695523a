"""Two machines without a common folder train what one does, though one of them fails in mid-epoch."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

from csr.data.phantom import PhantomConfig, generate
from csr.data.prepared import PreparedSet
from csr.training.callbacks import SilentCallbacks
from csr.training.concepts import train_concepts
from csr.training.features import FeatureCache
from csr.training.located import attended_cache
from csr.training.prototypes import train_prototypes
from pipelines.params import Params, parse_params
from tests.machines import SWITCH, Machine, switch, wait_for
from tests.object_store import ENVIRONMENT
from tests.pipelines.conftest import PRESETS, ROOT, SMALL, merge

EPOCHS = 3
S3 = 5000
# Workers on the machine `beta` stop half-way through the second epoch, for ever, once Ray has the first's checkpoint.
STAGE = """
import socket, sys, time
from pathlib import Path
from pyarrow.fs import FileSelector
import pipelines.concepts as stage
from pipelines.stage import run_stage
from pipelines.storage import Storage

real = stage.fit

def has_a_checkpoint():
    storage = Storage.open("s3://shared/csr")
    found = storage.system.get_file_info(FileSelector(storage.checkpoints, recursive=True))
    return any(each.base_name == "checkpoint_manager_snapshot.json" for each in found)

def fit(*places, config, callbacks):
    track, resume = callbacks.track, callbacks.resume
    def stop_half_way(items, total, description):
        for number, item in enumerate(track(items, total, description)):
            if number == total // 2 and description.startswith("concepts 2/"):
                while not has_a_checkpoint():
                    time.sleep(0.5)
                Path("/tmp/half-way").touch()
                time.sleep(3600)
            yield item
    def resumed():
        state = resume()
        if state is not None:
            Path("/tmp/resumed").touch()
        return state
    callbacks.resume = resumed
    if socket.gethostname() == "beta":
        callbacks.track = stop_half_way
    return real(*places, config=config, callbacks=callbacks)

stage.fit = fit
run_stage("concepts", stage.concepts)
"""
REST = """
from pipelines.features import features
from pipelines.prototypes import prototypes
from pipelines.stage import run_stage
run_stage("features", features)
run_stage("prototypes", prototypes)
"""


def make_project(folder: Path) -> Params:
    """A project with a small prepared set."""
    generate(PhantomConfig(train=96, val=32, test=8, contrast=2.0), 64, folder / "data/prepared")
    shutil.copytree(PRESETS, folder / "params/presets")
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    merge(content, SMALL)
    train = {"workers": 2, "threads": 1, "storage": "s3://shared/csr"}
    merge(
        content,
        {"concepts": {"epochs": EPOCHS, "batch_size": 32}, "prototypes": {"precision": "float32"}, "train": train},
    )
    (folder / "params.yaml").write_text(yaml.safe_dump(content))
    return parse_params(content, presets=PRESETS)


def check_curve(project: Path, stage: str, alone: SilentCallbacks, names: tuple[str, ...]) -> None:
    found = pd.read_csv(project / f"reports/curves/{stage}.csv")
    assert list(found["epoch"]) == [each["epoch"] for each in alone.history]
    for name in names:  # the number of threads alone moves them by 2e-3
        assert list(found[name]) == pytest.approx([each[name] for each in alone.history], rel=1e-2), name


@pytest.mark.faults
@pytest.mark.timeout(1200)
def test_two_machines_train_what_one_does_and_outlive_a_third(tmp_path: Path) -> None:
    token = secrets.token_hex(32)
    environment = ENVIRONMENT | {
        "AWS_ENDPOINT_URL": f"http://{SWITCH}:{S3}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_health_check_initial_delay_ms": "2000",
        "RAY_health_check_period_ms": "1000",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        "CUDA_VISIBLE_DEVICES": "",
    }
    own_code = [ROOT / "csr", ROOT / "pipelines", ROOT / "serving"]
    ray = ["ray", "start", "--num-cpus=1", f"--object-store-memory={80 << 20}", "--block"]

    with switch(tmp_path) as between:
        between.start("python", "-m", "tests.object_store", SWITCH, str(S3), "shared")

        def join(machine: Machine) -> None:
            words = [*ray, f"--node-ip-address={machine.address}", f"--address={alpha.address}:6379"]
            machine.start(*words, log="ray.log", **environment)

        alpha, beta = between.machine("alpha"), between.machine("beta", own_code)
        project = alpha.folder / "project"
        params = make_project(project)
        (project / "stage.py").write_text(STAGE)
        head = [*ray, "--head", f"--node-ip-address={alpha.address}", "--port=6379", "--include-dashboard=false"]
        alpha.start(*head, log="ray.log", **environment)
        wait_for(lambda: "Ray runtime started" in alpha.said("ray.log"), 120, lambda: alpha.said("ray.log"))
        join(beta)

        driver = environment | {"RAY_ADDRESS": f"{alpha.address}:6379", "PYTHONPATH": str(ROOT)}
        stage = alpha.start("sh", "-c", "cd project && exec python stage.py", **driver)
        half_way = beta.folder / "half-way"
        wait_for(lambda: half_way.exists() or stage.poll() is not None, 400, alpha.said)
        assert half_way.exists(), alpha.said()
        gamma = between.machine("gamma", own_code)
        join(gamma)
        beta.kill()
        assert stage.wait(400) == 0, alpha.said()

        assert (gamma.folder / "resumed").exists() and not (beta.folder / "resumed").exists(), alpha.said()
        (project / "rest.py").write_text(REST)
        alpha.run("sh", "-c", "cd project && exec python rest.py", **driver)
        for machine, inputs in ((beta, 1), (gamma, 2)):
            assert not (machine.folder / "project").exists()
            fetched = list((machine.folder / "home/.cache/csr/node/inputs").iterdir())
            assert len(fetched) == inputs, "each set that was trained on was fetched, once"
        assert not list((project / ".state/checkpoints").iterdir())

    data, alone = PreparedSet.open(project / "data/prepared"), SilentCallbacks()
    train_concepts(data, params.concepts, alone)
    check_curve(project, "concepts", alone, ("train_loss", "val_loss"))
    alone = SilentCallbacks()
    cache = attended_cache(data, FeatureCache.open(project / "build/features"), False, True)
    train_prototypes(data.collection, cache, params.prototypes, alone)
    check_curve(project, "prototypes", alone, ("train_contrastive", "within", "between"))
