"""What a store gives back is what was written, bit by bit, and nothing else counts as stored."""

import json
import shutil

import pytest
import torch

from finetune.store.layout import Layout
from finetune.store.store import RowSpec, StoreError

KEPT = {
    "on disk": {"memory_gb": 0.0},
    "in memory": {"memory_gb": 1.0, "disk_gb": 0.0},
}
kept = pytest.mark.parametrize("budgets", KEPT.values(), ids=KEPT)
INTEGERS = ["bool", "uint8", "int8", "int16", "int32", "int64"]
FLOATS = ["float16", "bfloat16", "float32", "float64"]
SOME = torch.tensor([7, 3, 250, 8, 0, 9])


@kept
def test_rows_come_back_bit_identical_in_any_order_and_company(open_store, known, budgets):
    store = open_store(**budgets)
    known.fill(store, SOME)
    for indices in (SOME, SOME.flip(0), SOME[:1], SOME[[1, 1, 4]], SOME[:0]):
        known.assert_right(store, indices)


@kept
def test_exactly_the_rows_that_were_written_are_there(open_store, known, budgets):
    store = open_store(**budgets)
    known.fill(store, SOME)
    everything = torch.arange(known.NUM_ROWS)
    assert store.has(everything).nonzero().squeeze(1).tolist() == sorted(SOME.tolist())
    assert store.written().tolist() == sorted(SOME.tolist())
    assert store.num_valid == len(SOME)
    for lacking in ([7, 1], [1], [6], [10], [249], [299]):
        with pytest.raises(KeyError):
            store.read(torch.tensor(lacking))


@kept
@pytest.mark.parametrize("index", [-1, -300, -301, -601, 300, 599, 2**40])
def test_an_index_outside_the_samples_is_refused(open_store, known, budgets, index):
    store = open_store(**budgets)
    known.fill(store, torch.arange(300))
    for ask in (store.has, store.read):
        with pytest.raises(IndexError):
            ask(torch.tensor([0, index]))


@kept
def test_what_the_caller_does_to_rows_does_not_reach_the_store(open_store, known, budgets):
    store = open_store(**budgets)
    values, lengths = known.values_of(SOME)
    store.write(SOME, values, lengths)
    for tensor in (*values.values(), *store.read(SOME).values()):
        tensor.zero_()
    known.assert_right(store, SOME)


@kept
def test_ragged_rows_are_padded_to_the_longest_or_to_a_length(open_store, known, budgets):
    store = open_store(**budgets)
    known.fill(store, torch.arange(18))
    short = torch.tensor([1, 3, 9])
    assert store.read(short)["tokens"].shape == (3, 3, 6)
    assert torch.equal(store.read(short, 8)["tokens"], known.expected(short, 8)["tokens"])
    assert store.read(torch.tensor([9]))["tokens"].shape == (1, 0, 6)
    with pytest.raises(ValueError, match="fewer than the 8 stored"):
        store.read(torch.tensor([8]), 7)


@kept
def test_rows_given_up_are_gone_and_can_be_written_again(open_store, known, budgets):
    store = open_store(**budgets)
    known.fill(store, SOME)
    store.discard()
    assert store.num_valid == 0
    assert not store.has(SOME).any()
    known.fill(store, SOME)
    known.assert_right(store, SOME)


def test_the_next_opening_starts_with_the_rows_of_the_last(open_store, known):
    store = open_store()
    known.fill(store, SOME)
    store.close()
    again = open_store()
    assert again.take_notes() == []
    assert again.num_valid == len(SOME)
    known.assert_right(again, SOME)
    known.fill(again, torch.arange(known.NUM_ROWS))
    known.assert_right(again, torch.arange(known.NUM_ROWS))


def test_a_file_too_large_for_memory_is_read_all_the_same(open_store, tmp_path):
    specs = {"x": RowSpec((1 << 20,), "float32"), "t": RowSpec((9, 3), "int64", ragged=True)}
    store = open_store(specs=specs, num_rows=20)
    rows, tokens = torch.randn(20, 1 << 20), torch.arange(20 * 27).view(20, 9, 3)
    store.write(torch.arange(20), {"x": rows, "t": tokens}, torch.full((20,), 9))
    indices = torch.tensor([19, 2, 3, 4, 0])
    read = store.read(indices)
    assert torch.equal(read["x"], rows[indices])
    assert torch.equal(read["t"], tokens[indices])


@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS, "complex64"])
def test_values_of_every_dtype_come_back_with_the_same_bits(open_store, dtype):
    specs = {
        "one": RowSpec((), dtype),
        "some": RowSpec((3, 2), dtype),
        "tokens": RowSpec((4, 3), dtype, ragged=True),
    }
    shapes = {"one": (6,), "some": (6, 3, 2), "tokens": (6, 4, 3)}
    values = {name: _any_bits(getattr(torch, dtype), shape) for name, shape in shapes.items()}
    store = open_store(specs=specs, num_rows=6)
    store.write(torch.arange(6), values, torch.full((6,), 4))
    store.close()
    rows = open_store(specs=specs, num_rows=6).read(torch.arange(6))
    for name, value in values.items():
        assert (rows[name].dtype, rows[name].shape) == (value.dtype, value.shape)
        assert torch.equal(_bits(rows[name]), _bits(value))


def _any_bits(dtype, shape):
    if dtype == torch.bool:
        return torch.rand(shape) < 0.5
    noise = torch.randint(256, (*shape, dtype.itemsize), dtype=torch.uint8)
    return noise.view(dtype).squeeze(-1)


def _bits(tensor):
    return tensor.reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_floats_are_kept_in_the_store_dtype_and_come_back_in_their_own(open_store, dtype):
    specs = {"x": RowSpec((4,), "float32"), "n": RowSpec((), "int64")}
    store = open_store(specs=specs, store_dtype=dtype)
    values = {"x": torch.randn(3, 4), "n": torch.tensor([1 << 40, 2, 3])}
    store.write(torch.arange(3), values)
    rows = store.read(torch.arange(3))
    assert rows["x"].dtype == torch.float32
    assert torch.equal(rows["x"], values["x"].to(getattr(torch, dtype)).float())
    assert torch.equal(rows["n"], values["n"])


@pytest.mark.parametrize(
    ("indices", "values", "lengths"),
    [
        ([0, 1], torch.zeros(3, 4, 2), [4, 4]),
        ([0, 1, 2], torch.zeros(3, 4, 2), [4, 4]),
        ([0, 1], torch.zeros(2, 4, 2), [4, 5]),
        ([0, 1], torch.zeros(2, 4, 3), [4, 4]),
        ([0, 1], torch.zeros(2, 4, 2).double(), [4, 4]),
        ([0, 1], torch.zeros(2, 4, 2), None),
    ],
    ids=["more values", "fewer lengths", "too long", "another shape", "another dtype", "no length"],
)
def test_values_that_are_not_those_of_the_rows_are_refused(open_store, indices, values, lengths):
    store = open_store(specs={"t": RowSpec((4, 2), "float32", ragged=True)})
    with pytest.raises(ValueError, match=r"samples|lengths|not \('float32'"):
        store.write(torch.tensor(indices), {"t": values}, lengths and torch.tensor(lengths))
    assert store.num_valid == 0


@kept
def test_rows_of_no_token_are_rows_too(open_store, budgets):
    specs = {"t": RowSpec((4, 2), "float32", ragged=True), "n": RowSpec((), "int64")}
    store = open_store(specs=specs, **budgets)
    numbers = torch.arange(5)
    store.write(
        numbers, {"t": torch.zeros(5, 4, 2), "n": numbers}, torch.zeros(5, dtype=torch.int64)
    )
    rows = store.read(numbers.flip(0), 3)
    assert torch.equal(rows["t"], torch.zeros(5, 3, 2))
    assert torch.equal(rows["n"], numbers.flip(0))


def test_what_another_process_gives_up_is_not_there(open_store, known):
    store, other = open_store(), open_store()
    known.fill(store, SOME)
    assert store.has(SOME).all()
    other.discard()
    assert not store.has(SOME).any()


@pytest.mark.parametrize("disk_gb", [0, 1], ids=["in memory alone", "on disk too"])
def test_a_budget_of_just_what_is_laid_out_suffices_in_any_order(open_store, disk_gb):
    specs = {"x": RowSpec((1000,), "float32"), "t": RowSpec((1, 4), "float32", ragged=True)}
    gib = Layout.of(specs, 10, None).size_bytes / (1 << 30)
    memory_gb, disk_gb = (0, gib) if disk_gb else (gib, 0)
    store = open_store(specs=specs, num_rows=10, memory_gb=memory_gb, disk_gb=disk_gb)
    x, t = torch.randn(10, 1000), torch.randn(10, 1, 4)
    for _ in range(1 if disk_gb else 3):
        for row in torch.arange(10).flip(0).split(1):
            store.write(row, {"x": x[row], "t": t[row]}, torch.ones(1, dtype=torch.int64))
        assert torch.equal(store.read(torch.arange(10))["x"], x)
        store.discard()


def test_a_store_in_memory_outgrows_its_budget_and_keeps_what_it_has(open_store):
    specs = {"t": RowSpec((1, 256), "float32", ragged=True)}
    store = open_store(specs=specs, num_rows=100, memory_gb=200 / (1 << 20), disk_gb=0)
    values, four = {"t": torch.randn(100, 4, 256)}, torch.full((100,), 4)
    store.write(torch.arange(40), {"t": values["t"][:40]}, four[:40])
    with pytest.raises(StoreError, match="outgrows its memory"):
        store.write(torch.arange(100), values, four)
    assert torch.equal(store.read(torch.arange(40))["t"], values["t"][:40])
    assert 0 < store.memory_bytes <= 200 << 10
    for _ in range(3):
        store.discard()
        store.write(torch.arange(40), {"t": values["t"][:40]}, four[:40])


def test_a_closed_store_touches_no_file(open_store, known, tmp_path):
    store = open_store()
    known.fill(store, SOME)
    store.close()
    others = [(tmp_path / f"other-{number}").open("w+b") for number in range(20)]
    with pytest.raises(StoreError):
        store.discard()
    for other in others:
        other.close()
    assert not any((tmp_path / f"other-{number}").stat().st_size for number in range(20))


def test_a_value_too_large_for_the_store_dtype_is_refused(open_store):
    store = open_store(specs={"x": RowSpec((2,), "float32")}, store_dtype="float16")
    with pytest.raises(StoreError, match="too large for float16"):
        store.write(torch.tensor([0]), {"x": torch.tensor([[1.0, 7e4]])})
    assert store.num_valid == 0
    infinite = torch.tensor([[float("inf"), float("nan")]])
    store.write(torch.tensor([0]), {"x": infinite})
    assert torch.equal(store.read(torch.tensor([0]))["x"].isnan(), infinite.isnan())


@pytest.mark.parametrize(
    ("specs", "dtype", "told"),
    [
        ({"x": RowSpec((2,), "float8_e4m3fn")}, None, "float8_e4m3fn"),
        ({"x": RowSpec((0, 2), "float32")}, None, "shape"),
        ({"x": RowSpec((), "float32", ragged=True)}, None, "shape"),
        ({"x": RowSpec((2,), "float32")}, "int8", "'int8'"),
        ({}, None, "no output"),
    ],
    ids=[
        "unknown dtype",
        "nothing in it",
        "ragged without an axis",
        "floats as integers",
        "no output",
    ],
)
def test_what_cannot_be_stored_is_refused(open_store, specs, dtype, told):
    with pytest.raises(StoreError, match=told):
        open_store(specs=specs, store_dtype=dtype)


@pytest.mark.parametrize("key", ["", "../k", "a/b", ".lock", "-x", "k" * 129])
def test_a_key_never_leads_out_of_the_folder(open_store, key):
    with pytest.raises(StoreError, match="no key of a store"):
        open_store(key)


def test_a_store_that_fits_nowhere_is_refused(open_store):
    with pytest.raises(StoreError, match="budget"):
        open_store(disk_gb=1e-6)
    with pytest.raises(StoreError, match="budget"):
        open_store(specs={"t": RowSpec((9, 256), "float32", ragged=True)}, disk_gb=1e-3)
    with pytest.raises(StoreError, match="the disk has"):
        open_store(num_rows=10**13, disk_gb=1e9)


def test_room_that_stores_in_use_have_yet_to_fill_is_not_given_twice(open_store, monkeypatch):
    specs = {"x": RowSpec((256,), "float32")}
    first = open_store("first", specs=specs, num_rows=1000)
    needed = first.meta.layout.size_bytes
    usage = shutil.disk_usage("/")._replace(free=int(1.5 * needed))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StoreError, match="of it for stores in use"):
        open_store("second", specs=specs, num_rows=1000)
    first.close()
    assert open_store("second", specs=specs, num_rows=1000).num_valid == 0


def test_a_store_that_fits_memory_alone_is_kept_there_and_says_so(open_store, known, tmp_path):
    store = open_store(memory_gb=1, disk_gb=1e-6)
    known.fill(store, SOME)
    known.assert_right(store, SOME)
    (note,) = store.take_notes()
    assert "kept in memory only" in note
    assert not (tmp_path / "k").exists()


def test_ragged_rows_that_outgrow_the_budget_of_disk_are_refused(open_store):
    specs = {"t": RowSpec((1, 256), "float32", ragged=True)}
    store = open_store(specs=specs, num_rows=100, disk_gb=200 / (1 << 20))
    values = {"t": torch.randn(100, 4, 256)}
    four = torch.full((100,), 4)
    store.write(torch.arange(40), {"t": values["t"][:40]}, four[:40])
    with pytest.raises(StoreError, match="outgrows its disk"):
        store.write(torch.arange(100), values, four)
    assert torch.equal(store.read(torch.arange(40))["t"], values["t"][:40])
    assert store.num_valid == 40


def test_the_budget_of_disk_is_used_to_the_last_token(open_store):
    store = open_store(
        specs={"t": RowSpec((1, 256), "float32", ragged=True)},
        num_rows=10,
        disk_gb=12 * 1024 / (1 << 30),
    )
    value = {"t": torch.randn(1, 4, 256)}
    for row in torch.arange(3):
        store.write(row[None], value, torch.tensor([4]))
    with pytest.raises(StoreError, match="outgrows its disk"):
        store.write(torch.tensor([3]), value, torch.tensor([1]))
    store.write(torch.tensor([3]), value, torch.tensor([0]))
    assert store.num_valid == 4


def test_meta_tells_people_what_the_store_is_of(open_store, known, tmp_path):
    open_store(facts={"layers": "encoder", "split": "train"})
    meta = json.loads((tmp_path / "k" / "meta.json").read_text())
    assert meta["facts"] == {"layers": "encoder", "split": "train"}
    assert meta["torch"] == torch.__version__
    assert [column["name"] for column in meta["columns"]] == list(known.SPECS)
