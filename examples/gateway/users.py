"""Who asks. Replace this module by your own sign-in: all the others want of it is a user's UUID."""

from __future__ import annotations

from typing import Annotated, Final
from uuid import UUID, uuid4

from fastapi import Depends, FastAPI, Request
from starlette.middleware.sessions import SessionMiddleware

from .config import Config

_YEAR_S: Final = 365 * 86_400
_FIELD: Final = "user"


class NotSignedInError(Exception):
    """The browser has no cookie of ours, or somebody has changed it."""

    def __init__(self) -> None:
        super().__init__("no cookie says who you are; open the page at / first")


def remember_users(app: FastAPI, config: Config) -> None:
    """Keep a user's UUID in a signed cookie that no script can read and that other sites can't post with."""
    app.add_middleware(
        SessionMiddleware,
        secret_key=config.secret.get_secret_value(),
        session_cookie="protostar",
        max_age=_YEAR_S,
        same_site="lax",
        https_only=config.secure_cookies,
    )


def sign_in(request: Request) -> None:
    """Make a user of a browser that has not been here before."""
    request.session.setdefault(_FIELD, str(uuid4()))


def signed_in(request: Request) -> UUID:
    """The user who asks.

    Raises:
        NotSignedInError: nobody did sign in.
    """
    try:
        return UUID(request.session[_FIELD])
    except (KeyError, ValueError):
        raise NotSignedInError from None


User = Annotated[UUID, Depends(signed_in)]
