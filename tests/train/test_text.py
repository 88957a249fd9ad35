from __future__ import annotations

import os
import sysconfig
from pathlib import Path

import pytest

from evenflow.errors import InputError
from evenflow.train.text import fingerprint, read_documents

STDLIB = Path(sysconfig.get_paths()["stdlib"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for name, content in {
        "b.txt": b"bee\n",
        "a/z.txt": b"zed\n",
        "a/b/c.md": "caf\u00e9\r\n".encode(),
        "a-b/x.txt": b"\xef\xbb\xbfdash\n",
        ".hidden.txt": b"hidden\n",
        ".git/config": b"git\n",
        "a/__pycache__/m.txt": b"cache\n",
        "empty.txt": b"",
        "nul.bin": b"text\0text",
        "latin.txt": "caf\u00e9".encode("latin-1"),
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def test_a_file_is_one_document() -> None:
    path = STDLIB / "textwrap.py"
    assert list(read_documents(path)) == [path.read_text()]


def test_a_folder_is_its_text_files_in_path_order(folder: Path) -> None:
    assert list(read_documents(folder)) == ["caf\u00e9\r\n", "zed\n", "dash\n", "bee\n"]


def test_links_are_not_followed_out_of_the_folder(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "o.txt").write_text("outside\n")
    (folder / "link.txt").symlink_to(outside / "o.txt")
    (folder / "linked").symlink_to(outside)
    (folder / "circle").symlink_to(folder)
    (folder / "broken").symlink_to(tmp_path / "nowhere")
    assert len(list(read_documents(folder))) == 4
    (folder / "inside.txt").symlink_to(folder / ".hidden.txt")
    assert list(read_documents(folder))[-1] == "hidden\n"


def test_a_linked_folder_is_read_when_it_is_what_was_asked_for(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    assert list(read_documents(tmp_path / "link")) == list(read_documents(folder))
    assert fingerprint(tmp_path / "link") == fingerprint(folder)


def test_a_pipe_does_not_block(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    assert len(list(read_documents(folder))) == 4


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    for reader in (read_documents, fingerprint):
        with pytest.raises(InputError, match=r"nowhere does not exist; .* would do"):
            reader(tmp_path / "nowhere")


def test_a_folder_without_text_says_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"\0")
    (tmp_path / "b.txt").touch()
    with pytest.raises(InputError, match=r"has no text: of 2 files .* 1 are not UTF-8 and 1 are empty"):
        list(read_documents(tmp_path))


@pytest.mark.parametrize(("content", "reason"), [(b"a\0b", "is not UTF-8"), (b"\xff", "is not UTF-8"), (b"", "empty")])
def test_a_file_without_text_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(InputError, match=reason):
        list(read_documents(tmp_path / "f"))


def test_the_fingerprint_changes_with_the_files_alone(folder: Path) -> None:
    first = fingerprint(folder)
    assert fingerprint(folder) == first
    (folder / ".hidden.txt").write_text("no document of ours")
    assert fingerprint(folder) == first
    facts = (folder / "b.txt").stat()
    os.utime(folder / "b.txt", ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    touched = fingerprint(folder)
    (folder / "b.txt").rename(folder / "c.txt")
    assert len({first, touched, fingerprint(folder)}) == 3


def test_the_fingerprint_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "f.txt"
    path.write_text("one")
    first = fingerprint(path)
    path.write_text("four")
    assert fingerprint(path) != first
