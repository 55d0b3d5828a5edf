"""The loop does what a careful hand-written loop does, to the bit."""

import json
import math

import pytest
import torch
from torch.nn import functional as F

from finetune.data.batches import sample_order, seed_for
from finetune.errors import FinetuneError, FrozenWeightError, ModelError, NonFiniteError


def weights(trainer):
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def assert_equal_weights(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_training_is_bit_equal_to_the_same_loop_written_by_hand(make_trainer):
    trainer, twin = make_trainer("one"), make_trainer("two")
    trainer.fit()
    model, samples = twin.model, twin.splits.train
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    step = 0
    model.train()
    while step < 20:
        order = sample_order(len(samples), seed=0, epoch=step // twin.timeline.steps_per_epoch)
        for indices in order.split(32)[: 20 - step]:
            batch = samples.fetch(indices)
            torch.manual_seed(seed_for("step", 0, step))
            optimizer.zero_grad()
            F.cross_entropy(model(**batch.inputs), batch.target).backward()
            optimizer.step()
            step += 1
    assert_equal_weights(weights(trainer), weights(twin))


def test_two_runs_with_one_seed_end_bit_equal_and_another_seed_ends_elsewhere(make_trainer):
    one, two, other = make_trainer("1"), make_trainer("2"), make_trainer("3", seed=1)
    for trainer in (one, two, other):
        trainer.fit()
    assert_equal_weights(weights(one), weights(two))
    assert not torch.equal(weights(one)["head.weight"], weights(other)["head.weight"])


@pytest.mark.parametrize("micro_batch", [32, 16, 5, 1])
def test_the_gradient_is_the_windows_however_it_is_cut(make_trainer, micro_batch):
    """Without BatchNorm and Dropout, micro-batches change nothing but rounding."""
    layers = [{"type": "Flatten"}, {"name": "head", "type": "Linear", "out_features": "classes"}]
    whole = make_trainer("whole", model={"layers": layers})
    cut = make_trainer("cut", model={"layers": layers}, train={"micro_batch": micro_batch})
    whole.fit()
    cut.fit()
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(cut)[name], tensor, rtol=1e-4, atol=1e-5)


def test_a_short_last_micro_batch_weighs_by_its_samples(make_trainer):
    """33 samples in micro-batches of 32: a mean of means would count the last sample 16 times."""
    layers = [{"type": "Flatten"}, {"name": "head", "type": "Linear", "out_features": "classes"}]
    changes = {
        "model": {"layers": layers},
        "optimizer": {"type": "SGD", "lr": 1.0, "weight_decay": 0},
    }
    cut = make_trainer("cut", train={"batch_size": 33, "micro_batch": 32, "steps": 1}, **changes)
    twin = make_trainer("twin", train={"batch_size": 33, "steps": 1}, **changes)
    before = weights(twin)["head.weight"]
    batch = twin.splits.train.fetch(sample_order(len(twin.splits.train), 0, 0)[:33])
    F.cross_entropy(twin.model(**batch.inputs), batch.target).backward()
    cut.fit()
    expected = before - twin.model.get_parameter("head.weight").grad
    torch.testing.assert_close(weights(cut)["head.weight"], expected, rtol=1e-5, atol=1e-6)


def test_evaluation_does_not_disturb_training(make_trainer):
    often = make_trainer("often", train={"evaluate_every": {"steps": 1}})
    seldom = make_trainer("seldom", train={"evaluate_every": {"steps": 20}})
    often.fit()
    seldom.fit()
    assert_equal_weights(weights(often), weights(seldom))


def test_logging_does_not_disturb_training(make_trainer):
    often = make_trainer("often", train={"log_every": 1})
    seldom = make_trainer("seldom", train={"log_every": 7})
    often.fit()
    seldom.fit()
    assert_equal_weights(weights(often), weights(seldom))


def test_what_is_frozen_ends_bit_identical_and_the_proof_says_so(make_trainer):
    trainer = make_trainer(freeze={"phases": [{"name": "all", "freeze": ["body", "norm"]}]})
    before = weights(trainer)
    trainer.fit()
    after = weights(trainer)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"head.weight", "head.bias"}
    proof = json.loads((trainer.folder.path / "freeze_proof.json").read_text())
    assert proof["intact"]
    assert proof["phases"][0]["tensors"] == 7  # 2 of body, 2 of norm, 3 buffers
    assert all(one == two for one, two in proof["phases"][0]["digests"].values())


def test_a_frozen_tensor_that_moves_fails_the_proof_and_is_never_saved(make_trainer):
    trainer = make_trainer(
        freeze={"phases": [{"name": "all", "freeze": ["body"]}]},
        train={"checkpoint": {"every": {"steps": 100}, "best": None}},
    )

    def nudge(module, inputs, output):
        module.bias.data.add_(1e-6)

    trainer.model.get_submodule("body").register_forward_hook(nudge)
    with pytest.raises(FrozenWeightError, match=r"1 of 2 .*body\.bias"):
        trainer.fit()
    assert trainer.saver.checkpoints.all() == []
    assert not json.loads((trainer.folder.path / "freeze_proof.json").read_text())["intact"]


def test_metrics_have_the_steps_as_axis_and_the_agreed_tags(make_trainer):
    trainer = make_trainer(train={"log_every": 5})
    trainer.fit()
    lines = read_lines(trainer.folder.metrics)
    trained = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in trained] == [1, 5, 10, 15, 20]
    assert {"epoch", "phase", "train/loss", "train/grad_norm", "train/lr/all", "time/step_seconds",
            "memory/peak_gib"} <= trained[0].keys()  # fmt: skip
    assert [line["step"] for line in lines if "validation/loss" in line] == [10, 20]
    assert [line["step"] for line in lines if "test/accuracy" in line] == [20]
    assert lines[0]["freeze/phase"] == 0


def test_a_loss_that_is_not_finite_ends_the_run_with_exit_code_3(make_trainer):
    trainer = make_trainer(optimizer={"type": "SGD", "lr": 1e30})
    with pytest.raises(NonFiniteError) as caught:
        trainer.fit()
    assert caught.value.exit_code == 3
    assert trainer.saver.checkpoints.all() == []


def test_early_stopping_ends_the_run_when_the_metric_no_longer_improves(make_trainer):
    trainer = make_trainer(
        optimizer={"type": "SGD", "lr": 1e-9, "weight_decay": 0.0},
        train={
            "steps": 100,
            "evaluate_every": {"steps": 2},
            "early_stopping": {"patience": 3, "min_delta": 0.5},
        },
    )
    progress = trainer.fit()
    assert progress.stopped_early
    assert progress.step == 8  # the first evaluation sets the mark, three more pass it by


def test_early_stopping_on_an_unknown_metric_is_told_before_training(make_trainer):
    with pytest.raises(FinetuneError, match="did you mean 'validation/loss'"):
        make_trainer(train={"early_stopping": {"metric": "validation/los"}})


@pytest.mark.parametrize("width", [3, 12])
def test_a_head_of_another_width_than_the_classes_is_told_before_training(make_trainer, width):
    layers = [{"type": "Flatten"}, {"name": "head", "type": "Linear", "out_features": width}]
    with pytest.raises(ModelError, match="the last layer must give what the task learns"):
        make_trainer(model={"layers": layers})


def test_the_best_checkpoint_is_kept_and_used(make_trainer):
    """With a rate that ruins the model, the best is the first evaluation, not the last."""
    trainer = make_trainer(
        optimizer={"type": "SGD", "lr": 50.0, "weight_decay": 0.0},
        train={"checkpoint": {"best": "validation/loss", "keep_last": 1}},
    )
    progress = trainer.fit()
    names = [path.name for path in trainer.saver.checkpoints.all()]
    assert names == sorted({f"step-{progress.best.step:08d}", "step-00000020"})
    figures = trainer.evaluate(trainer.splits.validation)
    assert figures["loss"] == progress.best.value


def test_clipping_bounds_the_norm_of_the_update(make_trainer):
    trainer = make_trainer(
        optimizer={"type": "SGD", "lr": 1.0, "weight_decay": 0.0},
        train={"max_grad_norm": 1e-3, "steps": 1, "checkpoint": {"best": None}},
    )
    before = weights(trainer)
    trainer.fit()
    moved = [weights(trainer)[n] - before[n] for n, _ in trainer.model.named_parameters()]
    assert math.sqrt(sum(float(d.square().sum()) for d in moved)) == pytest.approx(1e-3, rel=1e-3)


def test_bfloat16_trains_with_weights_kept_in_float32(make_trainer):
    trainer = make_trainer(train={"precision": "bfloat16"})
    progress = trainer.fit()
    assert {tensor.dtype for tensor in trainer.model.parameters()} == {torch.float32}
    assert progress.metrics["test/accuracy"] > 0.5


def test_float16_on_a_cpu_is_refused(make_trainer):
    with pytest.raises(FinetuneError, match="float16 needs a GPU"):
        make_trainer(train={"precision": "float16"})


def test_gradient_norms_per_loss_are_logged_and_change_nothing(make_trainer):
    losses = [{"type": "cross_entropy"}, {"type": "cross_entropy", "name": "soft",
               "label_smoothing": 0.5, "weight": 0.3}]  # fmt: skip
    on = make_trainer("on", task={"losses": losses, "log_gradient_norms": True})
    off = make_trainer("off", task={"losses": losses})
    on.fit()
    off.fit()
    assert_equal_weights(weights(on), weights(off))
    line = next(line for line in read_lines(on.folder.metrics) if "train/loss" in line)
    assert line["train/grad_norm/cross_entropy"] > 0
    assert line["train/grad_norm/soft"] > 0


def test_a_graph_kept_from_one_step_to_the_next_is_explained(make_trainer):
    trainer = make_trainer()
    kept = []

    def remember(module, inputs, output):
        kept.append(output)
        return output + kept[0].mean() if len(kept) > 1 else output

    trainer.model.get_submodule("head").register_forward_hook(remember)
    with pytest.raises(ModelError, match="detach") as caught:
        trainer.fit()
    assert "retain_graph" in str(caught.value)


def test_a_loss_outside_the_graph_is_explained(make_trainer):
    trainer = make_trainer()
    trainer.model.register_forward_hook(lambda module, _, output: output.detach())
    with pytest.raises(ModelError, match="depends on no trained parameter"):
        trainer.fit()


def test_drop_last_leaves_the_short_window_out(make_trainer):
    with_rest = make_trainer("a")
    without = make_trainer("b", train={"drop_last": True})
    assert with_rest.timeline.steps_per_epoch == math.ceil(len(with_rest.splits.train) / 32)
    assert without.timeline.steps_per_epoch == len(with_rest.splits.train) // 32
