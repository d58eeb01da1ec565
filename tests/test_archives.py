"""An archive from elsewhere writes nowhere but below its folder, and no more than it may."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import pytest

from lite_medrl.data import archives
from lite_medrl.data.archives import unpack
from lite_medrl.types import DataError


def archive(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members:
            file.writestr(name, data)
    return path


def test_files_come_out_below_the_folder(tmp_path: Path) -> None:
    path = archive(
        tmp_path / "a.zip", ("Set/images/a.png", b"1"), ("Set/rows.json", b"[]"), ("Set/empty/", b"")
    )
    assert unpack(path, tmp_path / "out", strip="Set/") == 2
    found = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert found == ["images/a.png", "rows.json"]
    assert (tmp_path / "out" / "images" / "a.png").read_bytes() == b"1"


LEADS_OUT = [
    "../evil.txt",
    "/evil.txt",
    "a/../../evil.txt",
    "C:/evil.txt",
    "..\\evil.txt",
    "a\\..\\..\\evil.txt",
]


@pytest.mark.parametrize("name", LEADS_OUT)
def test_a_name_that_leads_out_stops_everything(tmp_path: Path, name: str) -> None:
    path = archive(tmp_path / "a.zip", ("good.txt", b"1"), (name, b"2"))
    with pytest.raises(DataError, match=r"a\.zip:.*evil\.txt: the name leads out of the folder; do not use"):
        unpack(path, tmp_path / "deep" / "out")
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]


@pytest.mark.parametrize("rest", ["/{}/evil.txt", "/../evil.txt", "../evil.txt", "C:/evil.txt"])
def test_the_name_that_is_written_is_checked(tmp_path: Path, rest: str) -> None:
    name = "imgs/" + rest.format(tmp_path)
    path = archive(tmp_path / "a.zip", ("imgs/good.txt", b"1"), (name, b"2"))
    with pytest.raises(DataError, match=r"a\.zip:imgs/.*evil\.txt: the name leads out of the folder"):
        unpack(path, tmp_path / "deep" / "out", strip="imgs/")
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]


def test_a_link_in_the_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "door").symlink_to(tmp_path)
    with pytest.raises(DataError, match=r"a\.zip:door/evil: the name leads out of the folder"):
        unpack(archive(tmp_path / "a.zip", ("door/evil", b"1")), tmp_path / "out")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a"), ("a", "a/b/c"), ("x/a", "x/a/./b")])
def test_a_file_below_a_file(tmp_path: Path, names: tuple[str, str]) -> None:
    path = archive(tmp_path / "a.zip", *((name, b"1") for name in names))
    with pytest.raises(DataError, match=r"a\.zip:.*: lies below a file of the same archive; do not use"):
        unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_way_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"a\.zip:a/b: .*out/a is a file; move it away"):
        unpack(archive(tmp_path / "a.zip", ("a/b", b"1")), tmp_path / "out")
    assert (tmp_path / "out" / "a").read_bytes() == b"mine"


def test_a_link_is_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with pytest.raises(DataError, match=r"a\.zip:link: is a link"):
        unpack(archive(tmp_path / "a.zip", (link, b"/etc/passwd")), tmp_path / "out")


def test_bombs_are_refused_before_a_byte_is_written(tmp_path: Path) -> None:
    bomb = archive(tmp_path / "a.zip", ("zeros", bytes(4 << 20)))
    with pytest.raises(DataError, match=r"a\.zip:zeros: swells over 200 times"):
        unpack(bomb, tmp_path / "out")
    small = archive(tmp_path / "b.zip", ("a", bytes(900_000)), ("b", bytes(900_000)))
    with pytest.raises(DataError, match=r"b\.zip: 0\.0 GiB unpacked, over 0\.0; do not use it"):
        unpack(small, tmp_path / "out", max_total_bytes=1_000_000)
    assert unpack(small, tmp_path / "out") == 2
    assert not (tmp_path / "out" / "zeros").exists()


def test_a_list_that_lies_about_a_size(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", ("a", b"x" * 5000))
    data = path.read_bytes()
    for size in (b"PK\x01\x02", b"PK\x03\x04"):
        at = data.index(size) + (24 if size == b"PK\x01\x02" else 22)
        data = data[:at] + struct.pack("<I", 10) + data[at + 4 :]
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.zip"):
        unpack(path, tmp_path / "out")
    written = tmp_path / "out" / "a"
    assert not written.exists() or written.stat().st_size <= 10


def test_too_many_files_and_no_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_MEMBERS", 1)
    with pytest.raises(DataError, match=r"a\.zip: 2 files, over 1"):
        unpack(archive(tmp_path / "a.zip", ("a", b""), ("b", b"")), tmp_path / "out")
    (tmp_path / "b.zip").write_bytes(b"no")
    with pytest.raises(DataError, match=r"b\.zip: File is not a zip file; download the archive again"):
        unpack(tmp_path / "b.zip", tmp_path / "out")
