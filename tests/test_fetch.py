"""Fetching asks a hub for pinned files or checks an MD5; both are played here, nothing leaves the machine."""

from __future__ import annotations

import io
import json
import urllib.error
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.errors import OfflineModeIsEnabled

from lite_medrl.data import fetch as module
from lite_medrl.data.cache import md5_of
from lite_medrl.data.fetch import download, fetch
from lite_medrl.data.sets import registry
from lite_medrl.data.sets.medmnist_facts import SUBSETS
from lite_medrl.data.sources import load_samples
from lite_medrl.types import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LITE_MEDRL_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_set_is_asked_for_at_its_revision_without_its_code(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def snapshot(repo: str, **options: Any) -> str:
        asked.append({"repo": repo} | options)
        (options["local_dir"] / "MM").mkdir()
        row = {"id": "1", "question": "?", "options": {"A": "a", "B": "b"}, "label": "A"} | {
            "images": ["a.png"]
        }
        (options["local_dir"] / "MM" / "test.jsonl").write_text(json.dumps(row))
        return str(options["local_dir"])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    found = fetch("medxpertqa-mm")
    assert asked == [{
        "repo": "TsinghuaC3I/MedXpertQA", "repo_type": "dataset", "local_dir": cache / "medxpertqa-mm",
        "revision": "f4e6fe7e5a9e13d6c97d7aa2b91cdd8b80c9cc61",
        "allow_patterns": ["MM/*.jsonl", "images.zip"],
    }]  # fmt: skip
    assert found == {
        "set": "medxpertqa-mm", "path": str(cache / "medxpertqa-mm"), "licence": "MIT",
        "access": "open; for evaluation only", "source": "medxpertqa-mm",
    }  # fmt: skip
    assert load_samples(found["source"], "test")[0].answer == "a"


def test_an_archive_of_rows_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot(repo: str, **options: Any) -> str:
        with zipfile.ZipFile(options["local_dir"] / "OmniMedVQA.zip", "w") as archive:
            archive.writestr("OmniMedVQA/QA_information/Open-access/x.json", json.dumps([{
                "dataset": "x", "question_id": "1", "question": "?", "gt_answer": "b", "option_A": "a",
                "option_B": "b", "image_path": "Images/x/1.png",
            }]))  # fmt: skip
        return repo

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    found = fetch("omnimedvqa", tmp_path / "here")
    assert found["source"] == f"omnimedvqa:{tmp_path / 'here'}"
    assert load_samples(found["source"], "test")[0].letter == "B"


def test_no_connection_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> str:
        raise OfflineModeIsEnabled("offline mode is on\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    told = (
        r"vqa-rad: flaviagiammarino/vqa-rad could not be fetched \(offline mode is on\); check the connection"
    )
    with pytest.raises(DataError, match=told):
        fetch("vqa-rad")
    with pytest.raises(DataError, match=r"pathvqq: no set of this name; .*; did you mean 'pathvqa'\?"):
        fetch("pathvqq")
    with pytest.raises(DataError, match="llava: is a format of your own files"):
        fetch("llava")


class Answer(io.BytesIO):
    """What a server sends."""


def test_medmnist_comes_whole_or_not_at_all(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subset = SUBSETS["breastmnist"]
    np.savez(tmp_path / "made.npz", **{
        f"{split}_{what}": np.zeros((2, 28, 28) if what == "images" else (2, 1), np.uint8)
        for split in ("train", "val", "test") for what in ("images", "labels")
    })  # fmt: skip
    data = (tmp_path / "made.npz").read_bytes()
    asked: list[str] = []

    def opener(url: str, timeout: float) -> Answer:
        asked.append(url)
        return Answer(data)

    monkeypatch.setattr(module, "download", lambda url, path: download(url, path, opener))
    with pytest.raises(
        DataError, match=r"breastmnist\.npz\?download=1: the MD5 is not the published one; fetch"
    ):
        fetch("breastmnist")
    assert [p for p in cache.rglob("*") if p.is_file()] == []
    known = replace(subset, md5={**subset.md5, 28: md5_of(tmp_path / "made.npz")})
    monkeypatch.setitem(SUBSETS, "breastmnist", known)
    assert fetch("breastmnist@28")["path"] == str(cache / "medmnist" / "breastmnist.npz")
    fetch("breastmnist@28")
    assert asked == ["https://zenodo.org/records/10519652/files/breastmnist.npz?download=1"] * 2
    assert len(load_samples("breastmnist", "test")) == 2


def test_a_download_that_breaks_off_or_never_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(url: str, timeout: float) -> Answer:
        raise urllib.error.URLError("no route to host")

    with pytest.raises(DataError, match=r"https://x: could not be fetched \(.*no route to host.*\); check"):
        download("https://x", tmp_path / "a", refused)
    monkeypatch.setattr(module, "MAX_BYTES", 10)
    with pytest.raises(DataError, match="https://x: more than 10 bytes"):
        download("https://x", tmp_path / "a", lambda url, timeout: Answer(b"x" * 11))


def test_pinned_revisions_are_commits() -> None:
    for one in registry.SETS.values():
        assert one.revision is None or (len(one.revision) == 40 and int(one.revision, 16))
