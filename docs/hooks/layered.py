"""Boxes on floors and arrows between them → an SVG, laid out as Sugiyama, Tagawa and Toda (1981) lay out hierarchies.

An arrow over several floors passes each on a small point of its own; boxes and points of a floor are put in the order
of the mean place of their neighbours, up and down in turns, and then moved as near to these as their order allows.
Colours are the page's own variables, so a drawing follows its light and dark form.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from html import escape
from statistics import fmean

from rooms import Drawing

CHARACTER = 7.3  # pixels of the box's font, on average
BOX_HEIGHT, FLOOR_HEIGHT, GAP, POINT, MARGIN = 44, 84, 26, 10, 12
SWEEPS = 24

Node = str | tuple[str, str, int]  # a box, or where an arrow (from, to) passes a floor


def svg(drawing: Drawing, title: str) -> str:
    """The drawing as one SVG element."""
    floors, paths = _with_points(drawing)
    widths = {node: _width(node, drawing) for floor in floors for node in floor}
    floors, x = _arrange(floors, paths, widths)
    level = {node: number for number, floor in enumerate(floors) for node in floor}
    left = min(x[node] - widths[node] / 2 for node in x) - MARGIN
    right = max(x[node] + widths[node] / 2 for node in x) + MARGIN
    height = len(floors) * FLOOR_HEIGHT - (FLOOR_HEIGHT - BOX_HEIGHT) + 2 * MARGIN
    top = {node: MARGIN + level[node] * FLOOR_HEIGHT for node in level}
    tip = "tip-" + "-".join(title.lower().split())
    lines = [_arrow([(x[node], top[node], isinstance(node, str)) for node in path], tip) for path in paths]
    lines += [_beside(x, widths, top, a, b, tip) for a, b in drawing.arrows if a < b and level[a] == level[b]]
    boxes = [_box(name, drawing, x[name], top[name], widths[name]) for floor in drawing.floors for name in floor]
    return (
        f'<svg class="house" role="img" aria-label="{escape(title)}" style="max-width: {right - left:.0f}px" '
        f'viewBox="{left:.0f} 0 {right - left:.0f} {height:.0f}" xmlns="http://www.w3.org/2000/svg">'
        f'<defs><marker id="{tip}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        f'orient="auto-start-reverse"><path d="M0 0 8 4 0 8z"/></marker></defs>{"".join(lines + boxes)}</svg>'
    )


def _with_points(drawing: Drawing) -> tuple[list[list[Node]], list[list[Node]]]:
    """Floors with the points that long arrows pass, and each arrow as the nodes on its way down."""
    floors: list[list[Node]] = [list(floor) for floor in drawing.floors]
    level = {name: number for number, floor in enumerate(drawing.floors) for name in floor}
    paths: list[list[Node]] = []
    for a, b in sorted(drawing.arrows):
        if level[a] == level[b]:
            continue
        points: list[Node] = [(a, b, between) for between in range(level[a] + 1, level[b])]
        for offset, point in enumerate(points, level[a] + 1):
            floors[offset].append(point)
        paths.append([a, *points, b])
    return floors, paths


def _arrange(
    floors: list[list[Node]], paths: list[list[Node]], widths: dict[Node, float]
) -> tuple[list[list[Node]], dict[Node, float]]:
    """The order on each floor, and where each node's middle is."""
    above: dict[Node, list[Node]] = {}
    below: dict[Node, list[Node]] = {}
    for path in paths:
        for upper, lower in itertools.pairwise(path):
            below.setdefault(upper, []).append(lower)
            above.setdefault(lower, []).append(upper)
    best, fewest = floors, _crossings(floors, below)
    for sweep in range(SWEEPS):
        neighbours, order = (above, range(len(floors))) if sweep % 2 == 0 else (below, range(len(floors))[::-1])
        place = {node: index / max(1, len(floor) - 1) for floor in floors for index, node in enumerate(floor)}
        floors = list(floors)
        for number in order:
            wanted = {node: fmean([place[n] for n in neighbours.get(node, [node])]) for node in floors[number]}
            floors[number] = sorted(floors[number], key=wanted.__getitem__)
            place |= {node: index / max(1, len(floors[number]) - 1) for index, node in enumerate(floors[number])}
        if (crossings := _crossings(floors, below)) < fewest:
            best, fewest = floors, crossings
    return best, _places(best, above, below, widths)


def _crossings(floors: list[list[Node]], below: dict[Node, list[Node]]) -> int:
    """How often arrows cross."""
    crossings = 0
    for upper, lower in itertools.pairwise(floors):
        place = {node: index for index, node in enumerate(lower)}
        ends = [sorted(place[end] for end in below.get(node, []) if end in place) for node in upper]
        for index, own in enumerate(ends):
            crossings += sum(first > second for other in ends[index + 1 :] for first in own for second in other)
    return crossings


def _places(
    floors: list[list[Node]],
    above: dict[Node, list[Node]],
    below: dict[Node, list[Node]],
    widths: dict[Node, float],
) -> dict[Node, float]:
    x: dict[Node, float] = {}
    for floor in floors:
        total = sum(widths[node] for node in floor) + GAP * (len(floor) - 1)
        edge = -total / 2
        for node in floor:
            x[node] = edge + widths[node] / 2
            edge += widths[node] + GAP
    for sweep in range(20 * SWEEPS):
        for floor in floors if sweep % 2 == 0 else floors[::-1]:
            wants = [_wanted(node, x, above.get(node, []) + below.get(node, [])) for node in floor]
            for node, place in zip(floor, _apart(wants, [widths[node] for node in floor]), strict=True):
                x[node] = place
    return x


def _wanted(node: Node, x: dict[Node, float], neighbours: list[Node]) -> tuple[float, float]:
    """Where a node would like to be, and how much: points of one arrow pull hardest, so that it runs straight."""
    if not neighbours:
        return x[node], 1.0
    pulls = [(1, 4, 40)[(not isinstance(node, str)) + (not isinstance(each, str))] for each in neighbours]
    return fmean([x[each] for each in neighbours], pulls), float(sum(pulls))


def _apart(wants: list[tuple[float, float]], widths: list[float]) -> list[float]:
    """The places nearest to the wanted ones that keep order and distance: each run of nodes that would touch moves as
    one block to the weighted mean of what its members want."""
    blocks: list[tuple[float, float, float, int]] = []  # weighted sum of wanted starts, weight, width, members
    for (place, weight), width in zip(wants, widths, strict=True):
        blocks.append((weight * (place - width / 2), weight, width + GAP, 1))
        while len(blocks) > 1 and blocks[-1][0] / blocks[-1][1] < blocks[-2][0] / blocks[-2][1] + blocks[-2][2]:
            total, weight, length, members = blocks.pop()
            before, others, offset, earlier = blocks.pop()
            blocks.append((before + total - weight * offset, others + weight, offset + length, earlier + members))
    places, index = [], 0
    for total, weight, _, members in blocks:
        edge = total / weight
        for width in widths[index : index + members]:
            places.append(edge + width / 2)
            edge += width + GAP
        index += members
    return places


def _width(node: Node, drawing: Drawing) -> float:
    if not isinstance(node, str):
        return POINT
    return max(96.0, CHARACTER * max(len(_label(node)), 0.86 * len(drawing.notes.get(node, ""))) + 24)


def _label(name: str) -> str:
    return name.partition(".")[2] or name


def _box(name: str, drawing: Drawing, x: float, top: float, width: float) -> str:
    note = drawing.notes.get(name, "")
    texts = f'<text x="{x:.0f}" y="{top + (19 if note else 27):.0f}">{escape(_label(name))}</text>'
    if note:
        texts += f'<text class="note" x="{x:.0f}" y="{top + 35:.0f}">{escape(note)}</text>'
    colour = drawing.colours.get(name, 0) % 8
    box = f'<rect x="{x - width / 2:.0f}" y="{top}" width="{width:.0f}" height="{BOX_HEIGHT}" rx="6"/>'
    group = f'<g class="box colour-{colour}">{box}{texts}</g>'
    return f'<a href="{escape(drawing.links[name])}">{group}</a>' if name in drawing.links else group


def _arrow(points: list[tuple[float, float, bool]], tip: str) -> str:
    """A curve from the lower edge of the first box over the points to the upper edge of the last."""
    x, top, _ = points[0]
    parts = [f"M{x:.0f} {top + BOX_HEIGHT}"]
    y = top + BOX_HEIGHT
    for next_x, next_top, is_box in points[1:]:
        bend = (next_top - y) / 2
        parts.append(f"C{x:.0f} {y + bend:.0f} {next_x:.0f} {next_top - bend:.0f} {next_x:.0f} {next_top}")
        if not is_box:
            parts.append(f"V{next_top + BOX_HEIGHT}")
        x, y = next_x, next_top + (0 if is_box else BOX_HEIGHT)
    return f'<path class="arrow" marker-end="url(#{tip})" d="{"".join(parts)}"/>'


def _beside(
    x: Mapping[Node, float], widths: Mapping[Node, float], top: Mapping[Node, float], a: str, b: str, tip: str
) -> str:
    """An arrow with two heads between two boxes of one floor."""
    left, right = sorted((a, b), key=x.__getitem__)
    start, end = x[left] + widths[left] / 2, x[right] - widths[right] / 2
    y = top[a] + BOX_HEIGHT / 2
    heads = f'marker-start="url(#{tip})" marker-end="url(#{tip})"'
    return f'<path class="arrow" {heads} d="M{start:.0f} {y:.0f}H{end:.0f}"/>'
