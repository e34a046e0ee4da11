"""YAML text becomes one typed configuration, or a list of what is wrong with it."""

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from handrail.config import (
    Config,
    ConfigError,
    RouteConfig,
    check,
    convert,
    listen_address,
    load,
    parse_yaml,
    resolved,
    with_flags,
)
from handrail.wire import BodyLimits

FILE = "handrail.yaml"


def said(text: str) -> list[str]:
    """What `check` says, without the file's name."""
    return [str(error).removeprefix(f"{FILE}: ") for error in check(text, FILE)]


def test_empty_text_is_the_defaults() -> None:
    """Nothing written is everything at its default."""
    assert load("", FILE) == Config()


def test_values_land_in_their_places() -> None:
    """Nested structures, lists and units arrive typed."""
    config = load(
        """
        agent: billing
        routes:
          - {listen: 127.0.0.1:8080, upstream: "http://127.0.0.1:9101", side: ingress, stamp: true}
        limits: {connect_seconds: 2}
        inspection: {depth: 32}
        schemas: {directory: schemas, edges: [{source: a*, subject: order, version: "2"}]}
        """,
        FILE,
    )

    assert config.routes[0].stamp is True
    assert config.limits.connect_seconds == 2.0
    assert config.inspection == BodyLimits(depth=32)
    assert config.schemas.edges[0].target == "*"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("agnet: x", "agnet: unknown key; did you mean agent?"),
        ("limits: {conections: 1}", "limits.conections: unknown key; did you mean connections?"),
        ("custom: [{name: x, soruce: y}]", "custom[0].soruce: unknown key; did you mean source?"),
        (
            "schemas: {zzz: 1}",
            "schemas.zzz: unknown key; known are directory, edges, poll_seconds, learn, learn_subjects",
        ),
        ("routes: [{upstream: 'http://a'}]", "routes[0].listen: is missing"),
        ("limits: {connections: many}", "limits.connections: must be a whole number, not text"),
        ("agent: [a]", "agent: must be text, not a list"),
        ("routes: {listen: a}", "routes: must be a list, not a mapping of keys"),
        ("- a", "must be a mapping of keys, not a list"),
        ("1: 2", "has a key that is not text; put it in quotation marks"),
        ("log_level: loud", "log_level: 'loud' is not known; known are debug, info, warning, error"),
        ("log_level: warn", "log_level: 'warn' is not known; did you mean warning?"),
        ("log_level: 7", "log_level: must be text, not a whole number"),
        ("limits: {header_bytes: 0}", "limits.header_bytes: must be more than 0"),
        ("limits: {drain_seconds: -1}", "limits.drain_seconds: must not be negative"),
        ("limits: {reply_seconds: .inf}", "limits.reply_seconds: must be a finite number; every limit has an end"),
        ("inspection: {depth: -3}", "inspection.depth: must be more than 0"),
        (
            "admin: {listen: localhost}",
            "admin.listen: 'localhost' is not an address; write host:port, such as 127.0.0.1:8080",
        ),
        (
            "routes: [{listen: ':1', upstream: 'redis://a'}]",
            "routes[0].upstream: 'redis://a' is not an http or https URL; write http://host:port",
        ),
        (
            "routes: [{listen: ':1', upstream: 'http://u:p@a'}]",
            "routes[0].upstream: must not hold a user or a password; requests carry their own",
        ),
        (
            "routes: [{listen: ':1', upstream: 'http://a'}, {listen: ':1', upstream: 'http://b'}]",
            "routes[1].listen: :1 is already taken by routes[0].listen",
        ),
        (
            "routes: [{listen: ':1', upstream: 'http://a', fallback: {upstream: 'http://b', seconds: -1}}]",
            "routes[0].fallback.seconds: must be more than 0",
        ),
        (
            "forward: {listen: ':1', allow: [h, '*.a:*', '[::1]:80', 'http://a']}",
            "forward.allow[3]: 'http://a' is no host; write host or host:port, * for any characters",
        ),
        ("custom: [{name: a}, {name: a}]", "custom[1].name: a is there twice; names are how routes choose dialects"),
        ("custom: [{name: a2a}]", "custom[0].name: a2a is a built-in dialect; choose another name"),
        (
            "routes: [{listen: ':1', upstream: 'http://a', dialects: [custom, a2b]}]\ncustom: [{name: custom}]",
            "routes[0].dialects[1]: 'a2b' is not known; did you mean a2a?",
        ),
        ("clickhouse: {database: 'a b'}", "clickhouse.database: must be a plain name: letters, digits and _"),
        (
            "clickhouse: {dsn: 'http://h:x'}",
            "clickhouse.dsn: is not a URL with a port from 1 to 65535; write clickhouse://user@host:8123/database",
        ),
        (
            "clickhouse: {dsn: 'http://h:0/a'}",
            "clickhouse.dsn: is not a URL with a port from 1 to 65535; write clickhouse://user@host:8123/database",
        ),
        (
            "clickhouse: {dsn: 'http://[h/a'}",
            "clickhouse.dsn: is not a URL with a port from 1 to 65535; write clickhouse://user@host:8123/database",
        ),
        (
            "clickhouse: {dsn: 'https://u:p@/a'}",
            "clickhouse.dsn: names no host; write clickhouse://user@host:8123/database",
        ),
        (
            "clickhouse: {dsn: 'http://h/a-b'}",
            "clickhouse.dsn: names a database that is no plain name: letters, digits and _",
        ),
        (
            'otlp: {http: ":1", token_file: "a\\0b"}',
            "otlp.token_file: holds the character U+0000, which no name or address has",
        ),
        ('custom: [{name: "a\\0b"}]', "custom[0].name: holds the character U+0000, which no name or address has"),
        (
            "schemas: {edges: [{source: a}]}",
            "schemas.edges[0].subject: must say which schema applies; schemas are found by subject",
        ),
        ("a: 1\na: 2", "line 2, column 1: is not YAML: a is there twice"),
        ("a: &x 1\nb: *x", "line 2: YAML aliases are not accepted; write it out"),
        ("a: [", "line 2, column 1: is not YAML: did not find expected node content"),
        ("[" * 200_000, "line 1: is nested deeper than 64 levels"),
        ("#" * 2_000_000, "is larger than 1048576 bytes"),
        ("a: 2026-13-45", "is not YAML: month must be in 1..12"),
        ("a: !!python/object/apply:os.getcwd []", None),
    ],
)
def test_what_is_wrong_is_named_with_its_path_and_its_fix(text: str, message: str | None) -> None:
    """Each mistake gives one message: the key, the problem, the way out."""
    problems = said(text)

    assert len(problems) == 1
    if message is not None:
        assert problems == [message]


def test_an_expression_that_does_not_compile_is_named() -> None:
    """JMESPath is compiled when the configuration is read, not when the first request comes."""
    assert said("custom: [{name: x, task: 'a['}]")[0].startswith("custom[0].task: is not JMESPath: ")
    assert said("envelope: {path: 'b.'}")[0].startswith("envelope.path: is not JMESPath: ")


def test_paths_are_named_from_the_directory_of_the_file() -> None:
    """All of them, wherever they stand; an absolute path stays."""
    config = load(
        "schemas: {directory: s}\nrules: {files: [r.yaml, /etc/r.yaml]}\ngraph: {file: g.yaml}\n"
        "otlp: {http: ':1', token_file: t}\nalerts: {webhooks: [{url: 'http://a', ca_file: w.pem}]}\n"
        "routes: [{listen: ':2', upstream: 'https://a', tls: {ca_file: a.pem}, "
        "fallback: {upstream: 'https://b', tls: {ca_file: b.pem}}}]",
        "conf/x.yaml",
    )
    there = resolved(config, "conf")
    assert there.schemas.directory == "conf/s"
    assert there.rules.files == ("conf/r.yaml", "/etc/r.yaml")
    assert there.graph.file == "conf/g.yaml"
    assert there.otlp is not None
    assert there.otlp.token_file == "conf/t"
    assert there.alerts is not None
    assert there.alerts.webhooks[0].ca_file == "conf/w.pem"
    (route,) = there.routes
    assert route.tls.ca_file == "conf/a.pem"
    assert route.fallback is not None
    assert route.fallback.tls.ca_file == "conf/b.pem"
    assert resolved(load("agent: a", "x.yaml"), "conf") == load("agent: a", "x.yaml")


def test_a_database_address_is_never_repeated() -> None:
    """A wrong DSN may hold a password."""
    assert "secret" not in said("clickhouse: {dsn: 'ftp://user:secret@host'}")[0]


def test_every_mistake_is_listed() -> None:
    """Three mistakes need one start, not three."""
    text = """
        agnet: x
        routes:
          - {listne: ":1", upstream: 5}
          - {listen: ":2", upstream: "http://a", side: ingres}
          - 5
        limits: {connections: many, header_bytes: -1}
        """

    assert [problem.partition(": ")[0] for problem in said(text)] == [
        "agnet",
        "routes[0].listne",
        "routes[0].upstream",
        "routes[0].listen",
        "routes[1].side",
        "routes[2]",
        "limits.connections",
        "limits.header_bytes",
    ]


def test_load_raises_the_first_mistake() -> None:
    """The error carries file, key and problem apart."""
    with pytest.raises(ConfigError) as caught:
        load("agnet: x", FILE)

    assert (caught.value.file, caught.value.key) == (FILE, "agnet")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(Config.__struct_fields__) | st.text(max_size=5)


@given(st.dictionaries(keys, values, max_size=4))
def test_any_mapping_is_loaded_or_refused_with_a_list(value: dict[str, Any]) -> None:
    """`check` never raises, and is empty exactly when `load` succeeds."""
    text = yaml.safe_dump(value, allow_unicode=False)
    errors = check(text, FILE)

    if errors:
        with pytest.raises(ConfigError):
            load(text, FILE)
    else:
        assert isinstance(load(text, FILE), Config)


@given(st.text(max_size=60))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    """No text gives anything but a value or a ConfigError."""
    try:
        parse_yaml(text, FILE)
    except ConfigError:
        pass


def test_convert_puts_the_place_before_the_key() -> None:
    """A part of a larger document is named by its place in that document."""
    with pytest.raises(ConfigError) as caught:
        convert({"listen": 5, "upstream": "x"}, RouteConfig, FILE, at="routes[3]")

    assert caught.value.key == "routes[3].listen"


@pytest.mark.parametrize(
    ("text", "address"),
    [("127.0.0.1:80", ("127.0.0.1", 80)), (":80", ("127.0.0.1", 80)), ("[::1]:80", ("::1", 80)), ("a:0", ("a", 0))],
)
def test_listen_addresses_are_read(text: str, address: tuple[str, int]) -> None:
    """Brackets around IPv6; loopback where no host is named, so that nothing is opened to the network by omission."""
    assert listen_address(text) == address


@pytest.mark.parametrize("text", ["", "80", "a", "a:", "a:b", "a:65536", "::1:80", "a:-1", "a:8²"])
def test_what_is_no_address_is_refused(text: str) -> None:
    """The message shows how to write one."""
    with pytest.raises(ValueError, match=r"write host:port"):
        listen_address(text)


def test_flags_make_a_route_without_a_file() -> None:
    """--listen and --upstream are a route."""
    config = with_flags(Config(), listen="127.0.0.1:1", upstream="http://a:2", agent="billing")

    assert config.routes == (RouteConfig(listen="127.0.0.1:1", upstream="http://a:2"),)
    assert config.agent == "billing"


def test_flags_override_the_file() -> None:
    """What is not named by a flag stays as the file says."""
    file = load(
        "{routes: [{listen: ':1', upstream: 'http://a', stamp: true}], schemas: {directory: old, poll_seconds: 9},"
        " rules: {builtin: false, files: [old.yaml]}}",
        FILE,
    )
    config = with_flags(file, upstream="http://b", schemas="new", rules=["new.yaml"], clickhouse="chdb:///x")

    assert config.routes == (RouteConfig(listen=":1", upstream="http://b", stamp=True),)
    assert (config.schemas.directory, config.schemas.poll_seconds) == ("new", 9)
    assert (config.rules.builtin, config.rules.files) == (False, ("new.yaml",))
    assert config.clickhouse.dsn == "chdb:///x"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"listen": ":1"}, "command line: --upstream: is missing"),
        ({"upstream": "http://a"}, "command line: --listen: is missing"),
        ({"listen": "x", "upstream": "http://a"}, "command line: --listen: 'x' is not an address"),
        ({"clickhouse": "x"}, "command line: --clickhouse: is not a ClickHouse address"),
    ],
)
def test_wrong_flags_are_named(flags: dict[str, str], message: str) -> None:
    """The message names the flag, not the key that it stands for."""
    with pytest.raises(ConfigError) as caught:
        with_flags(Config(), **flags)

    assert str(caught.value).startswith(message)


def test_flags_do_not_guess_among_routes() -> None:
    """With several routes in the file nobody can say which one --upstream means."""
    file = load("routes: [{listen: ':1', upstream: 'http://a'}, {listen: ':2', upstream: 'http://b'}]", FILE)

    with pytest.raises(ConfigError, match="the file has 2 routes"):
        with_flags(file, upstream="http://c")
