"""Puts the settings together, and is the only place that reads the environment.

The environment's variables, the TOML file and the flags all spell the fields of
`server.settings.Settings`.
"""

from __future__ import annotations

import difflib
import math
import os
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from server.settings import FILE_VARIABLE, TYPES, Settings, flag_of, variable_of


class SettingsError(ValueError):
    """A setting cannot be used. The message names it and where it came from."""


def data_dir_of(settings: Settings, environ: Mapping[str, str] = os.environ) -> Path:
    """Where state is kept: the setting, or what the XDG base directory specification says."""
    if settings.data_dir is not None:
        return settings.data_dir
    base = Path(environ.get("XDG_DATA_HOME", ""))
    if not base.is_absolute():  # the specification has relative values ignored
        base = Path(environ.get("HOME") or Path.home()) / ".local" / "share"
    return base / "headrace"


def load_settings(
    *,
    flags: Mapping[str, object],
    environ: Mapping[str, str] = os.environ,
    file: Path | None = None,
) -> Settings:
    """Put the settings together: flag, then environment, then file, then default.

    A flag that is None and a variable that is empty count as not given. Without
    `file`, the variable `HEADRACE_CONFIG` may name one. Variables with the prefix that
    name no setting are ignored, for orchestrators make up their own. Raises
    `SettingsError`.
    """
    if file is None and environ.get(FILE_VARIABLE):
        file = Path(environ[FILE_VARIABLE]).expanduser()
    values = {} if file is None else _from_file(file)
    for name in TYPES:
        if variable := environ.get(variable_of(name)):
            values[name] = _convert(name, variable, f"variable {variable_of(name)}")
        if flags.get(name) is not None:
            values[name] = _convert(name, flags[name], f"flag {flag_of(name)}")
    return Settings(**values)


def _from_file(file: Path) -> dict[str, Any]:
    """Read the TOML file. Relative paths in it are relative to its folder."""
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"file {file}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"file {file}: not valid TOML: {error}") from None
    values = {}
    for key, value in table.items():
        if key not in TYPES:
            near = difflib.get_close_matches(key, TYPES, n=1)
            hint = f", did you mean {near[0]}?" if near else ""
            raise SettingsError(f"file {file}: unknown key {key}{hint}")
        converted = _convert(key, value, f"file {file} key {key}")
        values[key] = file.parent / converted if isinstance(converted, Path) else converted
    return values


def _convert(name: str, value: object, place: str) -> Any:
    """Turn what a flag, a variable or the file holds into the field's type, in range.

    Lists are separated by commas outside the file.
    """
    if TYPES[name].__origin__ == tuple[str, ...] and isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    try:
        converted = msgspec.convert(value, TYPES[name], strict=False, dec_hook=_path)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{place}: {_expected(name, error)}, not {_shown(value)}") from None
    # Comparisons with NaN are always false, so a range alone might not stop it.
    if isinstance(converted, float) and math.isnan(converted):
        raise SettingsError(f"{place}: expected a number, not {_shown(value)}")
    return converted


def _path(kind: type, value: object) -> object:
    if kind is Path and isinstance(value, str) and value:
        return Path(value).expanduser()
    raise msgspec.ValidationError("Expected a path")


def _expected(name: str, error: msgspec.ValidationError) -> str:
    """Say which type and range, or which words, the field takes."""
    words = typing.get_args(TYPES[name].__origin__)
    if words and all(isinstance(word, str) for word in words):
        return "expected " + " or ".join(words)
    if TYPES[name].__origin__ is bool:
        return "expected true or false"
    text = str(error).split(", got ")[0].replace("`", "")
    return text[:1].lower() + text[1:]


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
