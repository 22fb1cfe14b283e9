"""The texts of the question sets, out of packages, and generated ones of any size."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

REQUIREMENTS: Final = Path(__file__).with_name("texts.txt")

# Where a package keeps its texts, the set they are for, and the folders that are taken.
_TAKEN: Final = (
    ("constitution_mcp", "constitution_mcp_vault/", "church", ("헌법본문/", "총회규칙/")),
    (
        "hectofinancial_mcp_server",
        "hectofinancial_mcp_server/resource/docs/",
        "payments",
        ("blog/0", "blog/1", "blog/2", "pg/", "cash-receipt/", "easy-cash/", "ezauth/", "firm-banking/"),
    ),
    ("starlette", "/docs/", "python", ("",)),
    ("structlog", "/docs/", "python", ("",)),
)
_CHUNKS_A_SECTION: Final = 1.02
_SECTIONS: Final = 8


def fetch(folder: Path) -> None:
    """Put the sets' texts into folders of their names, fetching the packages if they are not there yet."""
    if (folder / "complete").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    packages = folder / "packages"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(packages)]
    # Documentation is in the sources of these two; a wheel would leave it out.
    subprocess.run([*pip, "--no-binary", "starlette,structlog", "-r", str(REQUIREMENTS)], check=True)
    for package in packages.iterdir():
        for name, text in _markdown(package):
            _keep(package.name, name, text, folder)
    (folder / "complete").touch()


def generate(sources: Path, folder: Path, chunk_count: int) -> None:
    """Write files that cut into about so many chunks: paragraphs of the sources, a third of their words exchanged."""
    rng = random.Random(7)
    paragraphs = [paragraph for path in sorted(sources.rglob("*.md")) for paragraph in _paragraphs(path)]
    words = [word for paragraph in paragraphs for word in paragraph.split()]
    for number in range(round(chunk_count / _SECTIONS / _CHUNKS_A_SECTION)):
        lines = ["# " + " ".join(rng.sample(words, 4))]
        for _ in range(_SECTIONS):
            lines.append("## " + " ".join(rng.sample(words, 3)))
            for paragraph in rng.sample(paragraphs, 3):
                lines.append(" ".join(rng.choice(words) if rng.random() < 1 / 3 else w for w in paragraph.split()))
        path = folder / f"{number % 100:02}" / f"{number}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n\n".join(lines) + "\n")


def _paragraphs(path: Path) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", path.read_text(encoding="utf-8")):
        if 80 < len(paragraph) < 900 and "```" not in paragraph and not paragraph.startswith("#"):
            yield paragraph


def _markdown(package: Path) -> Iterator[tuple[str, bytes]]:
    if package.suffix == ".whl":
        with zipfile.ZipFile(package) as wheel:
            yield from ((name, wheel.read(name)) for name in wheel.namelist() if name.endswith(".md"))
    else:
        with tarfile.open(package) as source:
            for member in source:
                if member.isfile() and member.name.endswith(".md") and (content := source.extractfile(member)):
                    yield member.name, content.read()


def _keep(package: str, name: str, text: bytes, folder: Path) -> None:
    for prefix, inside, set_name, wanted in _TAKEN:
        _, found, path = name.partition(inside)
        if package.startswith(prefix) and found and path.startswith(wanted):
            subfolder = prefix if set_name == "python" else ""
            target = folder / set_name / subfolder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(text)
