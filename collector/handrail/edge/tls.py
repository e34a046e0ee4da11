"""Certificates that a configuration names become contexts; what is wrong with them is said by their key."""

import ssl

from handrail.config import ConfigError


def trusting(ca_file: str | None, key: str) -> ssl.SSLContext:
    """To be a client: trusts that PEM bundle, without one the system's. Raises ConfigError naming `key`."""
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError("configuration", key, f"{ca_file} cannot be loaded: {error}") from None


def serving(cert_file: str | None, key_file: str | None, key: str) -> ssl.SSLContext | None:
    """To be a server with this certificate; None without one. Raises ConfigError naming `key`."""
    if cert_file is None or key_file is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(cert_file, key_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError("configuration", key, f"{cert_file} and its key cannot be loaded: {error}") from None
    return context
