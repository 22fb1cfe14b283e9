"""Walking a folder and reading its files, some of them hostile."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from rag.corpus.read import UnreadableFileError, open_content
from rag.corpus.walk import CorpusError, is_inside, walk


def write(root: Path, path: str, content: str | bytes = "# 제목\n\n본문\n") -> Path:
    location = root / path
    location.parent.mkdir(parents=True, exist_ok=True)
    location.write_bytes(content.encode() if isinstance(content, str) else content)
    return location


def test_markdown_files_are_found_at_any_depth(tmp_path: Path) -> None:
    for path in ("b.md", "a/x.markdown", "a/b/y.mdx", "a/Z.MD", "note.txt", ".git/z.md", "node_modules/p/README.md"):
        write(tmp_path, path)
    assert [file.path for file in walk(tmp_path).files] == ["a/Z.MD", "a/b/y.mdx", "a/x.markdown", "b.md"]


@pytest.mark.parametrize("folder", ["old", "old/"])
def test_ignore_patterns_leave_names_and_paths_out(tmp_path: Path, folder: str) -> None:
    for path in ("keep.md", "draft-1.md", "old/a.md"):
        write(tmp_path, path)
    assert [file.path for file in walk(tmp_path, ignore=("draft-*", folder)).files] == ["keep.md"]


def test_only_regular_files_are_taken(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    write(corpus, "good.md")
    secret = write(tmp_path, "secret.md", "secret")
    (corpus / "link.md").symlink_to(secret)
    (corpus / "loop").symlink_to(corpus)
    (corpus / "folder.md").mkdir()
    write(corpus, "folder.md/inside.md")
    os.mkfifo(corpus / "pipe.md")
    found = walk(corpus)
    assert [file.path for file in found.files] == ["folder.md/inside.md", "good.md"]
    assert {failure.path: failure.reason.split(";")[0] for failure in found.failures} == {
        "link.md": "is a symbolic link",
        "pipe.md": "is not a regular file",
    }


def test_a_file_over_the_limit_is_a_failure(tmp_path: Path) -> None:
    write(tmp_path, "big.md", "x" * 101)
    write(tmp_path, "small.md", "x" * 100)
    found = walk(tmp_path, max_file_bytes=100)
    assert [file.path for file in found.files] == ["small.md"]
    assert "over the limit of 100" in found.failures[0].reason


def test_names_are_stored_composed(tmp_path: Path) -> None:
    write(tmp_path, unicodedata.normalize("NFD", "한글.md"))
    assert [file.path for file in walk(tmp_path).files] == ["한글.md"]


def test_two_names_that_differ_in_form_only_are_not_mixed_up(tmp_path: Path) -> None:
    for form in ("NFC", "NFD"):
        write(tmp_path, unicodedata.normalize(form, "한글.md"))
    found = walk(tmp_path)
    assert [len(found.files), len(found.failures)] == [1, 1]


def test_a_name_that_is_not_utf8_can_be_stored(tmp_path: Path) -> None:
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.md"))).write_text("x")
    assert [file.path for file in walk(tmp_path).files] == ["\ufffd.md"]


@pytest.mark.parametrize("make", [lambda root: None, lambda root: root.mkdir(), lambda root: root.write_text("x")])
def test_a_folder_that_is_missing_empty_or_none_is_refused(tmp_path: Path, make: object) -> None:
    root = tmp_path / "corpus"
    make(root)  # type: ignore[operator]
    with pytest.raises(CorpusError, match="corpus"):
        walk(root)


def test_an_empty_folder_proves_that_its_files_are_gone_only_if_it_is_the_one_that_held_them(tmp_path: Path) -> None:
    write(tmp_path, "a.md")
    file = write(tmp_path, "disk/b.md")
    known = walk(tmp_path).folders
    file.unlink()
    paths = ["a.md", "disk/b.md"]
    assert walk(tmp_path).unproved(known, paths) == []
    assert walk(tmp_path).unproved({}, paths) == ["disk"]
    (tmp_path / "disk").rename(tmp_path / "unmounted")
    (tmp_path / "disk").mkdir()
    assert walk(tmp_path).unproved(known, [*paths, "unmounted/b.md"]) == ["disk", "unmounted"]
    assert walk(tmp_path).unproved(known, paths) == ["disk"]
    write(tmp_path, "disk/UNMOUNTED.txt")
    assert walk(tmp_path).unproved(known, paths) == ["disk"]
    assert walk(tmp_path).unproved(known, ["a.md"]) == []


def test_a_link_in_a_folders_place_proves_nothing(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    write(corpus, "a.md")
    write(corpus, "home/b.md")
    known = walk(corpus).folders
    (corpus / "home").rename(tmp_path / "elsewhere")
    (corpus / "home").symlink_to(tmp_path / "elsewhere")
    found = walk(corpus)
    assert [file.path for file in found.files] == ["a.md"]
    assert found.unread == []
    assert found.unproved(known, ["a.md", "home/b.md"]) == ["home"]


def test_what_is_ignored_proves_nothing(tmp_path: Path) -> None:
    write(tmp_path, "a.md")
    write(tmp_path, "disk/.gitkeep")
    assert walk(tmp_path).unproved({}, ["a.md", "disk/b.md"]) == ["disk"]
    (tmp_path / "a.md").unlink()
    (tmp_path / "disk/.gitkeep").unlink()
    (tmp_path / "disk").rmdir()
    write(tmp_path, ".gitkeep")
    write(tmp_path, "UNMOUNTED.txt")
    with pytest.raises(CorpusError, match="is empty"):
        walk(tmp_path)


def test_a_file_is_inside_every_folder_above_it() -> None:
    assert is_inside("a/b/c.md", ["a"])
    assert is_inside("a/b/c.md", ["x", "a/b"])
    assert not is_inside("a/b/c.md", ["b", "a/bc"])


def test_a_folder_that_can_not_be_read_proves_nothing() -> None:
    with TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        write(root, "a.md")
        write(root, "locked/b.md")
        known = walk(root).folders
        (root / "locked").chmod(0)
        with as_a_user_without_rights():
            found = walk(root)
        assert [file.path for file in found.files] == ["a.md"]
        assert found.unproved(known, ["a.md", "locked/b.md"]) == ["locked"]


@contextmanager
def as_a_user_without_rights() -> Iterator[None]:
    """Root reads everything."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        ("한글 text\r\n".encode(), "utf-8"),
        ("한글 text\r\n".encode("utf-8-sig"), "utf-8-sig"),
        ("한글 text\r\n".encode("utf-16"), "utf-16"),
        (b"\xfe\xff" + "한글 text\r\n".encode("utf-16-be"), "utf-16"),
        ("한글 text\r\n".encode("cp949"), "cp949"),
    ],
)
def test_encodings_are_recognised(tmp_path: Path, data: bytes, encoding: str) -> None:
    content = open_content(write(tmp_path, "a.md", data))
    assert (content.encoding, content.text()) == (encoding, "한글 text\r\n")


@pytest.mark.parametrize(
    "data",
    [b"caf\xe9 latin-1\n", os.urandom(5000), "한글".encode("utf-16-le") + b"a\0" * 50, "日本語".encode("shift_jis")],
)
def test_a_file_in_no_known_encoding_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(UnreadableFileError, match="UTF-8"):
        open_content(write(tmp_path, "a.md", data))


def test_nul_and_lone_surrogates_become_replacement_characters(tmp_path: Path) -> None:
    assert (
        open_content(write(tmp_path, "a.md", b"one two \0 three \xed\xa0\x80.")).text()
        == "one two \ufffd three \ufffd."
    )
    assert open_content(write(tmp_path, "b.md", b"\xff\xfea\0\0\xd8b\0")).text() == "a\ufffdb"


def test_a_large_file_comes_in_blocks(tmp_path: Path) -> None:
    text = "가나다라마 바사\n" * 200_000
    content = open_content(write(tmp_path, "a.md", text))
    blocks = list(content.blocks())
    assert "".join(blocks) == text
    assert max(map(len, blocks)) <= 1024 * 1024


def test_a_file_that_changes_between_hash_and_reading_is_refused(tmp_path: Path) -> None:
    location = write(tmp_path, "a.md", "가" * 1_000_000)
    content = open_content(location)
    location.write_text("나" * 1_000_000)
    with pytest.raises(UnreadableFileError, match="changed"):
        content.text()


def test_a_file_that_became_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "a.md").symlink_to(write(tmp_path, "secret.md"))
    with pytest.raises(UnreadableFileError, match="can't be read"):
        open_content(tmp_path / "a.md")
