"""What enters the head is written for TensorBoard's projector, where that is asked for."""

import numpy as np
import pytest
from PIL import Image

from finetune.config.loader import load_config
from finetune.errors import ConfigError
from finetune.runs.folder import RunFolder
from finetune.runs.removing import remove_run
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
