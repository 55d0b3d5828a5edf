"""A prediction streams its input, names bad rows, and goes on where it was interrupted."""

import csv
import io
import json
import math

import pytest
import torch

from finetune.counting import shown_by
from finetune.data.incoming.incoming_pieces import Wanted, pieces_of
from finetune.data.readers.kept_stream import kept
from finetune.errors import FinetuneError
from finetune.predict import load_predictor
from finetune.predict.prediction import Asking, Told
from finetune.predict.whole_prediction import Input, WholePrediction
from finetune.train.wire import build_trainer

ROWS = 40


def jsonl(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def samples(count=ROWS):
    return [
        {"id": f"n{n}", "u": n / 7 - 2, "v": (n % 5) / 3, "label": "ab"[n % 2]}
        for n in range(count)
    ]


@pytest.fixture
def run(small_config, tmp_path):
    """A run on two numbers, and what it predicts of any table."""
    source = {"type": "jsonl", "path": str(jsonl(tmp_path / "t.jsonl", samples()))}
    config = small_config(
        model={"layers": [{"name": "head", "type": "Linear", "out_features": "classes"}]},
        data={
            "source": source,
            "inputs": ["u", "v"],
            "target": "label",
            "transforms": [{"type": "stack"}],
        },
        task={"type": "classification"},
        train={"steps": 2, "batch_size": 8},
    )
    build_trainer(config, tmp_path / "run").fit(quiet=True)
    return tmp_path / "run"


@pytest.fixture
def small_pieces(monkeypatch):
    """Pieces of one batch, and a journal entry after each."""
    monkeypatch.setattr("finetune.predict.passes.WINDOW", 1)
    monkeypatch.setattr("finetune.predict.journal._COMMIT_S", 0.0)


def whole(run, source, out, *, heard=None, **asked):
    said = [] if heard is None else heard
    told = Told(said.append, said.append)
    prediction = WholePrediction(
        load_predictor(run, batch_size=8), Input(str(source), io.StringIO()), Asking(**asked), told
    )
    return prediction.to_file(out, None, raw=False)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_columns_of_the_input_are_kept_beside_predictions(run, tmp_path, command_line):
    table = jsonl(tmp_path / "new.jsonl", samples(3))
    shown = command_line("predict", run, table)
    rows = [json.loads(line) for line in shown.out.splitlines()]
    assert [row["id"] for row in rows] == ["n0", "n1", "n2"]
    assert [row["input/label"] for row in rows] == ["a", "b", "a"]
    assert all(
        row["label"] in "ab" and row["input"].endswith(str(n)) for n, row in enumerate(rows, 1)
    )
    assert "column 'label' of the input is 'input/label' beside the predictions" in shown.err
    bare = command_line("predict", run, table, "--without-columns").out.splitlines()
    assert [list(json.loads(line)) for line in bare] == [
        ["input", "label", "probability", "probabilities"]
    ] * 3


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
def test_all_forms_of_output_hold_the_same(run, tmp_path, ending, small_pieces):
    table = jsonl(tmp_path / "new.jsonl", samples())
    out = tmp_path / f"out.{ending}"
    assert whole(run, table, out) == ROWS
    expected = [p.probabilities["a"] for p in load_predictor(run, batch_size=8)(samples())]
    match ending:
        case "csv":
            with out.open(newline="") as file:
                rows = list(csv.DictReader(file))
            found = [float(row["probability/a"]) for row in rows]
        case "parquet":
            from pyarrow import parquet

            rows = parquet.read_table(out).to_pylist()
            found = [row["probability/a"] for row in rows]
            assert isinstance(rows[0]["u"], float)
        case _:
            rows = lines(out)
            found = [row["probabilities"]["a"] for row in rows]
    assert found == expected
    assert [row["id"] for row in rows] == [row["id"] for row in samples()]
    assert not list(tmp_path.glob(".finetune-predict-*"))


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_an_input_is_read_piece_by_piece(run, tmp_path, form):
    config = load_predictor(run).run
    path = tmp_path / f"in.{form}"
    if form == "jsonl":
        jsonl(path, samples(10))
    elif form == "csv":
        path.write_text("id,u,v\n" + "".join(f"{n},{n},1\n" for n in range(10)))
    else:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(samples(10)), path)
    wanted = Wanted(config.config.data, config.facts.kinds, size=4)
    parts = [part for part in pieces_of(str(path), wanted, io.StringIO()) if part.names]
    assert [len(part.names) for part in parts] == [4, 4, 2]
    assert [name.rpartition(":")[2] for part in parts for name in part.names] == [
        *map(str, range(1, 11))
    ]
    assert parts[1].places.told(0).startswith("row 5 of ")


CORRUPT = {
    "no json": ('{"u": 1, "v"', "not JSON"),
    "no value": ('{"u": 1, "v": null}', "no value for 'v'"),
    "another kind": ('{"u": "many", "v": 2}', "holds 'many'"),
    "no text": (b'{"u": 1, "v": "\xff"}', "byte 0xff"),
}


@pytest.mark.parametrize("case", CORRUPT)
def test_a_bad_row_is_named_and_passed_over_if_asked(run, tmp_path, case):
    bad, why = CORRUPT[case]
    good = [json.dumps(row).encode() for row in samples(20)]
    (tmp_path / "good.jsonl").write_bytes(b"\n".join(good))
    raw = bad if isinstance(bad, bytes) else bad.encode()
    (tmp_path / "new.jsonl").write_bytes(b"\n".join([*good[:9], raw, *good[9:]]))
    with pytest.raises(FinetuneError) as caught:
        whole(run, tmp_path / "new.jsonl", tmp_path / "stopped.jsonl")
    assert "10" in str(caught.value) or "10" in str(caught.value.where)
    heard = []
    assert (
        whole(run, tmp_path / "new.jsonl", tmp_path / "out.jsonl", on_error="skip", heard=heard)
        == 20
    )
    told = [line for line in heard if line.startswith("passed over")]
    assert len(told) == 1
    assert why in told[0]
    assert "10" in told[0]
    assert "1 of 21 samples were passed over" in heard
    whole(run, tmp_path / "good.jsonl", tmp_path / "alike.jsonl")
    kept, alike = lines(tmp_path / "out.jsonl"), lines(tmp_path / "alike.jsonl")
    assert [row["id"] for row in kept] == [row["id"] for row in alike]
    for row, same in zip(kept, alike, strict=True):
        assert row["probability"] == pytest.approx(same["probability"])


def test_a_csv_row_of_another_width_is_passed_over(run, tmp_path):
    (tmp_path / "new.csv").write_text("u,v\n1,2\n3\n-4,5\n")
    heard = []
    assert whole(run, tmp_path / "new.csv", tmp_path / "o.csv", on_error="skip", heard=heard) == 2
    assert any("new.csv:3: holds 1 values" in line for line in heard)
    with (tmp_path / "o.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["input"].rpartition(":")[2] for row in rows] == ["1", "3"]
    assert [row["u"] for row in rows] == ["1", "-4"]


def test_where_every_row_is_bad_nothing_is_written(run, tmp_path):
    jsonl(tmp_path / "new.jsonl", [{"u": "x", "v": 1}] * 3)
    with pytest.raises(FinetuneError, match="none of 3 samples"):
        whole(run, tmp_path / "new.jsonl", tmp_path / "o.jsonl", on_error="skip")
    assert not (tmp_path / "o.jsonl").exists()


class Stopped(BaseException):
    pass


def stop_after(monkeypatch, pieces):
    """Break the next prediction off after some pieces, without a word, as a kill does."""
    from finetune.predict.journal import Journal

    add, left = Journal.add, [pieces]

    def added(self, *arguments):
        if not left[0]:
            raise Stopped
        left[0] -= 1
        add(self, *arguments)

    monkeypatch.setattr(Journal, "add", added)
    monkeypatch.setattr(Journal, "__exit__", lambda self, *_: self._file.close())


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_an_interrupted_prediction_ends_with_the_same_bytes(run, tmp_path, ending, small_pieces):
    table = jsonl(tmp_path / "new.jsonl", samples())
    whole(run, table, tmp_path / f"expected.{ending}")
    out = tmp_path / f"out.{ending}"
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Stopped):
            whole(run, table, out)
    assert not out.exists()
    kept = list(tmp_path.glob(".finetune-predict-*"))
    assert [path.stat().st_mode & 0o777 for path in kept] == [0o600, 0o600]
    heard = []
    assert whole(run, table, out, heard=heard) == ROWS
    assert any("goes on behind 24 rows" in line for line in heard)
    assert out.read_bytes() == (tmp_path / f"expected.{ending}").read_bytes()
    assert not list(tmp_path.glob(".finetune-predict-*"))


def test_lines_of_a_file_are_those_of_a_stream_with_null_for_columns_met_later(
    run, tmp_path, small_pieces, monkeypatch
):
    monkeypatch.setattr("finetune.data.readers.documents.ROWS_AT_ONCE", 8)
    rows = samples()
    rows[2]["id"] = "NaN"
    for number, row in enumerate(rows[20:]):
        row["late"] = "a\u202eb" if number % 2 else math.inf
    table = jsonl(tmp_path / "new.jsonl", rows)
    stream, silent = io.StringIO(), Told(lambda _: None, lambda _: None)
    predictor, source = load_predictor(run, batch_size=8), Input(str(table), io.StringIO())
    WholePrediction(predictor, source, Asking(), silent).to_stream(stream)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Stopped):
            whole(run, table, tmp_path / "out.jsonl")
    whole(run, table, tmp_path / "out.jsonl")
    expected = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert lines(tmp_path / "out.jsonl") == [{"late": None} | row for row in expected]
    [order] = {tuple(row) for row in lines(tmp_path / "out.jsonl")}
    assert order == tuple(expected[-1])
    text = (tmp_path / "out.jsonl").read_text()
    assert (text.count("a\\u202eb"), text.count("\u202e"), text.count("Infinity")) == (10, 0, 0)


def test_what_is_told_at_the_end_counts_the_rows_before_an_interruption(
    run, tmp_path, small_pieces
):
    rows = [row | {"label": "new" if n == 2 else "a"} for n, row in enumerate(samples())]
    table = jsonl(tmp_path / "new.jsonl", rows)
    predictor = load_predictor(run)
    torch.nn.init.constant_(predictor.model.get_parameter("head.bias"), math.nan)

    def told_of(out):
        heard = []
        told = Told(heard.append, heard.append)
        prediction = WholePrediction(predictor, Input(str(table), io.StringIO()), Asking(), told)
        prediction.to_file(tmp_path / out, None, raw=False)
        return heard

    expected = told_of("expected.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Stopped):
            told_of("out.jsonl")
    first, *others = told_of("out.jsonl")
    assert first.startswith("goes on behind 24 rows")
    # The first process has told what the columns are called.
    assert others == expected[1:]
    assert any(f"{ROWS} predictions are not finite" in line for line in others)
    assert any("'new'" in line for line in others)


def longer(tmp_path, run):
    jsonl(tmp_path / "new.jsonl", [{"id": "x", "u": 0, "v": 0}, *samples()])


def damaged(tmp_path, run):
    [rows] = tmp_path.glob(".finetune-predict-*.rows")
    rows.write_bytes(rows.read_bytes().replace(b"n1", b"n9", 1))


def no_journal(tmp_path, run):
    [journal] = tmp_path.glob(".finetune-predict-*.json")
    journal.write_text("[]")


def no_number(tmp_path, run):
    [journal] = tmp_path.glob(".finetune-predict-*.json")
    journal.write_text(json.dumps(json.loads(journal.read_text()) | {"unfilled": "many"}))


@pytest.mark.parametrize(
    "change", [longer, damaged, no_journal, no_number], ids=lambda change: change.__name__
)
def test_what_does_not_fit_is_begun_anew_with_a_line(run, tmp_path, change, small_pieces):
    table = jsonl(tmp_path / "new.jsonl", samples())
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Stopped):
            whole(run, table, tmp_path / "out.jsonl")
    change(tmp_path, run)
    heard = []
    whole(run, table, tmp_path / "out.jsonl", heard=heard)
    assert any("begins anew" in line for line in heard)
    whole(run, table, tmp_path / "expected.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "expected.jsonl").read_bytes()


def test_a_changed_input_leaves_nothing_of_the_earlier_one(run, tmp_path, small_pieces):
    table = jsonl(tmp_path / "new.jsonl", samples())
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Stopped):
            whole(run, table, tmp_path / "out.jsonl")
    longer(tmp_path, run)
    heard = []
    whole(run, table, tmp_path / "out.jsonl", heard=heard)
    assert [line for line in heard if "column" not in line] == [
        "goes on behind 24 rows of an interrupted prediction of out.jsonl",
        "begins anew: the input has changed since the prediction that was interrupted",
    ]


def test_a_changed_input_has_its_notes_told_once(run, tmp_path, small_pieces):
    rows = [row | {"label": "new"} for row in samples()]
    # A table of another format than its name says, which is noted.
    table = jsonl(tmp_path / "new.csv", rows)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Stopped):
            whole(run, table, tmp_path / "out.jsonl")
    jsonl(table, rows[1:])
    heard, expected = [], []
    whole(run, table, tmp_path / "out.jsonl", heard=heard)
    whole(run, table, tmp_path / "expected.jsonl", heard=expected)
    [note] = [line for line in heard if "is read as JSON, which it holds" in line]
    journal = [line for line in heard if line.startswith(("goes on", "begins anew"))]
    assert sorted(line for line in heard if line not in journal) == sorted(expected)
    assert (len(journal), note in expected) == (2, True)


@pytest.mark.parametrize("asked", [{"top_k": 3}, {"embeddings": "haed"}], ids=["top_k", "layer"])
def test_a_refused_option_costs_no_row_that_is_kept(run, tmp_path, asked, small_pieces):
    table = jsonl(tmp_path / "new.jsonl", samples())
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Stopped):
            whole(run, table, tmp_path / "out.jsonl")
    with pytest.raises(FinetuneError):
        whole(run, table, tmp_path / "out.jsonl", **asked)
    heard = []
    whole(run, table, tmp_path / "out.jsonl", heard=heard)
    assert any("goes on behind 24 rows" in line for line in heard)


def test_progress_counts_the_whole_input_also_behind_an_interruption(run, tmp_path, small_pieces):
    table = jsonl(tmp_path / "new.jsonl", samples())
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Stopped):
            whole(run, table, tmp_path / "out.jsonl")
    shown = []
    with shown_by(shown.append):
        whole(run, table, tmp_path / "out.jsonl")
        whole(run, table, tmp_path / "second.jsonl")
    counts = [line for line in shown if line.startswith("predicting")]
    expected = [f"predicting: {number} rows" for number in (*range(24, ROWS), *range(ROWS))]
    assert counts == expected


def test_another_option_begins_anew(run, tmp_path, small_pieces):
    table = jsonl(tmp_path / "new.jsonl", samples())
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Stopped):
            whole(run, table, tmp_path / "out.jsonl")
    heard = []
    whole(run, table, tmp_path / "out.jsonl", heard=heard, columns=False)
    assert any("is of another run, version or option" in line for line in heard)


def test_rows_before_a_bad_one_are_kept_for_the_next_start(run, tmp_path, small_pieces):
    rows = samples()
    rows[30]["u"] = "many"
    table = jsonl(tmp_path / "new.jsonl", rows)
    heard = []
    with pytest.raises(FinetuneError, match="'many'"):
        whole(run, table, tmp_path / "out.jsonl", heard=heard)
    assert any("24 predictions are kept" in line for line in heard)
    assert whole(run, table, tmp_path / "out.jsonl", heard=heard, on_error="skip") == ROWS - 1
    assert any("goes on behind 24 rows" in line for line in heard)


@pytest.mark.parametrize("kind", ["link", "second name", "folder"])
def test_a_planted_file_of_rows_is_refused(run, tmp_path, kind, small_pieces):
    table = jsonl(tmp_path / "new.jsonl", samples())
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(Stopped):
            whole(run, table, tmp_path / "out.jsonl")
    [rows] = tmp_path.glob(".finetune-predict-*.rows")
    rows.unlink()
    victim = tmp_path / "victim"
    victim.write_text("mine")
    match kind:
        case "link":
            rows.symlink_to(victim)
        case "second name":
            rows.hardlink_to(victim)
        case _:
            rows.mkdir()
    with pytest.raises(FinetuneError, match="cannot be written"):
        whole(run, table, tmp_path / "out.jsonl")
    assert victim.read_text() == "mine"


@pytest.mark.parametrize("whence", [0, 1, 2])
def test_a_stream_on_disk_is_read_from_any_place(monkeypatch, whence):
    monkeypatch.setattr("finetune.data.readers.kept_stream._IN_MEMORY", 4)
    file = kept(io.BytesIO(b"0123456789"), "x")
    assert file.read(2) == b"01"
    file.seek({0: 6, 1: 4, 2: -4}[whence], whence)
    assert file.read() == b"6789"


def test_a_long_stream_is_kept_on_disk_and_read_alike(run, tmp_path, monkeypatch):
    monkeypatch.setattr("finetune.data.readers.kept_stream._IN_MEMORY", 100)
    text = jsonl(tmp_path / "new.jsonl", samples(9)).read_bytes()
    about = load_predictor(run).run
    wanted = Wanted(about.config.data, about.facts.kinds, size=4)
    parts = [*pieces_of("-", wanted, io.TextIOWrapper(io.BytesIO(text)))]
    assert [name for part in parts for name in part.names] == [f"-:{n}" for n in range(1, 10)]
    assert [cell for part in parts for cell in part.beside["id"]] == [s["id"] for s in samples(9)]


def test_the_most_probable_classes_and_the_unsure_rows_are_written(run, tmp_path):
    table = jsonl(tmp_path / "new.jsonl", samples())
    whole(run, table, tmp_path / "all.jsonl")
    whole(run, table, tmp_path / "top.jsonl", top_k=2)
    for row, top in zip(lines(tmp_path / "all.jsonl"), lines(tmp_path / "top.jsonl"), strict=True):
        by_class = row["probabilities"]
        assert (top["label/1"], top["score/1"]) == (row["label"], row["probability"])
        assert {top["label/1"]: top["score/1"], top["label/2"]: top["score/2"]} == by_class
    middle = sorted(row["probability"] for row in lines(tmp_path / "all.jsonl"))[ROWS // 2]
    heard = []
    whole(run, table, tmp_path / "unsure.jsonl", below=middle, heard=heard)
    unsure = [row for row in lines(tmp_path / "all.jsonl") if row["probability"] < middle]
    assert lines(tmp_path / "unsure.jsonl") == unsure
    assert f"{len(unsure)} of {ROWS} predictions have a probability below {middle}" in heard
    with pytest.raises(FinetuneError, match="asks for 3 classes, and the run knows 2"):
        whole(run, table, tmp_path / "top.jsonl", top_k=3)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_the_output_of_a_layer_is_written_for_each_sample(run, tmp_path, ending):
    table = jsonl(tmp_path / "new.jsonl", samples())
    whole(run, table, tmp_path / f"out.{ending}", embeddings="head")
    expected = [list(found.values) for found in load_predictor(run, batch_size=8)(samples())]
    match ending:
        case "csv":
            with (tmp_path / "out.csv").open(newline="") as file:
                rows = list(csv.DictReader(file))
            found = [[float(row["embedding/0"]), float(row["embedding/1"])] for row in rows]
        case "parquet":
            from pyarrow import parquet

            found = parquet.read_table(tmp_path / "out.parquet")["embedding"].to_pylist()
        case _:
            found = [row["embedding"] for row in lines(tmp_path / "out.jsonl")]
    assert found == expected
    with pytest.raises(FinetuneError, match="no layer 'haed'"):
        whole(run, table, tmp_path / "o.jsonl", embeddings="haed")


def test_embeddings_are_those_of_their_own_pass(run):
    predictor = load_predictor(run, batch_size=8)
    tapped = predictor.tapped("head")
    expected = [answer.embedding.tolist() for answer in tapped.answers(samples(9))]
    # none of these asks for embeddings, and the last one fails behind the layer
    predictor(samples(3))
    tapped(samples(3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("finetune.predict.passes.Passes.records", None)
        with pytest.raises(TypeError):
            [*tapped.answers(samples(3))]
    assert [answer.embedding.tolist() for answer in tapped.answers(samples(9))] == expected
    assert not predictor.model.get_submodule("head")._forward_hooks


def test_an_embedding_is_the_output_of_its_layer_although_the_next_one_changes_it(
    small_run, tmp_path
):
    layers = [
        {"name": "body", "type": "Linear", "out_features": 6},
        {"name": "act", "type": "ReLU", "inplace": True},
        {"name": "head", "type": "Linear", "out_features": 3},
    ]
    small_run("run", model={"layers": layers}).fit(quiet=True)
    predictor = load_predictor(tmp_path / "run").tapped("body")
    inputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    found = torch.stack([answer.embedding for answer in predictor.answers(inputs)])
    with torch.inference_mode():
        assert torch.equal(found, predictor.model.get_submodule("body")(inputs))
    assert (found < 0).any()


def test_a_probability_that_is_no_number_is_unsure(run, tmp_path):
    table = jsonl(tmp_path / "new.jsonl", samples(3))
    predictor = load_predictor(run)
    torch.nn.init.constant_(predictor.model.get_parameter("head.bias"), math.nan)
    asked, told = Asking(below=0.0), Told(lambda _: None, lambda _: None)
    prediction = WholePrediction(predictor, Input(str(table), io.StringIO()), asked, told)
    assert prediction.to_file(tmp_path / "unsure.jsonl", None, raw=False) == 3


def test_numbers_that_are_not_finite_are_null_in_json_and_told(run, tmp_path):
    table = jsonl(tmp_path / "new.jsonl", samples(3))
    predictor = load_predictor(run)
    torch.nn.init.constant_(predictor.model.get_parameter("head.bias"), math.inf)
    said = []
    told = Told(said.append, lambda _: None)
    prediction = WholePrediction(predictor, Input(str(table), io.StringIO()), Asking(), told)
    prediction.to_file(tmp_path / "new_odd.jsonl", None, raw=False)
    rows = (tmp_path / "new_odd.jsonl").read_text().splitlines()

    def refuse(name):
        raise AssertionError(name)

    assert [json.loads(row, parse_constant=refuse)["probability"] for row in rows] == [None] * 3
    assert said[-1].startswith("3 predictions are not finite (nan, inf), the first for ")
    assert said[-1].endswith("JSON has null there, and a label beside nan means nothing")


def test_a_csv_without_rows_has_a_header(run, tmp_path):
    table = jsonl(tmp_path / "new.jsonl", samples(3))
    predictor = load_predictor(run)
    told, files = Told(lambda _: None, lambda _: None), []
    for below in (None, 0.0):
        files.append(tmp_path / f"{below}.csv")
        asked = Asking(below=below)
        prediction = WholePrediction(predictor, Input(str(table), io.StringIO()), asked, told)
        prediction.to_file(files[-1], None, raw=False)
    full, empty = (file.read_text().splitlines() for file in files)
    assert len(full) == 4
    assert empty == full[:1]
