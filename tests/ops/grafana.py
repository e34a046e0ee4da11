"""What Grafana makes of a dashboard before it asks a data source: variables and macros become text.

Variables as Grafana's documentation says (`$name`, `${name}`, `${name:singlequote}`; several values as `(a|b)` for
Prometheus), macros as that of the ClickHouse data source does.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

DASHBOARDS = Path(__file__).parents[2] / "dashboards"

ALL = "$__all"

MACROS = {
    "timeFilter": lambda start, end, step, column: (
        f"{column} >= toDateTime({start:.0f}) AND {column} <= toDateTime({end:.0f})"
    ),
    "timeInterval": lambda start, end, step, column: f"toStartOfInterval(toDateTime({column}), INTERVAL {step} second)",
    "fromTime": lambda start, end, step: f"toDateTime({start:.0f})",
    "toTime": lambda start, end, step: f"toDateTime({end:.0f})",
}
"""Macros of the data source that dashboards may use, beside `$__conditionalAll`, which looks at variables."""


def boards() -> dict[str, Any]:
    """Every committed dashboard by its uid."""
    read = (json.loads(path.read_text("utf-8")) for path in sorted(DASHBOARDS.glob("*.json")))
    return {board["uid"]: board for board in read}


def panels(board: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every panel, without the headings of rows."""
    for panel in board["panels"]:
        if panel["type"] == "row":
            yield from panel.get("panels") or ()
        else:
            yield panel


def queries(board: Mapping[str, Any], kind: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """`(panel, target)` of every query of one type of data source."""
    for panel in panels(board):
        for target in panel["targets"]:
            if target["datasource"]["type"] == kind:
                yield panel, target


def promql(text: str, values: Mapping[str, list[str]], rate_interval: str = "5s", span: str = "60s") -> str:
    """A query of Prometheus with `$…` replaced; what is not known raises KeyError."""

    def value(name: str) -> str:
        chosen = values[name]
        if chosen == [ALL]:
            return ".*"
        return chosen[0] if len(chosen) == 1 else "(" + "|".join(chosen) + ")"

    text = text.replace("$__rate_interval", rate_interval).replace("$__range", span)
    return re.sub(r"\$\{?(\w+)\}?", lambda found: value(found[1]), text)


def _arguments(text: str, start: int) -> tuple[list[str], int]:
    """What stands between the parenthesis at `start` and its counterpart, split at commas, and where it ends."""
    depth, parts, begin, quoted = 0, [], start + 1, False
    for index in range(start, len(text)):
        character = text[index]
        if character == "'":
            quoted = not quoted
        if quoted:
            continue
        if character == "(":
            depth += 1
        elif character == ")":
            depth -= 1
            if depth == 0:
                return [*parts, text[begin:index].strip()], index + 1
        elif character == "," and depth == 1:
            parts.append(text[begin:index].strip())
            begin = index + 1
    raise ValueError(f"a parenthesis is open: {text[start:]}")


def sql(text: str, values: Mapping[str, list[str]], start: float, end: float, step: int = 5) -> str:
    """A query of ClickHouse with variables and macros replaced; what is not known raises KeyError."""
    while (at := text.find("$__conditionalAll(")) >= 0:
        (condition, variable), after = _arguments(text, at + len("$__conditionalAll"))
        assert re.fullmatch(r"\$\w+|\$\{\w+\}", variable), "a plain variable, says the plugin"
        chosen = values[variable.strip("${}")]
        text = text[:at] + ("1=1" if chosen == [ALL] else condition) + text[after:]

    def quoted(found: re.Match[str]) -> str:
        return ",".join("'" + value.replace("'", "''") + "'" for value in values[found[1]])

    text = re.sub(r"\$\{(\w+):singlequote\}", quoted, text)
    while found := re.search(r"\$__(\w+)", text):
        macro, after, arguments = MACROS[found[1]], found.end(), []
        if text[after : after + 1] == "(":
            arguments, after = _arguments(text, after)
        text = text[: found.start()] + macro(start, end, step, *arguments) + text[after:]
    assert "$" not in text.replace("'$.", "'"), f"left over: {text}"
    return text
