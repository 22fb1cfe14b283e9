"""`protostar search` where vectors should help and can't."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.test_cli import protostar
from tests.support.model_control import ModelControl


def test_a_search_says_that_its_question_was_not_embedded(
    database_url: str, tmp_path: Path, model_server: ModelControl
) -> None:
    model_server.reset()
    (tmp_path / "bread.md").write_text("# Bread\n\nThe baker kneads the dough before the sun rises.\n")
    variables = {
        "DATABASE_URL": database_url,
        "PROTOSTAR_CORPUS_DIR": str(tmp_path),
        "PROTOSTAR_EMBEDDING_MODEL": "model-a",
        "OPENAI_API_KEY": "none",
        "OPENAI_BASE_URL": model_server.base_url,
    }
    assert protostar("reindex", **variables).returncode == 0
    searched = protostar("search", "Who kneads the dough?", "--json", **variables)
    assert "embedding_error" not in json.loads(searched.stdout)
    assert "embedded" not in searched.stderr

    model_server.script({"endpoint": "embeddings", "status": 401, "times": None})
    searched = protostar("search", "Who kneads the dough?", "--json", **variables)
    model_server.reset()
    found = json.loads(searched.stdout)
    assert (searched.returncode, [passage["document"] for passage in found["results"]]) == (0, ["bread.md"])
    assert found["embedding_error"]
    assert "searched by words alone" in searched.stderr
