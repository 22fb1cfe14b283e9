"""Checks of the URLs among the settings. No message quotes a URL: it may hold a password."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from pydantic import SecretStr

QUOTING: Final = "; write / @ and : in a password as %2F, %40 and %3A"


def with_scheme(url: SecretStr, schemes: set[str]) -> SecretStr:
    """Return the URL if it has one of the schemes; raise a ValueError otherwise."""
    scheme = urlsplit(url.get_secret_value()).scheme
    if scheme not in schemes:
        raise ValueError(f"starts with {scheme or 'no scheme'!r}; use one of {', '.join(sorted(schemes))}")
    try:
        _ = urlsplit(url.get_secret_value()).port
    except ValueError:  # its message would quote what may be half a password
        raise ValueError("has a port that is not a number" + QUOTING) from None
    return url


def problem_of_base_url(text: str) -> str | None:
    """Describe what is wrong with a provider's base URL without quoting it, because it may hold a secret."""
    if not text.isprintable() or " " in text:
        return "holds a space or a line break; write it without"
    try:
        url = urlsplit(text)
    except ValueError:  # a host in brackets that is no address, or characters that no host has
        return "is not a URL; write it as https://host/v1"
    if url.scheme not in ("http", "https"):
        return "starts with neither http:// nor https://; write it as https://host/v1"
    if url.username is not None or url.password is not None:
        return "holds a user or a password; leave them out, the API key has a variable of its own"
    try:
        _ = url.port
    except ValueError:
        return "has a port that is not a number up to 65535; write it as https://host:8000/v1"
    return None if url.hostname else "names no host; write it as https://host/v1"
