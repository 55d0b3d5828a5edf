"""A weight or buffer that is not finite never reaches the disk; whole numbers may be any."""

import pytest
import torch

from finetune.errors import NonFiniteError
from finetune.train.checkpoints.checkpoint import save_checkpoint


def save(trainer, step):
    trainer.progress.step = step
    return save_checkpoint(
        trainer.saver.checkpoints,
        trainer.model,
        trainer.optimizer,
        trainer.progress,
        trainer.saver.base,
        scaler={},
        average=trainer.average,
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("name", ["head.bias", "norm.weight", "norm.running_var"])
@pytest.mark.parametrize("background", [False, True], ids=["", "in the background"])
def test_it_is_refused_by_name_and_nothing_is_written(runs, tmp_path, name, value, background):
    trainer = runs.build(tmp_path / "run", train=runs.saving(background=background))
    save(trainer, 1)
    trainer.saver.checkpoints.worker.wait()
    trainer.model.state_dict()[name].view(-1)[1] = value
    with pytest.raises(NonFiniteError, match=f"not saved: infinite or NaN in {name}") as caught:
        save(trainer, 2)
    assert caught.value.exit_code == 3
    trainer.saver.checkpoints.worker.close()
    assert [path.name for path in trainer.saver.checkpoints.folder.iterdir()] == ["step-00000001"]


def test_what_is_frozen_and_never_saved_may_be_what_it_is(runs, tmp_path):
    """Masks of attention hold infinities on purpose."""
    trainer = runs.build(tmp_path / "run")
    with torch.no_grad():
        trainer.model.get_parameter("body.bias")[0] = float("inf")
    save(trainer, 1)


def test_many_names_are_cut_short(runs, tmp_path):
    layers = [{"name": f"l{n}", "type": "Linear", "out_features": 3} for n in range(4)]
    trainer = runs.build(tmp_path / "run", model={"layers": layers}, freeze=[])
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match=r"l0\.weight, .* and 3 more"):
        save(trainer, 1)
