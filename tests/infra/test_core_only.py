"""The wheel beside its core dependencies alone: no ray, mlflow, dvc, server or test tool can be imported.

Nothing is downloaded. A fresh virtual environment gets the wheel, and links to exactly those of the installed
distributions that the wheel's requirements lead to when no extra is asked for.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import csr

ROOT = Path(__file__).parents[2]
BEYOND = ("ray", "mlflow", "dvc", "tritonclient", "psycopg", "fastapi", "sqlalchemy", "matplotlib", "pytest", "gevent")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that neither an earlier build nor this one can be seen in the other."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("csr", "pipelines", "serving"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    quiet = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation")
    subprocess.run([sys.executable, "-m", "pip", "wheel", *quiet, "--wheel-dir", folder, source], check=True)
    (file,) = folder.glob("csr-*.whl")
    return file


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of the environment."""
    folder = tmp_path_factory.mktemp("core") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    interpreter = folder / "bin/python"
    install = ("--quiet", "--no-deps", "--no-index", wheel)
    subprocess.run([sys.executable, "-m", "pip", "--python", interpreter, "install", *install], check=True)
    (site,) = folder.glob("lib/python3*/site-packages")
    (installed,) = distributions(path=[str(site)])
    link(list(closure(installed)), site)
    return interpreter


def closure(root: Distribution) -> Iterator[Distribution]:
    """The installed distributions that one requires, and those that they do, but not itself."""
    installed = {canonicalize_name(each.metadata["Name"]): each for each in distributions()}
    waiting, seen = [(root, "")], {(canonicalize_name(root.metadata["Name"]), "")}
    given: set[str] = set()
    while waiting:
        wanting, extra = waiting.pop()
        for requirement in map(Requirement, wanting.requires or []):
            if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
                continue
            name = canonicalize_name(requirement.name)
            if name not in given:
                given.add(name)
                yield installed[name]
            new = {(name, each) for each in ("", *requirement.extras)} - seen
            seen |= new
            waiting += [(installed[name], each) for _, each in new]


def link(chosen: list[Distribution], site: Path) -> None:
    """Links files of distributions into a folder: whole folders where nobody else has a file in them, since folders
    such as ``google`` and ``nvidia`` belong to many."""
    held = {each.metadata["Name"]: each.files or [] for each in distributions()}
    owners: dict[PurePosixPath, set[str]] = defaultdict(set)
    for name, files in held.items():
        for folder in {folder for file in files for folder in file.parents}:
            owners[folder].add(name)
    for each in chosen:
        for file in held[each.metadata["Name"]]:
            if ".." in file.parts:  # programs
                continue
            whole = next(
                (folder for folder in reversed(file.parents) if folder.name and len(owners[folder]) == 1), file
            )
            target = site / whole
            if not target.is_symlink():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(each.locate_file(whole))


def run(python: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs isolated: no variables, no user's packages, nothing of the working folder."""
    return subprocess.run([python, "-I", *arguments], cwd=cwd, capture_output=True, text=True, timeout=300)


def test_the_wheel_holds_the_page_and_the_licence(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    page = {
        file.relative_to(ROOT).as_posix() for file in (ROOT / "serving/interfaces/page").rglob("*") if file.is_file()
    }
    assert page and page <= held
    assert any(name.endswith("licenses/LICENSE") for name in held)
    modules = {
        file.relative_to(ROOT).as_posix()
        for name in ("csr", "pipelines", "serving")
        for file in (ROOT / name).rglob("*.py")
    }
    assert modules == {name for name in held if name.endswith(".py")}


def test_every_module_of_csr_can_be_imported(python: Path, tmp_path: Path) -> None:
    program = f"""
import importlib, importlib.util, pkgutil
import csr
assert not [name for name in {BEYOND} if importlib.util.find_spec(name)]
modules = [each.name for each in pkgutil.walk_packages(csr.__path__, "csr.")]
for name in modules:
    importlib.import_module(name)
print(len(modules))
"""
    done = run(python, "-c", program, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(list((ROOT / "csr").rglob("*.py"))) - 1


def test_commands_of_an_extra_that_is_missing_say_which(python: Path, tmp_path: Path) -> None:
    for command, extra in (("serve", "serving"), ("predict", "serving"), ("models", "pipeline")):
        done = run(python, "-m", "csr", command, cwd=tmp_path)
        assert done.returncode == 1
        assert done.stderr.startswith(f"csr {command} needs the extra {extra} (")
        assert done.stderr.endswith(f"is missing): pip install 'csr[{extra}]'\n")
        assert done.stderr.count("\n") == 1
    done = run(python, "-m", "csr", "data", "check", "nowhere", cwd=tmp_path)
    assert done.returncode == 1
    assert "nowhere" in done.stderr and "Traceback" not in done.stderr


def test_the_ten_lines_run_on_a_smaller_phantom(python: Path, tmp_path: Path) -> None:
    lines = (csr.__doc__ or "").splitlines()
    code = [number for number, line in enumerate(lines) if line.startswith("    ")]
    block = textwrap.dedent("\n".join(lines[code[0] : code[-1] + 1])) + "\n"
    assert f"```python\n{block}```\n" in (ROOT / "README.md").read_text(), (
        "README shows other lines than csr's docstring"
    )
    benchmark, smaller = 'Path("phantom"))', 'Path("phantom"), csr.PhantomConfig(train=80, val=60, test=60), side=64)'
    assert benchmark in block
    program = block.replace(benchmark, smaller)
    program += """
assert set(csr.evaluate(model, data)) == {"iid", "shifted"}
assert not (before.probabilities == after.probabilities).all()
again = csr.predict(csr.TrainedCSR.load(Path("csr.pt")), images)
assert (again.probabilities - before.probabilities).abs().max() < 1e-5
assert runner.golden_error() < 1e-3
"""
    done = run(python, "-c", program, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sum(line.startswith("epoch ") for line in done.stdout.splitlines()) == 12 + 4 + 30
