"""What the drawings show, read from the code: rooms and imports by grimp, stages from dvc.yaml, first sentences.

The rooms and the floors they stand on are those of the contracts in pyproject.toml, so what is drawn is what the linter
holds the code to.
"""

from __future__ import annotations

import ast
import tomllib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import grimp
import yaml

ROOT = Path(__file__).parents[2]
PACKAGES = ("csr", "pipelines", "serving")


@dataclass
class Drawing:
    """Boxes on floors, and arrows between them.

    Args:
        floors: names of boxes, the uppermost floor first.
        arrows: from, to.
        notes: a second line for a box.
        links: where a click on a box leads.
        colours: a number a box; equal numbers look alike.
    """

    floors: list[list[str]]
    arrows: set[tuple[str, str]]
    notes: dict[str, str] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    colours: dict[str, int] = field(default_factory=dict)


@cache
def import_graph() -> grimp.ImportGraph:
    """Every import of the three packages, without those for type checking only."""
    return grimp.build_graph(*PACKAGES, cache_dir=None, exclude_type_checking_imports=True)


def rooms(package: str) -> Drawing:
    """A package's rooms on the floors that its contract gives them, and who imports whom."""
    floors = _contract(package)
    named = [name for floor in floors for name in floor]
    modules = {name: _modules_of(name, named) for name in named}
    room_of = {module: name for name, own in modules.items() for module in own}
    graph = import_graph()
    arrows = {
        (room_of[importer], room_of[imported])
        for importer in room_of
        for imported in graph.find_modules_directly_imported_by(importer)
        if imported in room_of
    }
    rooms_in_order = list(dict.fromkeys(name.split(".")[1] for name in reversed(named)))
    return Drawing(
        floors,
        without_detours({(a, b) for a, b in arrows if a != b}),
        {name: _count(len(own)) for name, own in modules.items()},
        {name: f"reference/{_page(name)}.html#{name}" for name in named},
        {name: rooms_in_order.index(name.split(".")[1]) for name in named},
    )


def stages(file: str) -> Drawing:
    """The stages of a DVC file and what passes between them."""
    content = yaml.safe_load((ROOT / file).read_text())["stages"]
    maker = {out: stage for stage, body in content.items() for out in _outs(body)}
    arrows = {(stage, maker[dep]) for stage, body in content.items() for dep in body.get("deps", ()) if dep in maker}
    depth = dict.fromkeys(content, 0)
    for _ in content:
        for below, above in arrows:
            depth[below] = max(depth[below], depth[above] + 1)
    floors = [[stage for stage in content if depth[stage] == level] for level in range(max(depth.values()) + 1)]
    notes = {
        stage: ", ".join(out for out in _outs(body) if not out.startswith("reports/"))
        or ("reports" if _outs(body) else "no file")
        for stage, body in content.items()
    }
    links = {stage: f"reference/pipelines.html#pipelines.{stage}" for stage in content}
    downwards = {(above, below) for below, above in without_detours(arrows)}
    return Drawing(floors, downwards, notes, links, dict.fromkeys(content, 0))


def without_detours(arrows: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The arrows without those whose end can be reached another way: fewer lines, the same order. Two boxes that know
    each other keep both."""
    mutual = {(a, b) for a, b in arrows if (b, a) in arrows}
    forward = arrows - mutual
    after: dict[str, set[str]] = {}
    for a, b in forward:
        after.setdefault(a, set()).add(b)

    def reaches(start: str, goal: str, seen: set[str]) -> bool:
        for step in after.get(start, set()) - seen:
            seen.add(step)
            if step == goal or reaches(step, goal, seen):
                return True
        return False

    kept = {(a, b) for a, b in forward if not any(reaches(step, b, {a}) for step in after[a] - {b})}
    return kept | mutual


def first_sentences(package: str) -> list[tuple[str, str]]:
    """Module → the first sentence of its docstring, for every module of a package that has one."""
    found = []
    for file in sorted((ROOT / package.replace(".", "/")).rglob("*.py")):
        text = ast.get_docstring(ast.parse(file.read_text()))
        if text:
            name = ".".join(part for part in file.relative_to(ROOT).with_suffix("").parts if part != "__init__")
            found.append((name, " ".join(text.split("\n\n")[0].split())))
    return found


def _contract(package: str) -> list[list[str]]:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(
        each["layers"] for each in contracts if each["type"] == "layers" and each["layers"][0].startswith(package)
    )
    floors = [[name.strip() for name in layer.replace(":", "|").split("|")] for layer in layers]
    named = [name for floor in floors for name in floor]
    for module in sorted(import_graph().find_children(package)):  # what no contract names: above what it imports
        known = any(name == module or name.startswith(f"{module}.") for name in named)
        if not known and not module.endswith("__main__"):
            below = [
                level
                for level, floor in enumerate(floors)
                for name in floor
                if any(
                    imported == name or imported.startswith(f"{name}.")
                    for own in {module} | import_graph().find_descendants(module)
                    for imported in import_graph().find_modules_directly_imported_by(own)
                )
            ]
            floors[max(0, min(below) - 1) if below else -1].append(module)
    return floors


def _modules_of(room: str, named: list[str]) -> set[str]:
    """A room's modules, without those that are boxes of their own."""
    inner = [name for name in named if name.startswith(f"{room}.")]
    own = {room} | import_graph().find_descendants(room)
    return {each for each in own if not any(each == name or each.startswith(f"{name}.") for name in inner)}


def _count(modules: int) -> str:
    return "1 module" if modules == 1 else f"{modules} modules"


def _page(name: str) -> str:
    """The reference's page that a room or a module is on."""
    is_package = (ROOT / name.replace(".", "/")).is_dir()
    return name if is_package else name.rpartition(".")[0]


def _outs(body: dict) -> list[str]:
    outs = []
    for kind in ("outs", "metrics", "plots"):
        outs += [next(iter(out)) if isinstance(out, dict) else out for out in body.get(kind, ())]
    return outs
