"""Reads the checks of a health gate before anything is probed: types, defaults, and what options need of each other."""

from __future__ import annotations

import collections.abc as c
import math
import re
import urllib.parse
from typing import Any

from .gate_options import TYPES, Check, GateError, Option


def parse_checks(raw: Any) -> list[Check]:
    """The checks, with defaults filled in. Raises GateError for the first that cannot be asked."""
    if not isinstance(raw, list) or not raw:
        raise GateError("checks: is not a list with entries. Remedy: give at least one check; no check is no health.")
    checks = [_parse(index, entry) for index, entry in enumerate(raw, start=1)]
    for index, check in enumerate(checks):
        if check.name in {other.name for other in checks[:index]}:
            raise GateError(f"check '{check.name}': name: is given twice. Remedy: give each check a name of its own.")
    return checks


def _parse(index: int, entry: Any) -> Check:
    if not isinstance(entry, dict) or not entry.get("name"):
        raise GateError(f"check {index}: name: is missing. Remedy: give each check a name, a type and its options.")
    name, kind = str(entry["name"]), entry.get("type")
    if not isinstance(kind, str) or kind not in TYPES:
        raise GateError(f"check '{name}': type: is {kind!r}. Remedy: one of {', '.join(TYPES)}.")
    spec, options = TYPES[kind], {}
    given = {str(key): value for key, value in entry.items() if key not in ("name", "type", "timeout_seconds")}
    for key in given:
        if key not in spec:
            raise GateError(f"check '{name}': {key}: no option of type {kind}. Remedy: one of {', '.join(spec)}.")
    for key, option in spec.items():
        value = given.get(key)
        if value is None and option.required:
            raise GateError(f"check '{name}': {key}: is missing. Remedy: type {kind} needs it.")
        options[key] = option.default if value is None else _convert(name, key, option, value)
    _consistent(name, kind, options)
    limit = entry.get("timeout_seconds")
    timeout = None if limit is None else _convert(name, "timeout_seconds", Option("float"), limit)
    if timeout is not None and timeout <= 0:
        raise GateError(f"check '{name}': timeout_seconds: is {timeout:g}. Remedy: more than 0.")
    return Check(name, kind, options, timeout)


def _convert(name: str, key: str, option: Option, value: Any) -> Any:
    def refuse(remedy: str) -> GateError:
        return GateError(f"check '{name}': {key}: is {value!r}. Remedy: {remedy}.")

    try:
        converted = _CONVERT[option.kind](value)
    except (TypeError, ValueError, OverflowError):
        raise refuse(_KINDS[option.kind]) from None
    if option.choices and converted not in option.choices:
        raise refuse(f"one of {', '.join(option.choices)}")
    if option.kind == "url" and converted:
        _check_url(name, key, converted)
    if key == "port" and not 0 < converted < 65536:
        raise refuse("a port, 1 to 65535")
    return converted


def _check_url(name: str, key: str, url: str) -> None:
    def refuse(remedy: str) -> GateError:
        shown = re.sub(r"//[^/@]*@", "//***@", url)
        return GateError(f"check '{name}': {key}: is '{shown}'. Remedy: {remedy}.")

    try:
        parts = urllib.parse.urlsplit(url)
        port_is_good = parts.port is None or parts.port > 0
    except ValueError:
        port_is_good = False
    if not port_is_good or parts.scheme not in ("http", "https") or not parts.hostname:
        raise refuse("http://HOST:PORT/PATH or https://HOST:PORT/PATH")
    if parts.username or parts.password:
        raise refuse("no credentials in a URL; put them into secrets and name them in headers_from or bearer_from")


def _boolean(value: Any) -> bool:
    words = {"true": True, "yes": True, "false": False, "no": False}
    if isinstance(value, bool):
        return value
    if str(value).lower() not in words:
        raise ValueError
    return words[str(value).lower()]


def _number(value: Any) -> float:
    if isinstance(value, bool) or not math.isfinite(float(value)):
        raise ValueError
    return float(value)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or int(value) != float(value):
        raise ValueError
    return int(value)


def _text(value: Any) -> str:
    if isinstance(value, (dict, list)):
        raise TypeError
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


def _listed(value: Any, item: c.Callable[[Any], Any]) -> list[Any]:
    return [item(one) for one in (value if isinstance(value, list) else [value])]


def _texts(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise TypeError
    return {str(key): _text(one) for key, one in value.items()}


_CONVERT: dict[str, c.Callable[[Any], Any]] = {
    "str": _text,
    "url": _text,
    "int": _whole,
    "float": _number,
    "bool": _boolean,
    "list": lambda value: _listed(value, _whole),
    "strings": lambda value: _listed(value, _text),
    "dict": _texts,
}
_KINDS = {
    "str": "a text",
    "url": "a URL",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list": "a list of whole numbers",
    "strings": "a list of texts",
    "dict": "a mapping of texts",
}


def _consistent(name: str, kind: str, options: c.Mapping[str, Any]) -> None:
    """What options of one check need of each other."""

    def refuse(key: str, what: str, remedy: str) -> GateError:
        return GateError(f"check '{name}': {key}: {what}. Remedy: {remedy}.")

    if kind == "http" and any(key.lower() == "authorization" for key in options["headers"]):
        raise refuse("headers", "has Authorization", "put the value into secrets and name it in headers_from")
    if kind == "sql":
        if (options["expect"] is None) == (options["expect_regex"] is None):
            raise refuse("expect", "exactly one of expect and expect_regex is needed", "give one of the two")
        if options["query"].lstrip().startswith("\\"):
            raise refuse("query", "begins with a backslash", "SQL, not a command of psql")
        try:
            re.compile(options["expect_regex"] or "")
        except re.error as error:
            raise refuse("expect_regex", f"is no regular expression ({error})", "Python's syntax") from None
    if kind == "promql" and (options["value"] is None) != (options["op"] in ("empty", "not_empty")):
        raise refuse("value", f"does not go with op {options['op']}", "a number for each op but empty and not_empty")
    if kind == "qdrant" and options["expected_peers"] < 1:
        raise refuse("expected_peers", f"is {options['expected_peers']}", "1 or more")
    if kind == "canary" and options["base"] and options["of"] in ("exporters", "postgres"):
        raise refuse("base", f"a canary of {options['of']} has no other address", "leave it out")
