"""Which files of this project a module's work depends on: its own and all that it imports, walked without running any.

Every import counts, also one inside a function, and a package's ``__init__.py`` with each module of it. Imports for
type checkers only do not, since nothing of them runs; nor do files without code. What no walk can see is a module
imported by a name that is computed: it must be named as an entry, as the commands of stages do (see
`pipelines.dependencies`).
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from csr.errors import ConfigError

ROOT = Path(__file__).parents[1]
PACKAGES = ("csr", "pipelines")

# Modules that can refuse a run or keep a record of it and never change what it writes, each with its reason. They are
# no dependency, and what they import is none because of them.
NEVER_IN_OUTPUTS = {
    "csr": "names for people who import csr; stages import from the modules that these names come from",
    "csr.errors": "classes of errors; a stage that raises one writes nothing",
    "pipelines": "switches telemetry off, and says how threads wait",
    "pipelines.params": "checks parameters; their values are known to DVC",
    "pipelines.stage": "opens the MLflow run and turns errors into sentences; paths of outputs are in dvc.yaml too",
    "pipelines.tracking": "MLflow",
    "pipelines.runs": "rows of MLflow's table",
    "pipelines.runs.rows": "what MLflow's rows say",
    "pipelines.flatten": "names of parameters for MLflow, and for telling trainings apart",
    "pipelines.registry": "MLflow's registry",
    "pipelines.imports": "this walk",
    "pipelines.progress": "bars in the terminal",
    "pipelines.storage": "brings files to other machines, which compare them with their digests",
    "pipelines.checkpoints": "which interrupted training may be continued; it ends as an uninterrupted one does",
}


def needed_files(
    entries: Iterable[str], root: Path = ROOT, ignored: Collection[str] = tuple(NEVER_IN_OUTPUTS)
) -> set[str]:
    """Files that the work of some modules depends on.

    Args:
        entries: dotted names of modules.
        root: the folder that holds the packages.
        ignored: modules that are no dependency; the walk ends at them.

    Returns:
        Paths below ``root``, with slashes.

    Raises:
        ConfigError: a module does not exist, or a name is taken from a package whose ``__init__.py`` is ignored, so
            that nobody knows where it comes from.
    """
    todo, seen, found = list(entries), set[str](), set[str]()
    for entry in todo:
        if _file_of(entry, root) is None:
            raise ConfigError(f"{entry}: there is no such module in {root}")
    while todo:
        module = todo.pop()
        if module in seen:
            continue
        seen.add(module)
        todo += _packages_of(module)
        if module in ignored:
            continue
        file = _file_of(module, root)
        assert file is not None
        package = module if file.name == "__init__.py" else module.rpartition(".")[0]
        code, imports = _read(file.read_text(), package)
        name = file.relative_to(root).as_posix()
        if code:
            found.add(name)
        for line, source, taken in imports:
            todo.append(_resolve(source, taken, f"{name}:{line}", root, ignored))
    return found


def _resolve(source: str, name: str, where: str, root: Path, ignored: Collection[str]) -> str:
    """The module that an import of ``source``, or of ``name`` from it, brings in."""
    if name and _file_of(f"{source}.{name}", root) is not None:
        return f"{source}.{name}"
    origin = _file_of(source, root)
    if origin is None:
        raise ConfigError(f"{where}: imports {source}, which does not exist")
    if name and source in ignored and origin.name == "__init__.py":
        raise ConfigError(f"{where}: takes {name!r} from {source}; import it from the module that it comes from")
    return source


@functools.cache
def _read(text: str, package: str) -> tuple[bool, list[tuple[int, str, str]]]:
    """Whether a module has code, and what it imports of this project: line, module, and the name taken from it."""
    tree, found = ast.parse(text), []
    for node in _running(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                base = package.split(".")[: package.count(".") + 2 - node.level]
                source = ".".join([*base, *([source] if source else [])])
            found += [(node.lineno, source, alias.name) for alias in node.names]
    own = [each for each in found if each[1].partition(".")[0] in PACKAGES]
    return len(tree.body) > (ast.get_docstring(tree) is not None), own


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only type checkers see."""
    yield node
    if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        children: Iterable[ast.AST] = node.orelse
    else:
        children = ast.iter_child_nodes(node)
    for child in children:
        yield from _running(child)


def _file_of(module: str, root: Path) -> Path | None:
    path = root.joinpath(*module.split("."))
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)


def _packages_of(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]
