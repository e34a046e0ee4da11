"""The command line becomes calls: flags to a Config, errors to `handrail: FILE: KEY: problem; fix` and exit status 2.

Standard output holds what was asked for and nothing else; progress and logs go to standard error. Each command imports
what it needs when it runs, so that `--help` answers at once.
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import EXTENSION_SUFFIXES, PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import handrail
from handrail.schema import COMPATIBILITY_MODES, COMPATIBILITY_POLICIES

if TYPE_CHECKING:
    from handrail.config import Config
    from handrail.edge.catalogue import Catalogue
    from handrail.rules import Pack

BAD_INPUT = 2

OUTPUTS = ("text", "json")


class Problems(Exception):
    """What is wrong with the input, a line each. Ends the command with exit status 2."""

    def __init__(self, problems: Sequence[object]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


def _build() -> str:
    """Which of the two builds this is, by what an import of the data path would load."""
    found = PathFinder.find_spec("http1", [f"{place}/wire" for place in handrail.__path__])
    is_compiled = found is not None and str(found.origin).endswith(tuple(EXTENSION_SUFFIXES))
    return "compiled" if is_compiled else "pure Python"


def main(argv: Sequence[str] | None = None) -> int:
    """The `handrail` command. Returns its exit status."""
    given = list(sys.argv[1:] if argv is None else argv)
    command: list[str] = []
    if "--" in given and given[0] == "run":
        at = given.index("--")
        given, command = given[:at], given[at + 1 :]
    parser = _parser()
    args = parser.parse_args(given)
    if args.call is None:
        (args.parser or parser).print_help(sys.stderr)
        return BAD_INPUT
    args.command_line = command

    from handrail.config import ConfigError
    from handrail.edge.text import Unreadable

    try:
        status: int = args.call(args)
        sys.stdout.flush()
        return status
    except (Problems, Unreadable) as error:
        return _fail(error.problems)
    except ConfigError as error:
        if error.file == "configuration":  # found by a part that does not know where its configuration came from
            error = ConfigError(getattr(args, "config", None) or "command line", error.key, error.problem)
        return _fail([error])
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output has gone, as `head` does. Python would complain again when it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _fail(problems: Sequence[object]) -> int:
    for problem in problems:
        print(f"handrail: {problem}", file=sys.stderr)
    return BAD_INPUT


def _run(args: argparse.Namespace) -> int:
    from handrail.config import ConfigError, with_flags

    config = with_flags(
        _config(args.config),
        listen=args.listen,
        upstream=args.upstream,
        agent=args.agent,
        schemas=args.schemas,
        rules=args.rules,
        clickhouse=args.clickhouse,
        admin=args.admin,
    )
    if args.command_line or args.print_env:
        from handrail.edge import command

        if args.print_env:
            return command.print_environment(config, os.environ)
        return command.run(config, args.command_line, os.environ, args.record)
    if args.record is not None:
        raise ConfigError("command line", "--record", "goes with a command; give -- COMMAND, or --clickhouse DSN")
    if not config.listeners():
        missing = "there is nothing to listen on; give --listen and --upstream, or -c FILE with routes, or -- COMMAND"
        raise ConfigError(args.config or "command line", "routes" if args.config else "", missing)

    from handrail.edge import sidecar

    return sidecar.run(config)


def _check(args: argparse.Namespace) -> int:
    from handrail import config, pipeline, rules
    from handrail.edge import files, sidecar
    from handrail.schema.registry import Registry

    if errors := config.check(files.read_text(args.config), args.config):
        raise Problems(errors)
    found = _config(args.config)
    problems: list[object] = []
    registry, packs, inspector = Registry(), [], None

    def meet(error: Exception) -> None:
        if isinstance(error, files.Unreadable):
            problems.extend(error.problems)
        elif isinstance(error, config.ConfigError) and error.file == "configuration":
            problems.append(config.ConfigError(args.config, error.key, error.problem))
        else:
            problems.append(error)

    try:
        registry = files.registry_in_force(found, lambda fault: print(f"handrail: {fault.message}", file=sys.stderr))
    except (files.Unreadable, config.ConfigError) as error:
        meet(error)
    try:
        packs = files.load_packs(found)
        inspector = pipeline.build(found, registry, rules.watches(packs, registry), args.config)
    except (files.Unreadable, config.ConfigError) as error:
        meet(error)
    for problem in sidecar.problems_of(found, inspector):
        meet(problem)
    if problems:
        raise Problems(problems)
    in_force = sum(1 for _ in rules.in_force(packs))
    counted = (_many(found.listeners(), "listener"), _many(in_force, "rule"), _many(len(registry), "schema"))
    print(f"{args.config}: good: {', '.join(counted)}")
    return 0


def _replay(args: argparse.Namespace) -> int:
    from handrail.config import with_flags
    from handrail.edge import replay

    config = with_flags(_config(args.config), schemas=args.schemas, rules=args.rules)
    return replay.run(args.files, config, output=args.output, fail_on=args.fail_on, payloads=args.payloads)


def _rules_test(args: argparse.Namespace) -> int:
    from handrail import ruletest

    packs = _packs(args.files)
    mine = {rule.id for pack in packs if not pack.builtin for rule in pack.rules}
    results = [result for result in ruletest.run(packs) if not args.files or result.rule in mine]
    failed = [result for result in results if not result.passed]
    for result in failed:
        print(f"FAILED {result.rule}: {result.name}: {result.problem}")
    tested = len({result.rule for result in results})
    print(f"{_many(len(results), 'test')} of {_many(tested, 'rule')}, {len(failed)} failed")
    return 1 if failed else 0


def _rules_list(args: argparse.Namespace) -> int:
    from handrail.rules import in_force

    found = sorted(in_force(_packs(args.files)), key=lambda item: item[1].id)
    if args.output == "json":
        import orjson

        for pack, rule in found:
            line: Mapping[str, Any] = {
                "type": "rule",
                **{
                    name: getattr(rule, name)
                    for name in ("id", "kind", "severity", "action", "scope", "maturity", "title")
                },
                "file": pack.file,
                "builtin": pack.builtin,
                "tests": len(rule.tests),
            }
            sys.stdout.buffer.write(orjson.dumps(line) + b"\n")
        return 0

    from rich.table import Table
    from rich.text import Text

    from handrail.edge.replay import console

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("rule", "severity", "action"):
        table.add_column(name, no_wrap=True)
    for name in ("title", "file"):
        table.add_column(name)
    for pack, rule in found:
        file = f"built in ({pack.file})" if pack.builtin else pack.file
        table.add_row(*(Text(cell) for cell in (rule.id, rule.severity, rule.action, rule.title, file)))
    console().print(table)
    return 0


def _schema_register(args: argparse.Namespace) -> int:
    from handrail.edge import catalogue

    return catalogue.register(
        _catalogue(args),
        args.subject,
        args.file,
        version=args.version,
        references=args.reference,
        mode=args.mode,
        output=args.output,
    )


def _schema_list(args: argparse.Namespace) -> int:
    from handrail.edge import catalogue

    return catalogue.list_subjects(_catalogue(args), output=args.output)


def _schema_show(args: argparse.Namespace) -> int:
    from handrail.edge import catalogue

    return catalogue.show(_catalogue(args), args.subject, output=args.output)


def _schema_check(args: argparse.Namespace) -> int:
    from handrail.edge import compare

    settings = compare.Settings(
        mode=args.mode,
        draft=args.draft,
        policy=args.policy,
        accept_undecided=args.undecided == "compatible",
        seconds=args.seconds,
    )
    if args.batch is not None:
        if args.old is not None:
            raise Problems(["command line: --batch FILE has its schemas on its lines; leave OLD and NEW out"])
        return compare.batch(args.batch, settings)
    if args.new is None:
        raise Problems(["command line: give two schema files, OLD and NEW, or --batch FILE"])
    return compare.check(args.old, args.new, settings, output=args.output)


def _schema_diff(args: argparse.Namespace) -> int:
    from handrail.edge import compare

    return compare.diff(args.old, args.new, draft=args.draft, output=args.output)


def _schema_infer(args: argparse.Namespace) -> int:
    from handrail.edge import learn

    return learn.infer(args.files, _config(args.config), subject=args.subject, output=args.output)


def _schema_accept(args: argparse.Namespace) -> int:
    from handrail.config import AdminConfig
    from handrail.edge import learn

    into = _catalogue(args)
    admin = args.admin or (_config(args.config).admin if args.config else AdminConfig()).listen
    return learn.accept(into, args.subject, admin, mode=args.mode, output=args.output)


def _catalogue(args: argparse.Namespace) -> "Catalogue":
    """The registry that a `schema` command works on: a directory, a service, or what a configuration names."""
    from handrail.edge import catalogue

    if args.schemas and args.registry:
        raise Problems(["command line: --schemas and --registry are two registries; give one of them"])
    config = None if args.schemas or args.registry else _config(args.config)
    return catalogue.opened(args.schemas, args.registry, args.token_file, config)


def _report(args: argparse.Namespace) -> int:
    from handrail.config import ConfigError, with_flags

    clickhouse = with_flags(_config(args.config), clickhouse=args.clickhouse).clickhouse
    if clickhouse.dsn is None:
        missing = "is missing; it is where `handrail run` records, such as chdb:///var/lib/handrail"
        raise ConfigError("command line", "--clickhouse", missing)

    from handrail.edge import report

    return report.run(clickhouse.dsn, args.database or clickhouse.database, args.since, args.output, args.html)


def _graph_check(args: argparse.Namespace) -> int:
    from handrail.edge import graph

    return graph.check(args.files, args.output)


def _graph_show(args: argparse.Namespace) -> int:
    from handrail.edge import graph

    if args.files:
        return graph.show(graph.recorded_edges(args.files, args.workflow), args.output)

    from handrail.config import ConfigError, with_flags

    clickhouse = with_flags(_config(args.config), clickhouse=args.clickhouse).clickhouse
    if clickhouse.dsn is None:
        raise ConfigError("command line", "FILE", "is missing; name a recording, or --clickhouse DSN")
    database = args.database or clickhouse.database
    return graph.show(graph.stored_edges(clickhouse.dsn, database, args.since, args.workflow), args.output)


def _demo(args: argparse.Namespace) -> int:
    from handrail.edge import demo

    return demo.run(args.seconds, keep=args.keep, directory=None if args.directory is None else Path(args.directory))


def _config(file: str | None) -> "Config":
    """The configuration in a file, or the defaults. Paths in a file are relative to that file. Raises Problems."""
    from handrail.config import Config, check, load, resolved
    from handrail.edge.files import read_text

    if file is None:
        return Config()
    text = read_text(file)
    if errors := check(text, file):
        raise Problems(errors)
    return resolved(load(text, file), str(Path(file).parent))


def _packs(files: Sequence[str]) -> "list[Pack]":
    from handrail.config import Config, RulesConfig
    from handrail.edge.files import load_packs

    return load_packs(Config(rules=RulesConfig(files=tuple(files))))


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


class _Parser(argparse.ArgumentParser):
    """Errors in the form of every other error, with the way to the help instead of three lines of usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"handrail: command line: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="handrail",
        description="Watches the handoffs between agents: validates, detects, records, alerts.",
        epilog="""\
examples:
  handrail demo                                   five agents, real failures, a live table
  handrail run --listen 127.0.0.1:8081 --upstream http://127.0.0.1:8080 --agent billing
  handrail replay traffic.har --schemas schemas   what would have been found

exit status: 0 good; 1 what was asked about is not so (see each command); 2 bad input, told on standard error.
Each flag of `run` can be set in the environment too: HANDRAIL_LISTEN, HANDRAIL_UPSTREAM, HANDRAIL_CLICKHOUSE, …""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"handrail {handrail.__version__} ({_build()})")
    parser.set_defaults(call=None, parser=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    run = _command(
        commands,
        "run",
        "run the sidecar",
        """\
Runs the sidecar: forwards the bytes first and unchanged, looks at a copy, records what it sees.
Without -c FILE the flags are the configuration; with it they override the file.

With a command after --, the sidecar listens on free ports in front of what the command's environment or the file names
(OPENAI_BASE_URL, or OPENAI_API_KEY alone for api.openai.com; ANTHROPIC_, GOOGLE_GEMINI_, AZURE_OPENAI_ENDPOINT and
others; REDIS_URL; NATS_URL), gives the command those variables with its own addresses and HTTP_PROXY for plain HTTP,
ends when the command does, and reports on standard error what was handed over.""",
        """\
examples:
  handrail run --listen 127.0.0.1:8081 --upstream http://127.0.0.1:8080 --agent billing --schemas schemas
  handrail run -c handrail.yaml --clickhouse clickhouse://handrail@db:8123/handrail
  handrail run -- python agents.py
  handrail run --record run.jsonl -- python agents.py && handrail replay run.jsonl --output json
  eval "$(handrail run -c handrail.yaml --print-env)"    for a sidecar that runs elsewhere with the same file

exit status: that of the command, 128 and the signal's number where a signal ended it; without a command 0 after SIGTERM
or Ctrl-C; 2 where configuration, rules or schemas are wrong.""",
        _run,
    )
    _config_flag(run)
    _flag(run, "--listen", "ADDR", "where requests come in, host:port")
    _flag(run, "--upstream", "URL", "where they go, http://host:port or https://host:port")
    _flag(run, "--agent", "NAME", "the agent that this sidecar belongs to")
    _schema_and_rule_flags(run)
    _flag(
        run,
        "--clickhouse",
        "DSN",
        "where handoffs are recorded: chdb:///directory, clickhouse://user@host:8123/database",
    )
    _flag(
        run,
        "--admin",
        "ADDR",
        "where /metrics, /healthz and /readyz are (default 127.0.0.1:9464; a free port with -- COMMAND)",
    )
    run.add_argument("--print-env", action="store_true", help="print what a command would get, for a shell to eval")
    run.add_argument("--record", metavar="FILE", help="with -- COMMAND: events and findings as JSON lines")

    check = _command(
        commands,
        "check",
        "validate a configuration without starting",
        "Reads a configuration and the rules and schemas that it names, and lists everything that is wrong with them.",
        """\
examples:
  handrail check -c handrail.yaml

exit status: 0 where `handrail run` would start; 2 where it would not.""",
        _check,
    )
    _config_flag(check, required=True)

    replay = _command(
        commands,
        "replay",
        "run the rules over recorded traffic",
        """\
Runs recorded traffic through the same steps as the live proxy, with the time of the recording.
A recording is HAR 1.2 (browsers, mitmproxy and many clients write it), OTLP JSON lines (as a Collector's file exporter
writes them) or event JSON lines, as --output json prints them; - is standard input. Several recordings are one history,
in the order given.""",
        """\
examples:
  handrail replay traffic.har --schemas schemas
  handrail replay *.har --rules my-rules.yaml --fail-on critical
  handrail replay traffic.har --output json | jq 'select(.type == "finding")'

exit status: 0; 1 where a finding is as severe as --fail-on says, or worse; 2 bad input.""",
        _replay,
    )
    replay.add_argument(
        "files", nargs="+", metavar="FILE", help="HAR 1.2, OTLP or event JSON lines; - is standard input"
    )
    _config_flag(replay)
    _schema_and_rule_flags(replay)
    _output_flag(replay)
    replay.add_argument(
        "--fail-on", choices=("info", "warning", "critical"), metavar="SEVERITY", help="info, warning or critical"
    )
    replay.add_argument("--payloads", action="store_true", help="print payloads too (with --output json)")

    rules = _command(
        commands,
        "rules",
        "test or list the rules",
        "The built-in rules, and those in the files that are named.",
        "",
        None,
    )
    rules.set_defaults(parser=rules)
    actions = rules.add_subparsers(title="commands", metavar="COMMAND")
    test = _command(
        actions,
        "test",
        "run the tests inside rule packs",
        "Runs the tests that rules carry: those of the files, or of the built-in rules where none is named.",
        """\
examples:
  handrail rules test
  handrail rules test my-rules.yaml

exit status: 0; 1 where a test failed; 2 where a file is no rule pack.""",
        _rules_test,
    )
    test.add_argument("files", nargs="*", metavar="FILE", help="a rule pack, or a directory of them")
    listing = _command(
        actions,
        "list",
        "list the rules in force",
        "Lists the built-in rules together with those of the files, which replace built-in ones of the same id.",
        """\
examples:
  handrail rules list
  handrail rules list my-rules.yaml --output json""",
        _rules_list,
    )
    listing.add_argument("files", nargs="*", metavar="FILE", help="a rule pack, or a directory of them")
    _output_flag(listing)

    _schema_commands(commands)
    _graph_commands(commands)

    report = _command(
        commands,
        "report",
        "latency and findings from ClickHouse",
        "Reads back what was recorded: edges with their latency and overhead, the worst workflows, findings, schemas.",
        """\
examples:
  handrail report --clickhouse chdb:///var/lib/handrail
  handrail report --since 24h -c handrail.yaml --output json
  handrail report --since 7d -c handrail.yaml --html report.html

exit status: 0; 2 where the database cannot be read.""",
        _report,
    )
    report.add_argument("--since", default="1h", metavar="SPAN", help="how far back: 90s, 15m, 1h, 7d (default 1h)")
    _flag(report, "--clickhouse", "DSN", "where `handrail run` records")
    report.add_argument("--database", metavar="NAME", help="the database there (default handrail)")
    report.add_argument("--html", metavar="FILE", help="write a page with charts there, not the text; - prints it")
    _config_flag(report)
    _output_flag(report)

    demo = _command(
        commands,
        "demo",
        "five real agents, real failures",
        """\
Starts five agents that write a report together over A2A, puts Handrail in front of each, lets four things go wrong,
and shows what is found while it happens. Needs no server: ClickHouse runs inside (pip install 'handrail[demo]').""",
        """\
examples:
  handrail demo
  handrail demo --keep      goes on until Ctrl-C

exit status: 0 where the record says what the agents did; 1 where it does not; 2 where something is missing.""",
        _demo,
    )
    demo.add_argument("--seconds", type=float, default=30.0, metavar="N", help="how long it lasts (default 30)")
    demo.add_argument("--keep", action="store_true", help="go on until Ctrl-C")
    demo.add_argument(
        "--directory", metavar="DIR", help="where the record and the logs go (default a new temporary one)"
    )
    return parser


def _schema_commands(commands: Any) -> None:
    schema = _command(
        commands,
        "schema",
        "register, read and compare schemas",
        """\
The registry from the shell: a directory of <subject>/<version>.json, or a service that speaks the REST API of the
Confluent Schema Registry, as `handrail run` does where `registry.listen` is set.""",
        "",
        None,
    )
    schema.set_defaults(parser=schema)
    actions = schema.add_subparsers(title="commands", metavar="COMMAND")

    register = _command(
        actions,
        "register",
        "register a new version of a subject",
        """\
Registers a schema as the next version of a subject, where it can be enforced and is compatible with the versions that
the subject's mode asks for. A schema that is registered already is not registered twice.""",
        """\
examples:
  handrail schema register writer.reviewer report.json --schemas schemas
  handrail schema register writer.reviewer report.json --registry http://127.0.0.1:8081
  handrail schema register order order.json --registry http://127.0.0.1:8081 --reference address.json=address@3

exit status: 0; 1 where it is not compatible; 2 where it is no schema, or cannot be enforced or written.""",
        _schema_register,
    )
    register.add_argument("subject", metavar="SUBJECT", help="the lineage that it belongs to")
    register.add_argument("file", metavar="FILE", help="the schema; - is standard input")
    register.add_argument("--version", metavar="V", help="its version in a directory (default the next whole number)")
    register.add_argument(
        "--reference",
        action="append",
        default=[],
        metavar="NAME=SUBJECT@VERSION",
        help="what a $ref in it stands for; may be repeated",
    )
    register.add_argument(
        "--mode",
        choices=COMPATIBILITY_MODES,
        metavar="MODE",
        help="what it must be compatible with in a directory: BACKWARD (the default), FORWARD, FULL, their _TRANSITIVE "
        "forms, or NONE",
    )
    _registry_flags(register)

    listing = _command(
        actions,
        "list",
        "list subjects and versions",
        "Lists every subject with its versions, oldest first.",
        """\
examples:
  handrail schema list --schemas schemas
  handrail schema list --registry http://127.0.0.1:8081 --output json

exit status: 0; 2 where the registry cannot be read.""",
        _schema_list,
    )
    _registry_flags(listing)

    show = _command(
        actions,
        "show",
        "print a schema",
        "Prints a schema: the latest version of its subject, or the one that is named.",
        """\
examples:
  handrail schema show writer.reviewer --schemas schemas
  handrail schema show writer.reviewer@3 --registry http://127.0.0.1:8081

exit status: 0; 2 where there is none.""",
        _schema_show,
    )
    show.add_argument("subject", metavar="SUBJECT[@VERSION]", help="which one")
    _registry_flags(show)

    _comparison_commands(actions)
    _learning_commands(actions)


def _learning_commands(actions: Any) -> None:
    infer = _command(
        actions,
        "infer",
        "propose a schema from recordings",
        """\
Proposes a schema for each subject of the payloads in recordings (HAR 1.2, event JSON lines): one that accepts all of
them. How stable it is goes to standard error.""",
        """\
examples:
  handrail schema infer traffic.har --subject writer.reviewer > report.json
  handrail schema infer events.jsonl --output json

exit status: 0; 2 where there is nothing to learn from.""",
        _schema_infer,
    )
    infer.add_argument("files", nargs="+", metavar="FILE", help="recordings; - is standard input")
    infer.add_argument("--subject", metavar="SUBJECT", help="only this one (default all)")
    _config_flag(infer)
    _output_flag(infer)

    accept = _command(
        actions,
        "accept",
        "register what a running sidecar has learned",
        """\
Registers the schema that a sidecar, run with `schemas.learn: true`, has inferred from the traffic of a subject that
has none.""",
        """\
examples:
  handrail schema accept writer.reviewer --schemas schemas
  handrail schema accept writer.reviewer --admin 10.0.0.7:9464 --registry http://127.0.0.1:8081

exit status: 0; 1 where it is not compatible with what is registered; 2 where nothing was learned or can be written.""",
        _schema_accept,
    )
    accept.add_argument("subject", metavar="SUBJECT", help="the lineage that it becomes")
    _flag(accept, "--admin", "ADDR", "the admin port of the sidecar (default 127.0.0.1:9464)")
    accept.add_argument("--mode", choices=COMPATIBILITY_MODES, metavar="MODE", help="as of `schema register`")
    _registry_flags(accept)


def _graph_commands(commands: Any) -> None:
    graph = _command(
        commands,
        "graph",
        "check a declared graph, draw the observed one",
        "Who hands to whom: as somebody declared it, and as it was seen.",
        "",
        None,
    )
    graph.set_defaults(parser=graph)
    actions = graph.add_subparsers(title="commands", metavar="COMMAND")
    check = _command(
        actions,
        "check",
        "validate a declared dependency graph as a DAG",
        """\
Says of a declared graph which agents are on cycles, with a shortest cycle in each strongly connected component and
whether it is a deadlock or a loop that can be entered (an agent may wait for all of its predecessors, or for any);
which agents are unreachable or undeclared; and the critical path.
A graph is YAML or JSON (agents and edges, an adjacency list, or tasks with depends_on), what LangGraph's
get_graph().to_json() gives, a Mermaid flowchart, or the plan events of a recording; - is standard input.""",
        """\
examples:
  handrail graph check agents.yaml
  handrail graph check flow.mmd --output json

exit status: 0 where it is acyclic; 1 where it has a cycle; 2 where it is no graph.""",
        _graph_check,
    )
    check.add_argument("files", nargs="+", metavar="FILE", help="a declared graph; - is standard input")
    _output_flag(check)
    show = _command(
        actions,
        "show",
        "draw the graph that was observed",
        "Draws who handed to whom, from recordings, or from ClickHouse where none is named.",
        """\
examples:
  handrail graph show traffic.har > observed.mmd
  handrail graph show --clickhouse chdb:///var/lib/handrail --since 24h --output dot | dot -Tsvg > graph.svg
  handrail graph show traffic.jsonl --output json | handrail graph check -

exit status: 0 where it is acyclic; 1 where it has a cycle, which is normal where agents answer each other; 2 where
it cannot be read.""",
        _graph_show,
    )
    show.add_argument("files", nargs="*", metavar="FILE", help="recordings; - is standard input")
    show.add_argument("--workflow", metavar="ID", help="only this workflow")
    show.add_argument("--since", default="1h", metavar="SPAN", help="how far back: 90s, 15m, 1h, 7d (default 1h)")
    _flag(show, "--clickhouse", "DSN", "where `handrail run` records")
    show.add_argument("--database", metavar="NAME", help="the database there (default handrail)")
    _config_flag(show)
    show.add_argument(
        "--output", choices=("mermaid", "dot", "json"), default="mermaid", metavar="FORM", help="mermaid, dot or json"
    )


def _comparison_commands(actions: Any) -> None:
    check = _command(
        actions,
        "check",
        "compare two versions of a schema",
        """\
Says whether NEW may follow OLD. BACKWARD: whoever reads with NEW can read all that was written with OLD; FORWARD: the
other way round; FULL: both. The question is about payloads, not about spelling: what is refused comes with a payload
that the one version admits and the other refuses. With --batch, one pair a line as {"id", "old", "new", "mode",
"draft"}, and one answer a line, in order.""",
        """\
examples:
  handrail schema check report-1.json report-2.json
  handrail schema check report-1.json report-2.json --mode FULL --output json
  handrail schema check --batch pairs.jsonl | jq 'select(.compatible | not)'

exit status: 0 compatible; 1 not (in a batch: one is not); 2 bad input (in a batch: a line is, and the others were
answered).""",
        _schema_check,
    )
    check.add_argument("old", nargs="?", metavar="OLD", help="a schema file; - is standard input")
    check.add_argument("new", nargs="?", metavar="NEW", help="the schema file that would follow it")
    check.add_argument("--batch", metavar="FILE", help="JSON lines instead of two files; - is standard input")
    check.add_argument(
        "--mode",
        type=str.upper,
        choices=COMPATIBILITY_MODES,
        default="BACKWARD",
        metavar="MODE",
        help=f"{', '.join(COMPATIBILITY_MODES)} (default BACKWARD)",
    )
    check.add_argument(
        "--policy",
        choices=COMPATIBILITY_POLICIES,
        default="semantic",
        metavar="POLICY",
        help="semantic, or confluent: that registry's strict rules for open and closed content (default semantic)",
    )
    check.add_argument(
        "--undecided",
        choices=("incompatible", "compatible"),
        default="incompatible",
        metavar="ANSWER",
        help="what to take for the answer where neither a proof nor a payload was found (default incompatible)",
    )
    check.add_argument("--seconds", type=float, default=5.0, metavar="N", help="how long one pair may take (default 5)")
    check.add_argument("--draft", metavar="DRAFT", help="of schemas without $schema: 7, 2020-12, … (default 2020-12)")
    _output_flag(check)

    diff = _command(
        actions,
        "diff",
        "list what differs between two versions",
        "Lists what was added, removed and changed, place by place in the payload. Annotations do not count.",
        """\
examples:
  handrail schema diff report-1.json report-2.json
  handrail schema diff report-1.json report-2.json --output json

exit status: 0; 2 where one of them is no schema.""",
        _schema_diff,
    )
    diff.add_argument("old", metavar="OLD", help="a schema file; - is standard input")
    diff.add_argument("new", metavar="NEW", help="a schema file")
    diff.add_argument("--draft", metavar="DRAFT", help="of schemas without $schema: 7, 2020-12, … (default 2020-12)")
    _output_flag(diff)


def _registry_flags(parser: argparse.ArgumentParser) -> None:
    _flag(parser, "--schemas", "DIR", "schemas as DIR/<subject>/<version>.json")
    _flag(parser, "--registry", "URL", "a schema registry, http://host:port")
    parser.add_argument(
        "--token-file", metavar="FILE", help="a file with the registry's token (default HANDRAIL_REGISTRY_TOKEN)"
    )
    _config_flag(parser)
    _output_flag(parser)


def _command(
    into: Any, name: str, summary: str, description: str, epilog: str, call: Callable[[argparse.Namespace], int] | None
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = into.add_parser(
        name, help=summary, description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(call=call)
    return parser


def _flag(parser: argparse.ArgumentParser, name: str, metavar: str, text: str) -> None:
    """A flag that can be set in the environment too; the command line wins."""
    variable = "HANDRAIL_" + name.removeprefix("--").upper()
    parser.add_argument(name, metavar=metavar, default=os.environ.get(variable) or None, help=text)


def _config_flag(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    default = os.environ.get("HANDRAIL_CONFIG") or None
    parser.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        default=default,
        required=required and default is None,
        help="a configuration file",
    )


def _schema_and_rule_flags(parser: argparse.ArgumentParser) -> None:
    _flag(parser, "--schemas", "DIR", "schemas as DIR/<subject>/<version>.json")
    given = os.environ.get("HANDRAIL_RULES")
    parser.add_argument(
        "--rules",
        nargs="+",
        metavar="FILE",
        default=given.split(os.pathsep) if given else [],
        help="rule packs beside the built-in ones",
    )


def _output_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", choices=OUTPUTS, default="text", metavar="FORMAT", help="text, or json: one object a line"
    )
