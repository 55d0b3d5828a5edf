"""Answers in texts: from tables to predictions, windows of long texts, and what is refused."""

import csv
import json
import shutil

import pytest
import torch

from finetune.config.task_keys import SpanTask
from finetune.errors import DataError, FinetuneError
from finetune.predict.predictor import load_predictor
from finetune.runs.folder import RunFolder
from finetune.tasks.answer_scores import score_of
from finetune.train.after.trained import evaluate_run
from finetune.train.build import build_parts
from finetune.train.looks import seen_answers
from finetune.train.wire import build_trainer

ROWS = [
    ("good film", "the good film yes", "good", 4),
    ("bad", "no the bad film", "bad film", 7),
    ("film", "yes yes  film no", "film", 9),
    ("no film", "the film", "the", 0),
]
LONG = "the good film yes no the bad film no yes the yes good no film the bad yes"
LONG_ROWS = [("good", LONG, "bad film", 25), ("bad film", LONG, "film", 57), *ROWS[:2]]
"""18 words; with `max_length: 10` a question of one word leaves room for six of them."""
SHORT = [{"type": "tokenize", "max_length": 10}]


@pytest.fixture
def config(tmp_path, small_config, bert):
    """A config of questions, texts and answers; `rows` are dicts, or cells of a csv."""

    def make(
        rows=ROWS,
        task=None,
        transforms=None,
        layers=None,
        train=None,
        times=6,
        freeze=None,
        cache="off",
        **data,
    ):
        if isinstance(rows[0], dict):
            source = {"type": "json", "path": str(tmp_path / "data.jsonl")}
            lines = [json.dumps(row) for row in list(rows) * times]
            (tmp_path / "data.jsonl").write_text("\n".join(lines))
        else:
            source = {"type": "csv", "path": str(tmp_path / "data.csv")}
            with (tmp_path / "data.csv").open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["question", "context", "answer", "start"])
                writer.writerows(list(rows) * times)
        encoder = {"name": "net", "type": "transformers", "path": bert, "output": "logits"}
        target = "answers" if isinstance(rows[0], dict) else ["answer", "start"]
        own = {"source": source, "inputs": ["question", "context"], "target": target}
        own |= {"split": {"validation": 0.25, "test": 0.25, "copies": "leave"}}
        own |= {} if transforms is None else {"transforms": transforms}
        return small_config(
            model={"layers": layers or [encoder]},
            data=own | data,
            task={"type": "span"} | (task or {}),
            train={"epochs": 2, "batch_size": 6} | (train or {}),
            freeze=freeze,
            cache=cache,
        )

    return make


def _texts(codes):
    """Return the texts of characters that are given as numbers."""
    return "".join("|" if code == -2 else chr(code) for code in codes if code != -1)


def _all(samples):
    """Return all samples as one batch."""
    return samples.fetch(torch.arange(len(samples)))


def _said(batch, number):
    """Return text, target in it, and right answers of a sample."""
    text = _texts(batch.columns["characters"][number].tolist())
    first, last = batch.target[number].tolist()
    if first <= 0:
        said = first
    else:
        start = batch.columns["token starts"][number, first]
        said = text[start : batch.columns["token ends"][number, last]]
    return text, said, _texts(batch.columns["right answers"][number].tolist())


def test_answers_are_found_in_the_tokens(config):
    batch = _all(build_parts(config()).data.train)
    found = {_said(batch, number) for number in range(len(batch))}
    assert found == {(text, answer, f"{answer}|") for _, text, answer, _ in ROWS}


def test_texts_are_learnt_evaluated_and_asked(config, tmp_path, call):
    build_trainer(config(), tmp_path / "run").fit(quiet=True)
    assert evaluate_run(tmp_path / "run", "test").keys() == {"loss", "f1", "exact_match"}
    shown = call("predict", tmp_path / "run", tmp_path / "data.csv")
    rows = [json.loads(line) for line in shown.out.splitlines()]
    assert len(rows) == 24
    for row, (_, context, *_) in zip(rows, ROWS * 6, strict=True):
        # The input's column `answer` stands beside the prediction.
        assert row["answer"] == context[row["start"] : row["end"]] != ""
        assert 0 < row["probability"] < 1
        assert row["input/answer"] in context
    call("predict", tmp_path / "run", tmp_path / "data.csv", "--out", tmp_path / "said.csv")
    with (tmp_path / "said.csv").open() as file:
        assert [row["answer"] for row in csv.DictReader(file)] == [row["answer"] for row in rows]


def test_a_long_text_is_cut_into_windows_that_overlap(config):
    data = build_parts(config(LONG_ROWS, transforms=SHORT, split=None)).data
    batch = _all(data.train)
    found = [_said(batch, number) for number in range(len(batch))]
    rows = batch.columns["window of"].tolist()
    assert rows == sorted(rows)
    of_first = [found[at][:2] for at in range(len(found)) if rows[at] == 0]
    assert of_first == [
        ("the good film yes no the", 0),
        ("no the bad film no yes", "bad film"),
        ("no yes the yes good no", 0),
        ("good no film the bad yes", 0),
    ]
    assert {found[at][2] for at in range(len(found)) if rows[at] == 0} == {"bad film|"}
    # A longer question leaves less room.
    assert max(len(found[at][0].split()) for at in range(len(found)) if rows[at] == 1) == 5
    assert data.facts.sizes == {"train": len(found)}
    assert "12 of 24 texts of train are longer than max_length" in " ".join(data.notes_on_all)


def test_an_answer_that_is_whole_in_no_window_is_told_and_not_learnt(config):
    rows = [("good", LONG, LONG[:30], 0), *ROWS[:1]]
    data = build_parts(config(rows, transforms=SHORT, split=None)).data
    batch = _all(data.train)
    is_lost = batch.target[:, 0] == -100
    assert (~is_lost).sum() == 6  # the short text
    assert "6 of 12 answers of train are whole in no window" in " ".join(data.notes_on_all)


def test_all_windows_of_a_text_give_one_answer(config, tmp_path, call):
    made = config(LONG_ROWS, transforms=SHORT)
    build_trainer(made, tmp_path / "run").fit(quiet=True)
    shown = call("predict", tmp_path / "run", tmp_path / "data.csv")
    rows = [json.loads(line) for line in shown.out.splitlines()]
    assert len(rows) == 24
    predictor = load_predictor(tmp_path / "run")
    given = {
        name: [row[at] for row in LONG_ROWS] for at, name in enumerate(["question", "context"])
    }
    windows = predictor.preparing.cutter.windows(given, str)
    assert len(windows) > len(LONG_ROWS)
    for number, row in enumerate(rows[: len(LONG_ROWS)]):
        own = [window for window in windows if window.row == number]
        parts = [given["context"][number][start:end] for _, start, end in own]
        # Each window by itself is short enough to be a text of its own.
        asked = {"question": [given["question"][number]] * len(own), "context": parts}
        said = max(predictor(asked), key=lambda one: one.probability)
        assert row["probability"] == pytest.approx(said.probability, rel=1e-5)
        assert row["answer"] == said.answer
    found = evaluate_run(tmp_path / "run", "test")
    assert 0 <= found["exact_match"] <= found["f1"] <= 1


def test_pictures_show_the_question_that_the_window_belongs_to(config, tmp_path, monkeypatch):
    shown, draw = [], seen_answers.draw_samples

    def noted(samples, heading):
        shown.extend(samples)
        return draw(samples, heading)

    monkeypatch.setattr(seen_answers, "draw_samples", noted)
    made = config(LONG_ROWS, transforms=SHORT, train={"epochs": 1})
    trainer = build_trainer(made, tmp_path / "run")
    trainer.fit(quiet=True)
    asked = {(question, right) for question, _, right, _ in LONG_ROWS}
    assert shown
    for sample in shown:
        question, _, text = " ".join(sample.words).partition(" | ")
        assert (question, sample.so) in asked
        assert any(text in context for _, context, *_ in LONG_ROWS)


def test_stride_is_the_least_overlap(config):
    for stride, count in ((0, 3), (1, 4), (4, 7)):
        made = config(LONG_ROWS[:1], {"stride": stride}, SHORT, split=None, times=1)
        assert len(build_parts(made).data.train) == count


def test_a_question_that_leaves_no_room_is_named_with_its_row(config):
    rows = [*ROWS, ("good " * 9, "the film", "film", 4)]
    with pytest.raises(DataError, match=r"'question' has 9 tokens in row 5 .* room for 0 tokens"):
        build_parts(config(rows, transforms=SHORT, split=None))
    with pytest.raises(DataError, match=r"leaves room for 6 tokens .* windows need 7"):
        build_parts(config(LONG_ROWS[:1], {"stride": 6}, SHORT))
    with pytest.raises(DataError, match="asks nothing in row 5"):
        build_parts(config([*ROWS, (" ", "the film", "film", 4)], split=None))


SQUAD = [
    {
        "question": question,
        "context": context,
        "answers": {"text": [answer, answer[:3]], "answer_start": [start, start]},
    }
    for question, context, answer, start in ROWS
]


def test_the_columns_of_squad_are_read_with_all_answers(config, tmp_path):
    batch = _all(build_parts(config(SQUAD)).data.train)
    found = {_said(batch, number)[1:] for number in range(len(batch))}
    assert found == {
        ("good", "good|goo|"),
        ("bad film", "bad film|bad|"),
        ("film", "film|fil|"),
        ("the", "the|"),
    }
    listed = [row | {"answers": [{"text": "the", "answer_start": 0}]} for row in SQUAD[:1]]
    listed[0]["context"] = "the film"
    assert _said(_all(build_parts(config(listed, split=None)).data.train), 0)[1] == "the"


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (
            ("film", "the film", "film", 3),
            "'context' has ' fil' at character 3 in row 5 .*, and the answer is 'film'",
        ),
        (("film", "the film", "film", -4), "'context' has '' at character -4 in row 5"),
        (("film", "the film", "", 0), "'answer, start' has no answer in row 5"),
        (("film", "the film", "film", "four"), "holds 'film' and 'four' in row 5"),
        (("film", "the film", "film", 1.5), "holds 'film' and '1.5' in row 5"),
    ],
    ids=["elsewhere", "before", "none", "no place", "no whole place"],
)
def test_an_answer_that_is_not_there_is_named_with_its_row(config, row, fault):
    with pytest.raises(DataError, match=fault):
        build_parts(config(rows=[*ROWS, row]))


@pytest.mark.parametrize("cell", ["good", ["good"], {"text": ["good"]}, 4], ids=repr)
def test_a_cell_that_is_no_answer_is_named_with_its_row(config, cell):
    with pytest.raises(DataError, match=r"in row 5 .*, which is no answer"):
        build_parts(config([*SQUAD, SQUAD[0] | {"answers": cell}]))


def test_a_question_without_an_answer_learns_the_first_token(config, tmp_path, call):
    none = {"question": "bad", "context": LONG, "answers": {"text": [], "answer_start": []}}
    made = config([*SQUAD, none], {"may_be_unanswered": True}, SHORT)
    batch = _all(build_parts(made).data.train)
    is_none = (batch.columns["right answers"] == -1).all(1)
    assert is_none.any()
    assert not batch.target[is_none].any()
    build_trainer(made, tmp_path / "run").fit(quiet=True)
    shown = call("predict", tmp_path / "run", tmp_path / "data.jsonl")
    rows = [json.loads(line) for line in shown.out.splitlines()]
    assert all({"answer", "start", "end", "probability"} <= row.keys() for row in rows)


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ({"inputs": ["context"]}, "answers need two inputs"),
        ({"inputs": None}, "answers need two inputs"),
        ({"target": ["answer", "begin"]}, "no column 'begin'"),
        ({"target": ["answer", "start", "question"]}, "one or two target columns"),
    ],
)
def test_columns_that_do_not_make_answers_are_refused(config, keys, fault):
    with pytest.raises(FinetuneError, match=fault):
        build_parts(config(**keys))


def test_a_network_without_logits_of_tokens_is_told_what_it_lacks(config, bert):
    layers = [{"name": "net", "type": "transformers", "path": bert}]
    with pytest.raises(FinetuneError, match="two logits for each token"):
        build_parts(config(layers=layers))


def test_losses_that_take_no_answers_are_refused():
    with pytest.raises(ValueError, match="loss 'mse' takes no answers"):
        SpanTask.model_validate({"type": "span", "losses": {"type": "mse"}})
    loss = {"type": "cross_entropy", "label_smoothing": 0.1}
    with pytest.raises(ValueError, match="label_smoothing"):
        SpanTask.model_validate({"type": "span", "losses": loss})


def _weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def _trained(config, run):
    trainer = build_trainer(config, run)
    trainer.fit(quiet=True)
    return trainer


def _equal(first, second):
    return [name for name, value in first.items() if not torch.equal(value, second[name])]


@pytest.fixture
def head(bert):
    """Layers of a head with two logits for each token, behind a network."""
    return [
        {"name": "encoder", "type": "transformers", "path": bert, "output": "hidden"},
        {"name": "head", "type": "Linear", "out_features": 2},
    ]


def test_micro_batches_change_the_weights_by_rounding_alone(config, head, tmp_path):
    ends = []
    for size in (1, 3, 6):
        train = {"steps": 3, "epochs": None, "micro_batch": size}
        made = config(LONG_ROWS, None, SHORT, head, train, freeze=["encoder"])
        ends.append(_weights(_trained(made, tmp_path / f"run {size}")))
    for one in ends[:-1]:
        for name, value in one.items():
            torch.testing.assert_close(value, ends[-1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_frozen_network_is_proven_and_stored_without_a_change_of_a_bit(
    config, head, tmp_path, always
):
    rows = [(question, context, "", "") for question, context, *_ in ROWS]
    ends = []
    for cache in ("off", "auto"):
        made = config(
            [*LONG_ROWS, *rows],
            {"may_be_unanswered": True},
            SHORT,
            head,
            {"epochs": 4},
            times=20,
            freeze=["encoder"],
            cache=cache,
        )
        weights = _weights(_trained(made, tmp_path / cache))
        summary = RunFolder.of(tmp_path / cache, made).read_json("summary.json")
        assert summary["proof_intact"]
        ends.append((weights, summary))
    assert _equal(ends[0][0], ends[1][0]) == []
    assert ends[0][1]["metrics"] == ends[1][1]["metrics"]
    assert ends[1][1]["activation_cache"]["answered"] > 0


@pytest.mark.slow
def test_a_run_goes_on_exactly_from_its_steps(config, tmp_path):
    saves = {"checkpoint": {"every": {"steps": 1}, "keep_last": 100}}
    made = config(LONG_ROWS, None, SHORT, train={"steps": 6, "epochs": None} | saves)
    expected = _weights(_trained(made, tmp_path / "unbroken"))
    for step in (1, 3, 5):
        later = {f"step-{number:08d}" for number in range(step + 1, 7)} | {"summary.json"}
        run = tmp_path / f"from {step}"
        shutil.copytree(
            tmp_path / "unbroken", run, ignore=lambda _, names, out=later: out & set(names)
        )
        trainer = build_trainer(made, run)
        assert trainer.progress.step == step
        trainer.fit(quiet=True)
        assert _equal(expected, _weights(trainer)) == []


def test_a_file_of_questions_is_evaluated_with_one_answer_a_row(config, tmp_path, call):
    made = config(LONG_ROWS, None, SHORT)
    _trained(made, tmp_path / "run")
    shown = call("eval", tmp_path / "run", tmp_path / "data.csv", "--json")
    figures = json.loads(shown.out)["metrics"]
    said = call("predict", tmp_path / "run", tmp_path / "data.csv")
    rows = [json.loads(line) for line in said.out.splitlines()]
    scores = [score_of(row["answer"], [row["input/answer"]]) for row in rows]
    assert figures["f1"] == pytest.approx(sum(one.f1 for one in scores) / 24)
    assert figures["exact_match"] == pytest.approx(sum(one.exact_match for one in scores) / 24)
    assert "12 of 24 texts are longer than max_length" in shown.err


def test_a_row_that_cannot_be_asked_is_passed_over_once(config, tmp_path, command_line):
    _trained(config(LONG_ROWS, None, SHORT), tmp_path / "run")
    (tmp_path / "asked.csv").write_text(
        f"question,context\ngood,{LONG}\n{'good ' * 9},{LONG}\nbad,the bad film\n"
    )
    shown = command_line("predict", tmp_path / "run", tmp_path / "asked.csv")
    assert (shown.code, "'question' has 9 tokens in row 2" in shown.err) == (2, True)
    shown = command_line("predict", tmp_path / "run", tmp_path / "asked.csv", "--on-error", "skip")
    rows = [json.loads(line) for line in shown.out.splitlines()]
    assert [row["input/context"] if "input/context" in row else row["context"] for row in rows] == [
        LONG,
        "the bad film",
    ]
    assert shown.err.count("passed over:") == 1
    assert "1 of 3 samples were passed over" in shown.err


def test_embeddings_of_texts_in_windows_are_refused(config, tmp_path, command_line):
    _trained(config(train={"steps": 1, "epochs": None}), tmp_path / "run")
    shown = command_line("predict", tmp_path / "run", tmp_path / "data.csv", "--embeddings", "net")
    assert (shown.code, "several windows" in shown.err) == (2, True)
