"""Draw the prerequisites graph as SVG: one box per page, with a line for each part that comes from another page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, GAP = 168, 72  # width of a box, and the gap between columns
HEAD, LINE, MARGIN = 24, 16, 14  # height of a box's name, of a part, and the space between boxes

BuiltOn = Mapping[str, Mapping[str, str]]  # page -> role -> prerequisite page
Node = str | tuple[str, str, int]  # a page, or the point where the arrow from one page to another passes through a column


def svg(built_on: BuiltOn) -> str:
    """The graph, drawn from left to right, with pages without prerequisites on the left. "" if no page has prerequisites."""
    if not built_on:
        return ""
    columns = layers(built_on)
    heights = [sum(_height(node, built_on) + MARGIN for node in column) - MARGIN for column in columns]
    places: dict[Node, tuple[int, float]] = {}
    for number, column in enumerate(columns):
        y = 1 + (max(heights) - heights[number]) / 2
        for node in column:
            places[node] = number, y
            y += _height(node, built_on) + MARGIN
    boxes, arrows = [], []
    for node, (number, y) in places.items():
        if isinstance(node, tuple):
            continue
        x = _left(number)
        boxes.append(f'<rect x="{x}" y="{y:g}" width="{WIDTH}" height="{_height(node, built_on)}" rx="4"/>')
        boxes.append(f'<text class="page" x="{x + 10}" y="{y + 16:g}">{escape(node)}</text>')
        for row, (role, part) in enumerate(built_on.get(node, {}).items()):
            line = y + HEAD + LINE * row + LINE / 2
            boxes.append(f'<text class="role" x="{x + 10}" y="{line + 3:g}">{escape(role.replace("_", " "))}</text>')
            first, top = places[part]
            path, at = f"M{_left(first) + WIDTH} {top + HEAD / 2:g}", (_left(first) + WIDTH, top + HEAD / 2)
            for between in range(first + 1, number):
                level = places[part, node, between][1] + _height((part, node, between), built_on) / 2
                path += _curve(at, (_left(between), level)) + f"H{_left(between) + WIDTH}"
                at = _left(between) + WIDTH, level
            arrows.append(f'<path d="{path}{_curve(at, (x - 5, line))}" marker-end="url(#tip)"/>')
    tip = '<path d="M0 0L6 3L0 6z"/>'
    tip = f'<marker id="tip" viewBox="0 0 6 6" refX="1" refY="3" markerWidth="6" markerHeight="6" orient="auto">{tip}</marker>'
    described = "; ".join(f"{page}: " + ", ".join(f"{part} as {role}" for role, part in parts.items()) for page, parts in built_on.items())
    width, height = _left(len(columns)) - GAP + 1, max(heights) + 2
    return (
        f'<svg class="lineage" width="{width}" height="{height:g}" viewBox="0 0 {width} {height:g}" role="img" '
        f'aria-label="{escape(described)}"><defs>{tip}</defs>{"".join(arrows)}{"".join(boxes)}</svg>'
    )


def apart(built_on: BuiltOn, pages: Sequence[str]) -> list[str]:
    """Pages that neither have prerequisites nor are prerequisites."""
    joined = {*built_on, *(part for parts in built_on.values() for part in parts.values())}
    return sorted({*pages} - joined)


def layers(built_on: BuiltOn) -> list[list[Node]]:
    """Assign nodes to columns and sort them. A page is to the right of all its prerequisites and close to them vertically. An arrow that
    spans several columns gets a node in each column in between."""
    pages = list(dict.fromkeys([*(part for parts in built_on.values() for part in parts.values()), *built_on]))
    depth = dict.fromkeys(pages, 0)
    for _ in pages:  # the longest possible chain
        for page, parts in built_on.items():
            depth[page] = min(len(pages), max([depth[page], *(depth[part] + 1 for part in parts.values() if part != page)]))
    levels = {old: new for new, old in enumerate(sorted(set(depth.values())))}
    depth = {page: levels[level] for page, level in depth.items()}
    before: dict[Node, list[Node]] = {page: [] for page in pages}
    level_of: dict[Node, int] = {page: depth[page] for page in pages}
    for page, parts in built_on.items():
        for part in dict.fromkeys(parts.values()):
            last: Node = part
            for level in range(depth[part] + 1, depth[page]):
                node = (part, page, level)
                before[node], level_of[node] = [last], level
                last = node
            before[page].append(last)
    columns: list[list[Node]] = []
    place: dict[Node, float] = {}
    for level in range(len(levels)):
        column = [node for node in before if level_of[node] == level]
        users = {node: sum(node in parts for parts in before.values()) for node in column}
        column.sort(key=lambda node: (_mean([place[other] for other in before[node] if other in place]), -users[node], str(node)))
        place |= {node: number / len(column) for number, node in enumerate(column)}
        columns.append(column)
    return columns


def _left(column: int) -> int:
    return column * (WIDTH + GAP) + 1


def _curve(start: tuple[float, float], end: tuple[float, float]) -> str:
    middle = (start[0] + end[0]) / 2
    return f"C{middle:g} {start[1]:g} {middle:g} {end[1]:g} {end[0]:g} {end[1]:g}"


def _height(node: Node, built_on: BuiltOn) -> int:
    if isinstance(node, tuple):
        return 4
    parts = len(built_on.get(node, {}))
    return HEAD + LINE * parts + (4 if parts else 0)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
