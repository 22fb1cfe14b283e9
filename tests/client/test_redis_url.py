"""URLs of Redis: every option and escape of redis-py's URLs, and Sentinels."""

from __future__ import annotations

import pytest
from protostar_client import ChatClient, InvalidUrl
from protostar_client.redis_connection.url import names_database, parse

from tasks.engine.connection import arq_redis_settings


def test_a_sentinel_url_names_servers_service_database_and_credentials() -> None:
    target = parse(
        "sentinel://app:p%40ss@a:1,[::1]:2,c/main/3?ssl=true&ssl_cert_reqs=none&sentinel_password=s%2Ft&max_connections=7"
    )
    assert target.sentinels == (("a", 1), ("::1", 2), ("c", 26379))
    assert (target.service, target.uses_tls) == ("main", True)
    options = {"username": "app", "password": "p@ss", "db": 3, "max_connections": 7, "ssl_cert_reqs": "none"}
    assert target.options == options
    assert target.sentinel_options.items() >= {"password": "s/t", "ssl": True, "ssl_cert_reqs": "none"}.items()


@pytest.mark.parametrize("url", ["sentinel://a:1", "sentinel:///main", "sentinel://a:x/main", "sentinel://a/main/x"])
async def test_a_wrong_sentinel_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidUrl):
        async with ChatClient.connect(url):
            pass


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("redis://h", True),
        ("redis://h/1", True),
        ("redis://h/x", False),
        ("redis://h?db=x", False),
        ("unix:///some/path?db=2", True),
        ("sentinel://h/main", True),
        ("sentinel://h/main/x", False),
    ],
)
def test_a_database_is_named_by_a_number(url: str, named: bool) -> None:
    assert names_database(url) is named


def test_arq_gets_the_escapes_and_options_of_a_url() -> None:
    settings = arq_redis_settings("rediss://us%3Aer:p%40ss@host:7/2?ssl_cert_reqs=none&max_connections=9")
    assert (settings.username, settings.password, settings.host, settings.port) == ("us:er", "p@ss", "host", 7)
    assert (settings.database, settings.ssl, settings.ssl_cert_reqs, settings.max_connections) == (2, True, "none", 9)


def test_arq_gets_sockets_and_sentinels() -> None:
    assert arq_redis_settings("unix:///a%20b?db=3").unix_socket_path == "/a b"
    settings = arq_redis_settings("sentinel://:p%40@a:1,b/main/2")
    assert (settings.sentinel, settings.host, settings.sentinel_master) == (True, [("a", 1), ("b", 26379)], "main")
    assert (settings.password, settings.database) == ("p@", 2)
