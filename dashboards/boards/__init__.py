"""The eight dashboards, one module each, and the SQL that several of them ask."""

from frame import EDGE, ERRORS_SQL, Sql


def findings(*columns: str, kinds: str, where: str = EDGE, limit: int = 100) -> Sql:
    """Findings of some kinds, the latest first: when, how bad, then `columns` of `finding` and its evidence."""
    said = ", ".join(columns)
    return Sql(
        f"SELECT at, severity, {said} FROM finding FINAL WHERE $__timeFilter(at) AND {kinds} AND {where} "
        f"ORDER BY at DESC LIMIT {limit}"
    )


def counted(kinds: str, where: str = EDGE) -> Sql:
    """How often findings of some kinds occurred: one number."""
    return Sql(f"SELECT sum(count) AS findings FROM finding FINAL WHERE $__timeFilter(at) AND {kinds} AND {where}")


def over_time(kinds: str, by: str = "kind", where: str = EDGE) -> Sql:
    """Occurrences of findings of some kinds in each interval, a series for each `by`."""
    return Sql(
        f"SELECT $__timeInterval(at) AS time, {by}, sum(count) AS findings FROM finding FINAL "
        f"WHERE $__timeFilter(at) AND {kinds} AND {where} GROUP BY time, {by} ORDER BY time",
        "timeseries",
    )


def text(path: str) -> str:
    """A string or number in the evidence, as text; `path` is JSON keys with dots."""
    return f"JSON_VALUE(evidence, '$.{path}')"


def real(path: str) -> str:
    """A number in the evidence; NULL where there is none."""
    return f"toFloat64OrNull(JSON_VALUE(evidence, '$.{path}'))"


def list_of(path: str, between: str = " → ") -> str:
    """A list of strings in the evidence, joined."""
    keys = ", ".join(f"'{key}'" for key in path.split("."))
    return f"arrayStringConcat(JSONExtract(evidence, {keys}, 'Array(String)'), '{between}')"


def graph_nodes(handoffs: str) -> str:
    """Nodes of a node graph. `handoffs` is a SELECT of source, target, handoffs, errors."""
    return f"""
    WITH e AS ({handoffs})
    SELECT
        agent AS id, agent AS title,
        concat(toString(sum(given)), ' out, ', toString(sum(taken)), ' in') AS subtitle,
        sum(given) + sum(taken) AS mainstat,
        if(sum(errors) = 0, 'no errors', concat(toString(sum(errors)), ' errors')) AS secondarystat,
        1 - sum(errors) / greatest(sum(given) + sum(taken), 1) AS arc__done,
        sum(errors) / greatest(sum(given) + sum(taken), 1) AS arc__failed
    FROM (
        SELECT source AS agent, handoffs AS given, 0 AS taken, errors FROM e
        UNION ALL SELECT target AS agent, 0 AS given, handoffs AS taken, errors FROM e
    )
    GROUP BY agent ORDER BY mainstat DESC LIMIT 300
    """


def graph_edges(handoffs: str, found: str) -> str:
    """Edges of a node graph with their health, as words and as colour.

    `handoffs` is a SELECT of source, target, handoffs, errors, p95; `found` one of source, target, critical, warnings.
    """
    return f"""
    WITH e AS ({handoffs}), f AS ({found})
    SELECT
        concat(e.source, ' → ', e.target) AS id, e.source AS source, e.target AS target,
        concat(toString(e.handoffs), ' handoffs, p95 ', toString(round(e.p95, 1)), ' ms') AS mainstat,
        multiIf(f.critical > 0, concat(toString(f.critical), ' critical findings'),
                e.errors > 0, concat(toString(e.errors), ' errors'),
                f.warnings > 0, concat(toString(f.warnings), ' warnings'), 'healthy') AS secondarystat,
        multiIf(f.critical > 0 OR e.errors > 0.05 * e.handoffs, '#D55E00',
                f.warnings > 0 OR e.errors > 0, '#E69F00', '#0072B2') AS color,
        1 + log10(greatest(e.handoffs, 1)) AS thickness,
        e.errors AS detail__errors, f.warnings AS detail__warnings, f.critical AS detail__critical
    FROM e LEFT JOIN f ON e.source = f.source AND e.target = f.target
    ORDER BY e.handoffs DESC LIMIT 300
    """


IS_ERROR = f"outcome IN {ERRORS_SQL}"
