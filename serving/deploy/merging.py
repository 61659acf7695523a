"""Settings written into a configuration that people keep by hand: their lines, order and comments stay as they are.

Values are replaced where they stand, and keys that are missing are put in; nothing else of the text changes. What comes
out is read back: if it says anything else than the file before with the settings in it, nothing is written.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from csr.errors import ConfigError
from serving.deploy.config import parse_config

Settings = Mapping[str, Mapping[str, str | int | float]]  # section → key → value


def merge_settings(text: str, settings: Settings, name: str) -> str:
    """The text of a configuration with settings in it.

    Args:
        text: YAML of `serving.deploy.config.ServerConfig`.
        name: of the file, for errors.

    Raises:
        ConfigError: it is no such configuration, or of a form in which the settings have no line of their own.
    """
    before = _loaded(text, name)
    parse_config(before, name)
    newline = "\r\n" if "\r\n" in text else "\n"
    text = text if text.endswith("\n") else text + newline
    root = yaml.compose(text)
    assert isinstance(root, yaml.MappingNode)  # or it would be no configuration
    edits: list[tuple[int, int, str]] = []  # from, to, what stands there afterwards
    for section, values in settings.items():
        found = _value(root, section)
        if found is None:
            edits.append(_added_section(text, root, section, values, newline))
            continue
        held = {key: node for key in values if (node := _value(found, key)) is not None}
        edits += [(node.start_mark.index, node.end_mark.index, _scalar(values[key])) for key, node in held.items()]
        if missing := {key: value for key, value in values.items() if key not in held}:
            edits.append(_added_keys(found, missing, newline))
    after = text
    edits.sort(key=lambda each: each[0])
    for start, end, new in reversed(edits):  # from the end, so that the other places stay right
        after = after[:start] + new + after[end:]
    wanted = before | {section: {**before.get(section, {}), **values} for section, values in settings.items()}
    try:
        right = yaml.safe_load(after) == wanted
    except yaml.YAMLError:
        right = False
    if not right:
        said = ", ".join(f"{part}.{key}: {value}" for part, keys in settings.items() for key, value in keys.items())
        raise ConfigError(f"{name}: cannot be edited without changing other lines; write into it by hand: {said}")
    parse_config(wanted, name)
    return after


def write_settings(file: Path, settings: Settings, otherwise: Mapping[str, Any]) -> None:
    """Merges settings into a file, or makes it: whole, or not at all.

    Args:
        otherwise: what a new file says beside them.

    Raises:
        ConfigError: see `merge_settings`; or the file cannot be written.
    """
    place = file.resolve()  # a link stays one
    draft = place.with_name(f"{place.name}.partial")
    try:
        there = place.exists()
        text = place.read_bytes().decode() if there else yaml.safe_dump(dict(otherwise), sort_keys=False)
        draft.write_bytes(merge_settings(text, settings, str(file)).encode())
        if there:
            shutil.copymode(place, draft)
        draft.replace(place)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: is not YAML ({error})") from None
    finally:
        draft.unlink(missing_ok=True)


def _loaded(text: str, name: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: is not YAML ({error})") from None


def _value(node: yaml.MappingNode, key: str) -> Any:
    return next((value for name, value in node.value if name.value == key), None)


def _added_keys(section: yaml.MappingNode, values: Mapping[str, Any], newline: str) -> tuple[int, int, str]:
    """The edit that puts keys before the others of a section, in its form."""
    if section.flow_style:
        place = section.start_mark.index + 1
        return place, place, f"{_inline(values)}{', ' if section.value else ''}"
    first = section.value[0][0].start_mark
    place = first.index - first.column
    return place, place, _lines(values, " " * first.column, newline)


def _added_section(
    text: str, root: yaml.MappingNode, section: str, values: Mapping[str, Any], newline: str
) -> tuple[int, int, str]:
    """The edit that puts a section at the end, or before the others where all stand in braces."""
    if root.flow_style:
        place = root.start_mark.index + 1
        return place, place, f"{section}: {{{_inline(values)}}}, "
    return len(text), len(text), f"{section}:{newline}{_lines(values, '  ', newline)}"


def _inline(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}: {_scalar(value)}" for key, value in values.items())


def _lines(values: Mapping[str, Any], indent: str, newline: str) -> str:
    return "".join(f"{indent}{key}: {_scalar(value)}{newline}" for key, value in values.items())


def _scalar(value: str | int | float) -> str:
    return yaml.safe_dump(value).splitlines()[0]
