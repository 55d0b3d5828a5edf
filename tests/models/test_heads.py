"""Heads of transformers by what has logits: texts, tokens, spans, images, pixels, recordings."""

import pytest
import torch
from torch.nn.functional import interpolate
from transformers import (
    ASTConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSemanticSegmentation,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BeitConfig,
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DistilBertConfig,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2Model,
    LlamaConfig,
    RobertaConfig,
    SegformerConfig,
    ViTConfig,
    Wav2Vec2Config,
)

from finetune.errors import ModelError
from finetune.models.declared import TensorSpec
from finetune.models.heads import HeadWanted

TEXT = {
    "vocab_size": 20,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 16,
}
GPT = {"vocab_size": 20, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16}
PICTURE = {**TEXT, "image_size": 16, "patch_size": 4}
WAVES = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "conv_dim": [8, 8],
    "conv_stride": [5, 2],
    "conv_kernel": [10, 3],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 8,
}
TOKENS = {name: TensorSpec((6,), "int64") for name in ("input_ids", "attention_mask")}
IMAGE = {"pixel_values": TensorSpec((3, 16, 16), "float32")}
SOUND = {"wave": TensorSpec((400,), "float32")}
SPECTRUM = {"spectrum": TensorSpec((32, 16), "float32")}


@pytest.fixture
def folder(tmp_path):
    """Return a function that saves a network's config; the network starts from random weights."""

    def save(config):
        config.save_pretrained(tmp_path)
        return {"name": "net", "type": "transformers", "path": str(tmp_path), "pretrained": False}

    return save


@pytest.fixture
def padded():
    """Return three texts, the second and the third padded behind their end."""
    ids = torch.randint(3, 20, (3, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 4:], mask[2, 1:] = 0, 0
    return {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask}


def logits(layer, **more):
    return {**layer, "output": "logits", **more}


@pytest.mark.parametrize(
    ("config", "inputs", "name"),
    [
        (BertConfig(**TEXT), TOKENS, "BertForSequenceClassification"),
        (DistilBertConfig(vocab_size=20, dim=8, n_layers=1, n_heads=2, hidden_dim=8), TOKENS,
         "DistilBertForSequenceClassification"),
        (GPT2Config(**GPT), TOKENS, "GPT2ForSequenceClassification"),
        (LlamaConfig(**TEXT, num_key_value_heads=2), TOKENS, "LlamaForSequenceClassification"),
        (ViTConfig(**PICTURE), IMAGE, "ViTForImageClassification"),
        (BeitConfig(**PICTURE), IMAGE, "BeitForImageClassification"),
        (Wav2Vec2Config(**WAVES), SOUND, "Wav2Vec2ForSequenceClassification"),
        (ASTConfig(**TEXT, patch_size=4, max_length=32, num_mel_bins=16, frequency_stride=4,
                   time_stride=4), SPECTRUM, "ASTForAudioClassification"),
    ],
    ids=["bert", "distilbert", "gpt2", "llama", "vit", "beit", "wav2vec2", "spectrogram"],
)  # fmt: skip
def test_a_whole_sample_gets_the_head_of_its_kind_of_network(build, folder, config, inputs, name):
    network = build(logits(folder(config)), inputs=inputs, classes=5).eval()
    assert type(network.net).__name__ == name
    batch = {column: spec.example(3) for column, spec in inputs.items()}
    with torch.no_grad():
        assert network(**batch).shape == (3, 5)
    # In evaluation mode: in training some networks for sound leave out whole layers at random.
    network(**batch).sum().backward()
    lacking = [name for name, p in network.named_parameters() if p.grad is None]
    # The state that stands for what is masked in training.
    assert [name for name in lacking if not name.endswith("masked_spec_embed")] == []


def test_each_token_gets_logits_equal_to_those_of_the_library(build, folder, padded):
    layer = folder(BertConfig(**TEXT))
    head = HeadWanted("token", 4)
    network = build(logits(layer), inputs=TOKENS, classes=4, head=head).eval()
    theirs = AutoModelForTokenClassification.from_config(network.net.config).eval()
    theirs.load_state_dict(network.net.state_dict())
    with torch.no_grad():
        assert torch.equal(network(**padded), theirs(**padded).logits)
    assert network(**padded).shape == (3, 6, 4)


@pytest.mark.parametrize("config", [BertConfig(**TEXT), RobertaConfig(**TEXT), GPT2Config(**GPT)])
def test_a_span_gets_the_logits_of_start_and_end_side_by_side(build, folder, padded, config):
    layer = folder(config)
    network = build(logits(layer), inputs=TOKENS, classes=None, head=HeadWanted("span")).eval()
    theirs = AutoModelForQuestionAnswering.from_config(network.net.config).eval()
    theirs.load_state_dict(network.net.state_dict())
    with torch.no_grad():
        found, wanted = network(**padded), theirs(**padded)
    assert found.shape == (3, 6, 2)
    assert torch.equal(found[..., 0], wanted.start_logits)
    assert torch.equal(found[..., 1], wanted.end_logits)


def test_each_pixel_gets_logits_in_the_size_of_the_image(build, folder):
    sizes = {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1]}
    sizes |= {"hidden_sizes": [8, 16], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2]}
    sizes |= {"patch_sizes": [7, 3], "strides": [4, 2], "decoder_hidden_size": 8}
    layer = folder(SegformerConfig(**sizes))
    network = build(logits(layer), inputs=IMAGE, classes=3, head=HeadWanted("pixel", 3)).eval()
    theirs = AutoModelForSemanticSegmentation.from_config(network.net.config).eval()
    theirs.load_state_dict(network.net.state_dict())
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        coarse = theirs(image).logits
        assert coarse.shape == (2, 3, 4, 4)
        wanted = interpolate(coarse, (16, 16), mode="bilinear", align_corners=False)
        assert torch.equal(network(image), wanted)


def test_a_network_without_the_head_is_one_clear_error(build, folder):
    layer = folder(ViTConfig(**PICTURE))
    with pytest.raises(ModelError, match=r"no head for output 'logits' for each token for 'vit'"):
        build(logits(layer), inputs=IMAGE, classes=3, head=HeadWanted("token", 3))


def test_logits_whose_number_is_not_known_are_one_clear_error(build, folder):
    layer = folder(BertConfig(**TEXT))
    with pytest.raises(ModelError, match="'logits' needs a number of classes") as caught:
        build(logits(layer), inputs=TOKENS, classes=None)
    assert caught.value.key == ("model", "layers", 0, "output")


# Decoders


@pytest.mark.parametrize(
    "config",
    [GPT2Config(**GPT), GPT2Config(**GPT, pad_token_id=7), LlamaConfig(**TEXT, pad_token_id=None)],
    ids=["no padding token", "another padding token", "llama"],
)
def test_the_head_of_a_decoder_takes_the_last_token_that_the_mask_calls_real(
    build, folder, padded, config
):
    network = build(logits(folder(config)), inputs=TOKENS, classes=3).eval()
    texts = [
        {name: column[row : row + 1, : int(padded["attention_mask"][row].sum())]
         for name, column in padded.items()}
        for row in range(3)
    ]  # fmt: skip
    with torch.no_grad():
        alone = torch.cat([network(**text) for text in texts])
        torch.testing.assert_close(network(**padded), alone, rtol=1e-5, atol=1e-6)


def test_the_padding_token_that_is_given_keeps_its_row_in_training(build, folder):
    network = build(logits(folder(GPT2Config(**GPT, eos_token_id=2))), inputs=TOKENS, classes=3)
    assert network.net.transformer.wte.padding_idx is None
    assert network.net.config.pad_token_id == 2


def test_last_is_the_state_of_the_last_real_token(build, folder, padded):
    layer = folder(GPT2Config(**GPT))
    last = build({**layer, "output": "last"}, inputs=TOKENS).eval()
    hidden = build({**layer, "output": "hidden"}, inputs=TOKENS).eval()
    with torch.no_grad():
        states = hidden(**padded)
        assert torch.equal(last(**padded), torch.stack([states[0, 5], states[1, 3], states[2, 0]]))
        left = {name: column.flip(1) for name, column in padded.items()}
        assert torch.equal(last(**left), hidden(**left)[:, -1])


def test_last_without_a_mask_is_the_last_position(build, folder, padded):
    ids = {"tokens": TOKENS["input_ids"]}
    layer = folder(GPT2Config(**GPT))
    last = build({**layer, "output": "last"}, inputs=ids).eval()
    hidden = build({**layer, "output": "hidden"}, inputs=ids).eval()
    with torch.no_grad():
        assert torch.equal(last(padded["input_ids"]), hidden(padded["input_ids"])[:, -1])


# Pretrained heads


def saved(model, folder):
    torch.manual_seed(5)
    model.save_pretrained(folder)
    return {"name": "net", "type": "transformers", "path": str(folder), "output": "logits"}


@pytest.mark.parametrize(
    ("head", "cls", "width"),
    [
        (HeadWanted("sample", 4), BertForSequenceClassification, 4),
        (HeadWanted("token", 4), BertForTokenClassification, 4),
        (HeadWanted("sample", 4), GPT2ForSequenceClassification, 4),
    ],
    ids=["text", "tokens", "decoder"],
)
def test_a_head_that_fits_is_loaded(build, tmp_path, head, cls, width):
    sizes = GPT if cls is GPT2ForSequenceClassification else TEXT
    theirs = cls(cls.config_class(**sizes, num_labels=width))
    network = build(saved(theirs, tmp_path), inputs=TOKENS, classes=width, head=head)
    (report,) = network.weights_reports
    assert report.complete
    ours = network.net.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.state_dict().items())


@pytest.mark.parametrize(
    ("head", "saved_width", "word"),
    [
        (HeadWanted("token", 3), 4, "mismatched"),
        (HeadWanted("token", 3), None, "missing"),
        (HeadWanted("span"), 4, "mismatched"),
    ],
    ids=["another width", "no head", "another kind and width"],
)
def test_a_head_that_does_not_fit_starts_anew_and_is_told(build, tmp_path, head, saved_width, word):
    config = BertConfig(**TEXT, num_labels=saved_width or 2)
    theirs = BertModel(config) if saved_width is None else BertForTokenClassification(config)
    network = build(saved(theirs, tmp_path), inputs=TOKENS, classes=3, head=head)
    (report,) = network.weights_reports
    assert {name.rpartition(".")[0] for name in report.not_loaded} <= {"classifier", "qa_outputs"}
    assert len(report.not_loaded) == 2
    assert "2 " in str(report)
    assert word in str(report) or "missing" in str(report)


def test_a_head_of_the_same_shape_that_was_trained_for_something_else_starts_anew(build, tmp_path):
    theirs = BertForTokenClassification(BertConfig(**TEXT, num_labels=3))
    network = build(saved(theirs, tmp_path), inputs=TOKENS, classes=3)
    (report,) = network.weights_reports
    assert report.missing[2:] == ("classifier.bias", "classifier.weight")
    assert all(name.startswith("bert.pooler.") for name in report.missing[:2])
    ours, given = network.net.state_dict(), theirs.state_dict()
    assert not torch.equal(ours["classifier.weight"], given["classifier.weight"])
    body = [name for name in given if name.startswith("bert.")]
    assert all(torch.equal(ours[name], given[name]) for name in body)


def test_the_network_for_a_task_is_the_one_that_the_library_makes(build, folder):
    network = build(logits(folder(BertConfig(**TEXT))), inputs=TOKENS, classes=4, seed=9)
    torch.manual_seed(9)
    theirs = AutoModelForSequenceClassification.from_config(network.net.config).state_dict()
    ours = network.net.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_hidden_states_of_a_decoder_keep_their_tokens(build, folder, padded):
    network = build({**folder(GPT2Config(**GPT)), "output": "hidden"}, inputs=TOKENS).eval()
    theirs = GPT2Model(network.net.config).eval()
    theirs.load_state_dict(network.net.state_dict())
    with torch.no_grad():
        assert torch.equal(network(**padded), theirs(**padded).last_hidden_state)


@pytest.mark.parametrize("behind", ["TransformerEncoderLayer", "MultiheadAttention"])
def test_an_attention_layer_behind_hidden_states_leaves_padding_out(build, folder, padded, behind):
    hidden = {**folder(BertConfig(**TEXT)), "output": "hidden"}
    more = {"nhead": 2} if behind == "TransformerEncoderLayer" else {"num_heads": 2}
    taken = ["net"] if behind == "TransformerEncoderLayer" else ["net"] * 3
    layer = {"name": "top", "type": behind, "batch_first": True, **more}
    network = build(hidden, {**layer, "inputs": [*taken, "attention_mask"]}, inputs=TOKENS).eval()
    short = {name: column[1:2, :4] for name, column in padded.items()}
    with torch.no_grad():
        torch.testing.assert_close(network(**padded)[1, :4], network(**short)[0])
