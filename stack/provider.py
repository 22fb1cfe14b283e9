"""Chooses the demo's model: the user's own where a key is set, otherwise the local server."""

from __future__ import annotations

from collections.abc import Mapping

from stack.errors import StackError
from stack.model_server.voice import MODEL


def own_environment(environ: Mapping[str, str]) -> dict[str, str] | None:
    """Return the variables that select the user's own provider; None where no key is set.

    Raises:
        StackError: a key is set, but no model.
    """
    key = next((name for name in ("OPENAI_API_KEY", "OPENROUTER_API_KEY") if environ.get(name)), None)
    if key is None:
        return None
    if not environ.get("PROTOSTAR_CHAT_MODEL"):
        raise StackError(
            f"{key} is set and PROTOSTAR_CHAT_MODEL is not: name the model to ask, or unset {key} to use the local one"
        )
    if key == "OPENROUTER_API_KEY" and not environ.get("PROTOSTAR_PROVIDER"):
        return {"PROTOSTAR_PROVIDER": "openrouter"}
    return {}


def local_environment(url: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that make a worker ask only the local model server at `url`."""
    direct = ",".join(filter(None, [environ.get("NO_PROXY") or environ.get("no_proxy"), "127.0.0.1"]))
    return {
        "OPENAI_BASE_URL": f"{url}/v1",
        "OPENAI_API_KEY": "local",
        "NO_PROXY": direct,
        "no_proxy": direct,
        "PROTOSTAR_PROVIDER": "openai",
        "PROTOSTAR_CHAT_MODEL": MODEL,
        "PROTOSTAR_FALLBACK_MODELS": "",
        "PROTOSTAR_SUMMARY_MODEL": "",
        "PROTOSTAR_EMBEDDING_MODEL": "",
    }
