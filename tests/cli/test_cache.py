"""`finetune cache`: what stores there are, whether they are whole, and how they go."""

import json
import subprocess
import sys

import pytest
import torch

from finetune.store.store import RowSpec, Store


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def store(root):
    """Make a store of ten rows, and leave it open until the test is over."""
    opened = []

    def make(key):
        specs, facts = {"x": RowSpec((4,), "float32")}, {"layers": "encoder", "split": "train"}
        store = Store.open(root, key, specs, 10, memory_gb=0, disk_gb=1, facts=facts)
        store.write(torch.arange(10), {"x": torch.randn(10, 4)})
        opened.append(store)
        return store

    yield make
    for store in opened:
        store.close()


def test_an_empty_cache_is_told_in_a_line(finetune, root):
    assert finetune("cache") == (0, f"0 stores, 0 B, in {root}\n", "")


def test_ls_names_each_store_with_what_it_is_of(finetune, store):
    store("abc").close()
    store("def")
    code, out, _ = finetune("cache", "ls")
    live, idle, total = out.splitlines()
    assert code == 0
    assert live.startswith("def ")
    assert ", in use" in live
    assert "in use" not in idle
    assert "10 samples" in idle
    assert "layers encoder, split train" in idle
    assert total.startswith("2 stores")


def test_ls_as_json_is_one_document(finetune, store, root):
    store("abc").close()
    document = json.loads(finetune("cache", "--json").out)
    (entry,) = document["stores"]
    assert document["root"] == str(root)
    assert entry["key"] == "abc"
    assert entry["facts"] == {"layers": "encoder", "split": "train"}
    assert entry["in_use"] is False


@pytest.mark.parametrize("is_open", [False, True], ids=["idle", "in use"])
def test_verify_finds_the_damaged_row_and_gives_it_up(finetune, store, root, is_open):
    held = store("abc")
    if not is_open:
        held.close()
    with (root / "abc" / "rows-0").open("r+b") as file:
        file.seek(33)
        byte = file.read(1)[0]
        file.seek(33)
        file.write(bytes([byte ^ 0x10]))
    assert "9 rows whole, 1 damaged" in finetune("cache", "verify").out
    assert "9 rows whole, 0 damaged" in finetune("cache", "verify").out


def test_verify_tells_what_cannot_be_used_as_a_whole(finetune, store, root):
    for key in ("a", "b"):
        store(key).close()
    meta = json.loads((root / "a" / "meta.json").read_text())
    (root / "a" / "meta.json").write_text(json.dumps(meta | {"torch": "2.0.0"}))
    (root / "b" / "meta.json").write_text("{")
    out = finetune("cache", "verify").out
    assert "made by torch 2.0.0" in out
    assert "meta.json cannot be read" in out
    assert (root / "a").is_dir()
    assert "meta.json cannot be read" in finetune("cache").out


def test_to_verify_is_not_to_use(finetune, store, root):
    for key in ("a", "b", "c"):
        store(key).close()
    before = finetune("cache", "ls").out
    finetune("cache", "verify", "a")
    assert finetune("cache", "ls").out == before


def test_clear_removes_what_is_named_and_keeps_what_is_in_use(finetune, store, root):
    store("abc").close()
    store("abd").close()
    store("live")
    assert finetune("cache", "clear", "abc").code == 0
    assert not (root / "abc").exists()
    out = finetune("cache", "clear").out
    assert "kept: a process has it open" in out
    assert not (root / "abd").exists()
    assert (root / "live").exists()


def test_a_key_that_no_store_has_is_an_error(finetune, store):
    store("abc").close()
    code, _, err = finetune("cache", "clear", "abc", "xyz")
    assert code == 2
    assert "no store begins with 'xyz'" in err
    assert finetune("cache").out.startswith("abc")


def test_to_list_and_to_clear_needs_no_torch(store, root):
    store("abc").close()
    script = (
        "import sys; from finetune.cli.caching import cache_command as cache;"
        "cache('ls'); cache('clear'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=root.parents[0])
    assert not (root / "abc").exists()
