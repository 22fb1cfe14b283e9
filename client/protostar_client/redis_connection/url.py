"""URLs of Redis: `redis://`, `rediss://`, `unix://`, and `sentinel://host:port,host:port/service/db`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

from redis.connection import parse_url

SCHEMES: Final = ("redis", "rediss", "unix", "sentinel")

_SENTINEL_PORT: Final = 26379
_SENTINEL_TIMEOUT_S: Final = 1.0  # a Sentinel that does not answer must leave time to ask the next one


@dataclass(frozen=True, slots=True)
class Target:
    """A Redis to connect to. `options` are keyword arguments of redis-py's connections, without a connection class.

    `sentinels` and `service` are set for a server that Sentinels name; `sentinel_options` are for connections to them.
    """

    options: dict[str, Any]
    scheme: str
    sentinels: tuple[tuple[str, int], ...] = ()
    service: str = ""
    sentinel_options: dict[str, Any] = field(default_factory=dict)
    uses_tls: bool = False


def parse(url: str) -> Target:
    """Read a URL, with every option and escape of redis-py's URLs.

    A `sentinel://` URL takes further options: `ssl=true`, `sentinel_username` and `sentinel_password`.

    Raises:
        ValueError: the URL is wrong. The message may quote a part of the password.
    """
    scheme = urlsplit(url).scheme
    if scheme == "sentinel":
        return _parse_sentinel(url)
    options = _options(url)
    return Target(options, scheme, uses_tls=scheme == "rediss")


def _options(url: str) -> dict[str, Any]:
    options: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]
    options.pop("connection_class", None)
    return options


def _parse_sentinel(url: str) -> Target:
    parts = urlsplit(url)
    userinfo, at, hosts = parts.netloc.rpartition("@")
    service, _, database = parts.path.removeprefix("/").partition("/")
    if not hosts or not service or not re.fullmatch(r"\d*", database):
        raise ValueError("write it as sentinel://host:26379,host:26379/service/0")
    options = _options(f"redis://{userinfo}{at}localhost/{database}?{parts.query}")
    del options["host"]
    uses_tls = options.pop("ssl", "false").lower() in ("true", "1", "yes")
    sentinel_options = {
        "socket_timeout": _SENTINEL_TIMEOUT_S,
        "socket_connect_timeout": _SENTINEL_TIMEOUT_S,
        "ssl": uses_tls,
        **{name: value for name, value in options.items() if name.startswith("ssl_")},
    }
    for name in ("username", "password"):
        if value := options.pop(f"sentinel_{name}", None):
            sentinel_options[name] = value
    return Target(
        options,
        "sentinel",
        sentinels=tuple(map(_address, hosts.split(","))),
        service=unquote(service),
        sentinel_options=sentinel_options,
        uses_tls=uses_tls,
    )


def _address(text: str) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError("names no host")
    return parts.hostname, parts.port or _SENTINEL_PORT


def names_database(url: str) -> bool:
    """Whether the URL names its database by a number, or leaves it out."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return True
    database = parts.path.removeprefix("/")
    if parts.scheme == "sentinel":
        database = database.partition("/")[2]
    return bool(re.fullmatch(r"\d*", database)) and all(each.isdigit() for each in parse_qs(parts.query).get("db", []))
