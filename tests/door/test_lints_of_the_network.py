"""A network that does not suit its task, its data or its selectors is told by plan and train."""

import csv
import sys

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    PreTrainedTokenizerFast,
)

from finetune.cli.plans import preview
from finetune.errors import FinetuneError, ModelError, SelectorError
from finetune.train.build import build_parts
from finetune.train.wire import build_trainer

OWN = """
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

class Ends(nn.Module):
    def __init__(self, by, classes=3):
        super().__init__()
        self.by, self.map, self.soft = by, nn.LazyLinear(classes), nn.Softmax(1)
        self.register_buffer("calls", torch.zeros(()))
        self.scale, self.head = nn.Parameter(torch.zeros(classes)), nn.Linear(classes, classes)
    def forward(self, x):
        self.calls += 1
        x = self.map(x)
        if self.by == "module": return self.soft(x)
        if self.by == "function": return F.softmax(x, dim=1)
        if self.by == "hand": return x.exp() / x.exp().sum(1, keepdim=True)
        if self.by == "copied": return torch.sigmoid(x).clone().view(len(x), -1)
        if self.by == "sigmoid": return 1 / (1 + torch.exp(-x))
        if self.by == "logistic": return x.exp() / (x.exp() + 1)
        if self.by == "clamped": return torch.sigmoid(x).clamp(1e-6, 1 - 1e-6)
        if self.by == "by tanh": return (torch.tanh(x) + 1) * 0.5
        if self.by == "cut": return x.clamp(0, 1)
        if self.by == "complement": return 1 - torch.sigmoid(x) ** 2
        if self.by == "scaled": return x.abs().clamp_min(0) / 99 * self.scale.exp()
        if self.by == "behind": return self.head(1 / (1 + torch.exp(-x))).abs() / 99
        if self.by == "small": return x.abs() / 99
        if self.by == "inside": return x * self.soft(x) - 0.5
        return x

class Reader(nn.Module):
    def __init__(self, by):
        super().__init__()
        self.by, self.table = by, nn.Embedding(20, 6)
        self.rnn = nn.GRU(6, 6, batch_first=True)
        self.conv = nn.Conv1d(6, 6, 3, padding=1)
        self.attention = nn.MultiheadAttention(6, 1, batch_first=True)
        self.head = nn.Linear(6, 2)
    def forward(self, input_ids, attention_mask):
        x, mask = self.table(input_ids), attention_mask
        lengths = mask.sum(1)
        if self.by == "last state": x = self.rnn(x)[1][0]
        if self.by == "packed":
            packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
            x = self.rnn(packed)[1][0]
        if self.by == "convolution":
            x = self.conv(x.mT).mT
            x = (x * mask[..., None]).sum(1) / lengths[:, None]
        if self.by == "masked convolution":
            x = self.conv((x * mask[..., None]).mT).mT
            x = (x * mask[..., None]).sum(1) / lengths[:, None]
        if self.by == "plain mean": x = x.mean(1)
        if self.by == "attention": x = self.attention(x, x, x)[0][:, 0]
        if self.by == "masked attention":
            x = self.attention(x, x, x, key_padding_mask=mask == 0)[0][:, 0]
        return self.head(x)

class First(nn.Module):
    def forward(self, x): return x[:, 0]

class Mean(nn.Module):
    def forward(self, x): return x.mean(1)

class Looped(nn.Module):
    def __init__(self, by):
        super().__init__()
        self.by, self.first = by, nn.LazyLinear(6)
        self.block = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
        self.head = nn.Linear(6, 3)
    def forward(self, x):
        x = self.first(x)
        if self.by == "twins": return self.head(self.block(x) - self.block(-x))
        for _ in range(3):
            made = self.block(x)
            if self.by == "strict": assert made.abs().sum() > 0
            x = x + made
        return self.head(x)

def near(outputs, batch):
    return ((outputs - outputs.mean(0)) ** 2).mean(1)

def fussy(outputs, batch):
    if len(outputs) == 4 and not outputs.requires_grad:
        raise ValueError("wants 3 samples\\nor more")
    return (outputs ** 2).mean(1)

def mean(outputs, batch):
    return (outputs ** 2).mean()

def level(outputs, batch):
    return outputs.mean(1) - outputs.mean()

def counted(outputs, batch):
    return (outputs ** 2).sum(), len(batch)

def alone(outputs, batch):
    return (outputs ** 2).mean(1)

class Contrast:
    whole_window = True
    def __call__(self, outputs, batch):
        self.seen = getattr(self, "seen", []) + [len(outputs)]
        return F.cross_entropy(outputs @ outputs.T, torch.arange(len(outputs)))

def make(name):
    return {"level": level, "counted": counted, "near": near, "alone": alone,
            "contrast": Contrast(), "mean": mean, "fussy": fussy}[name]

class Own:
    metrics = {}
    def __init__(self, whole):
        self.whole_window = whole
    def loss(self, outputs, batch):
        return near(outputs, batch)
"""
TRUST = ("door_lints",)
WORDS = ["the", "good", "bad", "film"]
CLASSIFY = {"type": "classification"}
HEAD = {"name": "head", "type": "Linear", "out_features": "classes"}


@pytest.fixture(autouse=True)
def package(tmp_path_factory, monkeypatch):
    """The user's own package."""
    folder = tmp_path_factory.mktemp("code")
    (folder / "door_lints.py").write_text(OWN)
    monkeypatch.syspath_prepend(folder)
    yield
    sys.modules.pop("door_lints", None)


def pretrained(folder, made):
    """Save a tiny network with a tokenizer of words."""
    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokens = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]"}
    names = ["input_ids", "attention_mask"]
    PreTrainedTokenizerFast(
        tokenizer_object=words, model_input_names=names, **tokens
    ).save_pretrained(folder)
    made.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 1}
    settings = BertConfig(vocab_size=8, intermediate_size=8, max_position_embeddings=32, **sizes)
    return pretrained(tmp_path_factory.mktemp("bert"), BertModel(settings))


@pytest.fixture(scope="module")
def gpt(tmp_path_factory):
    settings = GPT2Config(vocab_size=8, n_positions=32, n_embd=8, n_layer=2, n_head=1)
    return pretrained(tmp_path_factory.mktemp("gpt"), GPT2Model(settings))


@pytest.fixture(scope="module")
def albert(tmp_path_factory):
    sizes = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 1}
    sizes |= {"embedding_size": 8, "intermediate_size": 8, "max_position_embeddings": 32}
    model = AlbertModel(AlbertConfig(vocab_size=8, **sizes))
    return pretrained(tmp_path_factory.mktemp("albert"), model)


@pytest.fixture
def numbers(tmp_path):
    """A table of numbers, three classes or any of three labels."""
    path = tmp_path / "numbers.csv"
    lines = (f"{i / 12},{i % 5},{'abc'[i % 3]},{'a' if i % 2 else 'b,c'}\n" for i in range(12))
    path.write_text("u,v,label,labels\n" + "".join(line.replace("b,c", '"b,c"') for line in lines))
    data = {"source": {"type": "csv", "path": str(path)}, "inputs": ["u", "v"]}
    return data | {"target": "label", "transforms": [{"type": "stack"}]}


@pytest.fixture
def texts(tmp_path):
    """A table of texts of one to eight words."""
    path = tmp_path / "texts.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for i in range(12):
            words = [WORDS[(i + n) % 4] for n in range(1 + 7 * (i % 2))]
            writer.writerow([" ".join(words), "xy"[i % 2]])
    return {"source": {"type": "csv", "path": str(path)}, "inputs": ["text"], "target": "label"}


@pytest.fixture
def lints(small_config):
    """Return what plan notes, a text each: place, message, hint."""

    def found(*layers, **sections):
        trust = sections.pop("trust", TRUST)
        config = small_config(trust=trust, model={"layers": list(layers)}, **sections)
        return [f"{lint.key}: {lint.message}; {lint.hint}" for lint in preview(config).lints]

    return found


ENDS = [
    ([HEAD, {"name": "end", "type": "Softmax", "dim": 1}], "'end' (Softmax) gives probabilities"),
    ([HEAD, {"name": "end", "type": "Sigmoid"}], "'end' (Sigmoid) gives values between 0 and 1"),
    ([HEAD, {"name": "end", "type": "Softsign"}], "'end' (Softsign) gives values between -1 and"),
    ([HEAD, {"name": "end", "type": "Hardtanh"}], "'end' (Hardtanh) gives values that are cut to"),
    ([HEAD, {"name": "end", "type": "ReLU6"}], "'end' (ReLU6) gives values that are cut to a"),
    (
        [HEAD, {"name": "end", "type": "LogSoftmax", "dim": 1}],
        "'end' (LogSoftmax) gives logarithms of probabilities",
    ),
    ([HEAD, {"name": "end", "type": "ReLU"}], "'end' (ReLU) gives values that are never below 0"),
    (
        [
            HEAD,
            {"name": "end", "type": "Softmax", "dim": 1},
            {"type": "Dropout", "p": 0.5},
            {"type": "Flatten"},
        ],
        "'end' (Softmax) gives probabilities",
    ),
]
ENDS += [
    (
        [{"name": "net", "type": "import", "path": "door_lints:Ends", "args": {"by": by}}],
        f"{who} gives {what}",
    )
    for by, who, what in [
        ("module", "'net.soft' (Softmax)", "probabilities"),
        ("function", "'net' (Ends)", "probabilities"),
        ("hand", "'net' (Ends)", "probabilities"),
        ("copied", "'net' (Ends)", "values between 0 and 1, by a sigmoid"),
        *(
            (by, "'net' (Ends)", "values between 0 and 1 for all of 4 samples tried, as a sigmoid")
            for by in ("sigmoid", "logistic", "clamped", "by tanh", "cut", "complement")
        ),
    ]
]


@pytest.mark.parametrize(
    ("layers", "told"), ENDS, ids=[f"{n} {told}" for n, (_, told) in enumerate(ENDS)]
)
def test_a_network_that_gives_no_logits_is_told_where_the_loss_takes_them(
    lints, numbers, layers, told
):
    [line] = lints(*layers, data=numbers, task=CLASSIFY)
    assert told in line
    assert "loss 'cross_entropy' takes logits" in line


def test_what_a_sigmoid_does_to_labels_is_told(lints, numbers):
    task = {"type": "multilabel"}
    layers = [HEAD, {"name": "end", "type": "Sigmoid"}]
    [line] = lints(*layers, data=numbers | {"target": "labels"}, task=task)
    assert "loss 'binary_cross_entropy' takes logits: every label has a probability" in line


def test_logits_numbers_and_losses_of_ones_own_are_not_told(lints, numbers):
    softmax = {"name": "end", "type": "Softmax", "dim": 1}
    own = {"type": "import", "path": "door_lints:make", "args": {"name": "alone"}}
    assert lints(HEAD, data=numbers, task=CLASSIFY) == []
    # Regression takes no logits: only targets that a softmax cannot give are told.
    told = lints({"type": "Linear", "out_features": 3}, softmax)
    assert len(told) == 1
    assert "36 of 40 samples looked at have a target beyond" in told[0]
    logs = {"type": "LogSoftmax", "dim": 1}  # what NLL takes
    assert lints(HEAD, logs, data=numbers, task=CLASSIFY | {"losses": own}) == []
    for by in ("inside", "scaled", "behind", "small"):
        net = {"type": "import", "path": "door_lints:Ends", "args": {"by": by}}
        assert lints(net, data=numbers, task=CLASSIFY) == [], by


def test_a_loss_of_ones_own_does_not_hide_that_predictions_are_read_from_logits(lints, numbers):
    own = {"type": "import", "path": "door_lints:make", "args": {"name": "alone"}}
    softmax = {"name": "end", "type": "Softmax", "dim": 1}
    [line] = lints(HEAD, softmax, data=numbers, task=CLASSIFY | {"losses": own})
    assert "predictions are read from logits" in line


def test_train_says_what_plan_notes_and_leaves_the_network_as_it_was(
    small_config, tmp_path, numbers, heard
):
    net = {"name": "net", "type": "import", "path": "door_lints:Ends", "args": {"by": "module"}}
    sections = {"model": {"layers": [net]}, "data": numbers, "task": CLASSIFY}
    config = small_config(trust=TRUST, **sections)
    before = build_parts(config).model.state_dict()
    torch.manual_seed(3)
    trainer = build_trainer(config, tmp_path / "run", tracker=heard)
    assert any(
        line.startswith("network: layer 'net.soft' (Softmax) gives") and "end the network" in line
        for line in heard.said
    )
    assert all(torch.equal(before[name], t) for name, t in trainer.model.state_dict().items())
    assert trainer.model.training
    state = torch.get_rng_state()
    torch.manual_seed(3)
    assert torch.equal(state, torch.get_rng_state())


PADDED = [
    ("last state", "layer 'net.rnn' (GRU) sees padding"),
    ("convolution", "layer 'net.conv' (Conv1d) sees padding"),
    ("plain mean", "layer 'net.head' (Linear) sees padding"),
    ("attention", "layer 'net.attention' (MultiheadAttention) sees padding"),
    ("packed", None),
    ("masked convolution", None),
    ("masked attention", None),
]


@pytest.mark.parametrize(("by", "told"), PADDED, ids=[by for by, _ in PADDED])
def test_a_layer_of_ones_own_that_sees_padding_is_told(lints, texts, bert, by, told):
    net = {"name": "net", "type": "import", "path": "door_lints:Reader", "args": {"by": by}}
    for padding in ("longest", "max_length"):
        step = {"type": "tokenize", "tokenizer": bert, "max_length": 10, "padding": padding}
        found = lints(net, data=texts | {"transforms": [step]}, task=CLASSIFY)
        assert [told in line for line in found] == ([] if told is None else [True])


def test_a_declared_lstm_behind_hidden_states_sees_padding(lints, texts, bert):
    layers = [
        {"name": "encoder", "type": "transformers", "path": bert, "output": "hidden"},
        {"name": "both", "type": "LSTM", "hidden_size": 1, "batch_first": True}
        | {"bidirectional": True},
        {"name": "first", "type": "import", "path": "door_lints:First"},
    ]
    [line] = lints(*layers, data=texts, task=CLASSIFY)
    assert "layer 'both' (LSTM) sees padding: the output for a sample of 3 tokens" in line


def test_padding_that_only_a_second_branch_sees_is_told(lints, texts, bert):
    branch = [
        {"name": "encoder", "type": "transformers", "path": bert, "output": "mean"},
        {"name": "words", "type": "Embedding", "num_embeddings": 8, "embedding_dim": 4}
        | {"inputs": ["input_ids"]},
        {"name": "pool", "type": "import", "path": "door_lints:Mean"},
        {"name": "cat", "type": "concat", "inputs": ["encoder", "pool"]},
        HEAD,
    ]
    [line] = lints(*branch, data=texts, task=CLASSIFY)
    assert "layer 'pool' (Mean) sees padding" in line


def transformer(path, output):
    return {"name": "encoder", "type": "transformers", "path": path, "output": output}


def test_the_first_token_of_a_decoder_is_told_and_that_of_an_encoder_is_not(
    lints, texts, bert, gpt
):
    [line] = lints(transformer(gpt, "cls"), HEAD, data=texts, task=CLASSIFY)
    assert "('model', 'layers', 0, 'output'): output: cls takes the first token of layer " in line
    assert "'encoder' (GPT2Model), which sees no token after it" in line
    assert lints(transformer(gpt, "mean"), HEAD, data=texts, task=CLASSIFY) == []
    assert lints(transformer(bert, "cls"), HEAD, data=texts, task=CLASSIFY) == []


BY_DEPTH = [
    {"freeze": [{"depth": "0:1"}]},
    {"freeze": {"method": "top_k", "blocks": 1}},
    {"freeze": {"method": "lisa", "blocks": 1, "period": 1}},
    {"optimizer": {"type": "SGD", "lr": 0.1, "layer_decay": 0.9}},
]


@pytest.mark.parametrize("by_depth", BY_DEPTH, ids=["selector", "method", "policy", "decay"])
def test_depth_on_layers_that_are_shared_is_told(lints, texts, albert, bert, by_depth):
    layers = transformer(albert, "mean"), HEAD
    [line] = lints(*layers, data=texts, task=CLASSIFY, **by_depth)
    assert "'encoder.encoder.albert_layer_groups.0' (AlbertLayerGroup) runs 3 times" in line
    assert lints(*layers, data=texts, task=CLASSIFY, freeze=["encoder.embeddings"]) == []
    assert lints(transformer(bert, "mean"), HEAD, data=texts, task=CLASSIFY, **by_depth) == []


def test_a_block_in_a_loop_is_told_and_one_for_two_inputs_is_not(lints):
    def net(by):
        return {"name": "net", "type": "import", "path": "door_lints:Looped", "args": {"by": by}}

    [line] = lints(net("loop"), freeze=[{"depth": 0}])
    assert "layer 'net.block' (Sequential) runs 3 times in a row with the same weights" in line
    assert lints(net("twins"), freeze=[{"depth": 0}]) == []


def test_a_network_that_cannot_be_tried_out_is_told_and_not_refused(lints):
    net = {"name": "net", "type": "import", "path": "door_lints:Looped"}
    [line] = lints(net | {"args": {"by": "strict"}}, freeze=[{"depth": 0}])
    assert "not looked at: whether blocks share their weights; the network, run otherwise" in line
    assert "raises AssertionError" in line


def test_a_loss_that_refuses_fewer_samples_is_told_in_one_line(lints):
    own = {"type": "import", "path": "door_lints:make", "args": {"name": "fussy"}}
    task = {"type": "regression", "losses": own}
    [line] = lints({"type": "Linear", "out_features": 3}, task=task)
    assert "not looked at: whether a loss compares samples" in line
    assert "loss 'import' cannot take (4, 3) with targets (4, 3): wants 3 samples; " in line
    assert "\n" not in line


def phases(*selectors, **more):
    return {"phases": [{"name": "all", "freeze": list(selectors), **more}]}


@pytest.mark.parametrize(
    ("freeze", "told"),
    [
        (phases({"depth": "0:9"}), "{depth: 0:9} goes beyond the 2 blocks of the network, 0 to 1"),
        (phases({"depth": "-7:"}), "it takes 2 of them; write the depth"),
        (phases("encoder", {"not": {"depth": "1:5"}}), "{depth: 1:5} goes beyond"),
        ({"method": "gradual", "blocks_per_phase": 5}, "more than the 2 blocks of the network"),
    ],
    ids=["too long", "from before the first", "taken out", "method"],
)
def test_depth_beyond_the_blocks_is_told(lints, texts, bert, freeze, told):
    train = {"epochs": 4, "batch_size": 8}
    layers = transformer(bert, "mean"), HEAD
    found = lints(*layers, data=texts, task=CLASSIFY, freeze=freeze, train=train)
    assert any(told in line for line in found)


GLOBS = [
    ("encoder.encoder.layer.[01]", "'encoder.encoder.layer.[01].*' takes the 32 below modules"),
    ("*.attention", "'*.attention.*' takes the 20 below modules"),
    ("hea?", "'hea?.*' takes the 2 below modules"),
]


@pytest.mark.parametrize(("glob", "told"), GLOBS, ids=[glob for glob, _ in GLOBS])
def test_a_glob_that_names_modules_is_refused_with_the_glob_that_takes_them(
    lints, texts, bert, glob, told
):
    with pytest.raises(SelectorError) as error:
        lints(transformer(bert, "mean"), HEAD, data=texts, task=CLASSIFY, freeze=[glob])
    assert told in str(error.value)


def test_a_glob_that_takes_parameters_and_stops_at_modules_is_told(lints):
    first = {"name": "body_bias", "type": "Linear", "out_features": 4}
    second = {"name": "body", "type": "Linear", "out_features": 4}
    last = {"name": "head", "type": "Linear", "out_features": 3}
    [line] = lints(first, second, last, freeze=["*bias"])
    assert "'*bias' takes 3 parameters, and none of the 1 below modules of such names, as " in line
    assert "'*bias.*' takes these" in line
    rate = phases("head", lr={"*bias": 0.1})
    assert any("'*bias.*' takes these" in line for line in lints(first, second, last, freeze=rate))
    assert lints(first, second, last, freeze=["*bias", "body_bias"]) == []


def own(name):
    return {"type": "import", "path": "door_lints:make", "args": {"name": name}}


def regress(name):
    return {"type": "regression", "losses": own(name)}


NUMBERS = {"name": "head", "type": "Linear", "out_features": 3}


def test_a_loss_that_compares_samples_unsaid_is_told(lints):
    [line] = lints(NUMBERS, task=regress("near"))
    assert "loss 'import' of a sample changes with the others of its pass" in line
    assert "whole_window = True" in line
    # Its sum over the samples is 0 in any company.
    [line] = lints(NUMBERS, task=regress("level"))
    assert "changes with the others of its pass" in line
    assert lints(NUMBERS, task=regress("alone")) == []
    assert lints(NUMBERS, task=regress("counted")) == []
    assert lints(NUMBERS, task=regress("contrast")) == []
    task = {"type": "import", "path": "door_lints:Own", "args": {"whole": False}}
    assert [line.startswith("('task', 'path')") for line in lints(NUMBERS, task=task)] == [True]
    assert lints(NUMBERS, task=task | {"args": {"whole": True}}) == []


@pytest.mark.parametrize(
    "task",
    [regress("contrast"), {"type": "import", "path": "door_lints:Own", "args": {"whole": True}}],
    ids=["loss", "task"],
)
def test_micro_batches_are_refused_where_a_loss_needs_whole_windows(small_run, task):
    train = {"steps": 2, "batch_size": 8, "micro_batch": 4}
    with pytest.raises(FinetuneError, match="micro_batch 4 cuts windows of 8 samples") as error:
        small_run(trust=TRUST, task=task, train=train)
    assert error.value.key == ("train", "micro_batch")
    small_run(trust=TRUST, task=task, train=train | {"micro_batch": 8}).fit()


def test_a_loss_of_a_whole_window_is_trained_as_the_one_number_that_it_is(small_run):
    torch.use_deterministic_algorithms(True)
    trainer = small_run(trust=TRUST, task=regress("contrast"), train={"steps": 1, "batch_size": 8})
    rows = torch.arange(8)
    batch = trainer.splits.train.fetch(rows)
    outputs = trainer.model(**batch.inputs)
    whole = torch.nn.functional.cross_entropy(outputs @ outputs.T, rows)
    assert torch.equal(trainer.stepper.task.loss(outputs, batch), whole)
    torch.use_deterministic_algorithms(False)


def test_a_window_that_memory_does_not_hold_is_not_cut_for_such_a_loss(small_run, monkeypatch):
    trainer = small_run(trust=TRUST, task=regress("contrast"), train={"steps": 2, "batch_size": 8})
    head = trainer.model.get_submodule("head")

    def full(module, args):
        if torch.is_grad_enabled() and len(args[0]) > 4:
            raise torch.OutOfMemoryError("out of memory")

    head.register_forward_pre_hook(full)
    with pytest.raises(FinetuneError) as error:
        trainer.fit()
    assert "memory does not hold a window of 8 samples, which loss 'import' needs whole" in str(
        error.value
    )
    assert error.value.key == ("train", "batch_size")


def test_one_number_from_a_loss_that_has_not_said_so_is_refused_with_the_way_out(lints):
    with pytest.raises(ModelError, match="needs one number per sample") as error:
        lints(NUMBERS, task=regress("mean"))
    assert "whole_window = True" in str(error.value)


def linear(name, *inputs, width=4):
    layer = {"name": name, "type": "Linear", "out_features": width}
    return layer | ({"inputs": list(inputs)} if inputs else {})


def test_a_layer_whose_output_goes_nowhere_is_told(lints):
    [line] = lints(linear("body"), linear("lost", "body"), linear("head", "body", width=3))
    assert line.startswith("('model', 'layers', 1): layer 'lost': no layer takes its output")
    assert lints(linear("body"), linear("head", width=3)) == []


def test_layers_that_a_second_branch_reads_are_not_told(lints):
    first, other = linear("first"), linear("other", "first")
    added = {"name": "sum", "type": "add", "inputs": ["first", "other"]}
    assert lints(first, other, added, linear("head", width=3)) == []
