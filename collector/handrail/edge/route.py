"""Where connections come in and where they go: the addresses of the data path, read from the configuration."""

import re
import ssl
from collections.abc import Sequence
from fnmatch import translate
from urllib.parse import urlsplit

import msgspec

from handrail.config import ConfigError, TlsConfig
from handrail.edge.tls import trusting
from handrail.wire import Route


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where a connection to an upstream goes."""

    host: str
    port: int
    authority: str
    """Value of the Host header: the port is left out where it is the scheme's own."""
    tls: ssl.SSLContext | None = None
    server_name: str | None = None

    @classmethod
    def parse(cls, url: str, tls: ssl.SSLContext | None = None, server_name: str | None = None) -> "Target":
        """`http://host[:port]` or `https://…`. Raises ValueError, saying what is wrong."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is not http://host[:port] or https://host[:port]")
        if parts.path not in ("", "/") or parts.query or parts.username:
            raise ValueError(f"{url!r} must be scheme, host and port only")
        own = 443 if parts.scheme == "https" else 80
        port = parts.port or own
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        return cls(
            host=parts.hostname,
            port=port,
            authority=host if port == own else f"{host}:{port}",
            tls=(tls or ssl.create_default_context()) if parts.scheme == "https" else None,
            server_name=server_name or (parts.hostname if parts.scheme == "https" else None),
        )


class Fallback(msgspec.Struct, frozen=True, kw_only=True):
    """Where a task goes that a route's own upstream did not answer."""

    target: Target
    route: Route
    seconds: float | None = None


class Listener(msgspec.Struct, kw_only=True):
    """One listen address and what is behind it. Without `target` it is a forward proxy to what `allow` admits."""

    host: str
    port: int
    route: Route
    target: Target | None = None
    own_host: bool = False
    """Leave the client's Host header as it is."""
    stamp: bool = False
    rewrite_cards: bool = False
    fallback: Fallback | None = None
    allow: tuple[str, ...] = ()
    _allowed: re.Pattern[str] | None = None

    def allows(self, host: str, port: int) -> bool:
        """Whether the configuration admits this destination of a forward proxy."""
        if self._allowed is None:
            both = [pattern if re.search(r":[0-9*]+$", pattern) else f"{pattern}:*" for pattern in self.allow]
            both = [pattern.replace("[", "").replace("]", "") for pattern in both]  # as hosts are here: without them
            self._allowed = re.compile("|".join(translate(pattern.lower()) for pattern in both) or r"(?!)")
        return self._allowed.match(f"{host.lower()}:{port}") is not None


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A listen address, and the server behind it."""

    host: str
    port: int
    upstream_host: str
    upstream_port: int
    tls: ssl.SSLContext | None = None
    server_name: str | None = None

    @property
    def upstream(self) -> str:
        return f"{self.upstream_host}:{self.upstream_port}"


def place_of(
    listen: tuple[str, int], upstream: str, tls: TlsConfig, key: str, *, port: int, secure: Sequence[str]
) -> Place:
    """`listen` in front of `upstream`, a URL; `port` where it names none, TLS where its scheme is one of `secure`.

    Raises ConfigError naming `key`, the configuration's entry.
    """
    parts = urlsplit(upstream)
    context: ssl.SSLContext | None = None
    if parts.scheme in secure:
        context = trusting(tls.ca_file, f"{key}.tls.ca_file")
    place = Place(
        host=listen[0],
        port=listen[1],
        upstream_host=parts.hostname or "127.0.0.1",
        upstream_port=parts.port or port,
        tls=context,
        server_name=(tls.server_name or parts.hostname) if context is not None else None,
    )
    if place.port and (place.host, place.port) == (place.upstream_host, place.upstream_port):
        raise ConfigError("configuration", f"{key}.upstream", "is the listen address itself: a loop")
    return place
