"""What several tests at the door share: calls of the command line, faults of a config."""

import json

import pytest

from finetune.config.loader import load_config
from finetune.errors import FinetuneError


@pytest.fixture
def call(command_line):
    """Call the command line, which must end well; return what a shell would show."""

    def run(*arguments):
        shown = command_line(*arguments)
        assert not shown.code, shown.err
        return shown

    return run


@pytest.fixture
def predict(call, tmp_path):
    """Call `predict` on the run in `run`; return labels and what was told."""

    def labels(*arguments):
        shown = call("predict", tmp_path / "run", *arguments)
        return [json.loads(line)["label"] for line in shown.out.splitlines()], shown.err

    return labels


@pytest.fixture
def fault(config_file):
    """Return what is told of a config with overrides; each test file writes its `config_file`."""

    def load(*overrides):
        with pytest.raises(FinetuneError) as error:
            load_config(config_file, overrides)
        return str(error.value)

    return load


WORDS = ["the", "good", "bad", "film", "yes", "no"]


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    """A folder with a tiny network and a tokenizer of words that knows pairs."""
    # transformers takes seconds to load: tests of tables alone do without
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    sizes |= {"intermediate_size": 8, "max_position_embeddings": 64}
    BertModel(BertConfig(vocab_size=len(vocabulary), **sizes)).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def config_file(request, tmp_path):
    """The `CONFIG` of the test's own file, as a file."""
    path = tmp_path / "c.yaml"
    path.write_text(request.module.CONFIG)
    return path
