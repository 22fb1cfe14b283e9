"""The smoke test is collected only where its engine is installed, which `./tests/smoke/run` does."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("xllamacpp") else ["test_engine.py"]
