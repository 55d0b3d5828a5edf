"""What the plan predicts is what training takes, and predicting changes nothing."""

import copy
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from finetune.freezing.apply import freeze
from finetune.freezing.plan import make_plan
from finetune.freezing.proof import fingerprints
from finetune.models.inventory import take_inventory
from finetune.optim.groups import weight_decay_of
from finetune.preview.costs import predict_costs
from finetune.train.build import build_parts
from finetune.train.wire import build_trainer

BODY = {"phases": [{"name": "head only", "freeze": ["body", "norm"]}]}
TWICE = {
    "phases": [
        {"name": "head", "train": ["head"], "until": {"steps": 2}},
        {"name": "body", "train": ["body", "head"], "until": {"steps": 2}},
        {"name": "all", "freeze": []},
    ]
}


class Transformer(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.embed = nn.Linear(4, 128)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(128, 4, 512, dropout=0, batch_first=True, norm_first=True)
            for _ in range(blocks)
        )
        self.head = nn.Linear(128, 10)

    def forward(self, **inputs):
        (values,) = inputs.values()
        x = self.embed(values.float().reshape(-1, 16, 4))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


class Depthwise(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, padding=1)
        self.body = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.head = nn.Linear(32, 10)

    def forward(self, **inputs):
        (values,) = inputs.values()
        x = self.stem(values.float().reshape(-1, 1, 8, 8))
        return self.head(self.body(x).mean((2, 3)))


def with_model(config, model):
    """Put another network into the parts of a config, with the config's phases."""
    plan = make_plan(config.freeze, config.optimizer, take_inventory(model))
    return replace(build_parts(config.model_copy(update={"freeze": None})), model=model, plan=plan)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("frozen", "ratio"), [(3, 0.833), (6, 0.667), (9, 0.5), (11, 0.389)], ids=str
)
def test_flops_of_a_frozen_prefix_are_saved_in_the_backward_pass(make_config, frozen, ratio):
    freeze = {"phases": [{"name": "top", "freeze": ["embed", {"depth": f":{frozen}"}]}]}
    config = make_config(freeze=freeze)
    costs = predict_costs(with_model(config, Transformer(12)), config)
    assert costs.phases[0].flops_per_step / costs.full.flops_per_step == pytest.approx(
        ratio, abs=5e-4
    )
    assert costs.share_of_flops == pytest.approx(ratio, abs=5e-4)


@pytest.mark.parametrize("micro_batch", ["auto", 7], ids=["in one pass", "in micro-batches"])
def test_flops_of_a_step_are_those_that_a_step_takes(make_config, make_trainer, micro_batch):
    config = make_config(freeze=BODY, train={"micro_batch": micro_batch})
    train = {"micro_batch": micro_batch, "steps": 1}
    trainer = make_trainer(freeze=BODY, train=train, cache="off")
    with FlopCounterMode(display=False) as counter:
        trainer._enter_phase()
        trainer.train_step(next(trainer._windows()))
    expected = counter.get_total_flops()
    assert predict_costs(build_parts(config), config).phases[0].flops_per_step == expected


def test_the_backward_pass_of_a_grouped_convolution_counts_two_forward_passes(make_config):
    freeze = {"phases": [{"name": "body", "freeze": ["stem.bias"]}]}
    config = make_config(freeze=freeze)
    costs = predict_costs(with_model(config, Depthwise()), config)
    stem, body, head = 2 * 9 * 32 * 64, 2 * 9 * 32 * 64, 2 * 32 * 10
    # the input of the stem needs no gradient
    assert costs.full.flops_per_step == 32 * (2 * stem + 3 * body + 3 * head)


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer",
    [
        {"type": "AdamW"},
        {"type": "SGD"},
        {"type": "SGD", "momentum": 0.9},
        {"type": "Adafactor", "weight_decay": 0.0},
        {"type": "ASGD"},
        {"type": "NAdam"},
        {"type": "Adam", "amsgrad": True},
    ],
    ids=lambda optimizer: "-".join(map(str, optimizer.values())),
)
@pytest.mark.parametrize("freeze", [None, BODY], ids=["all", "head only"])
def test_predicted_sizes_on_disk_are_those_of_the_files(
    make_config, make_trainer, optimizer, freeze
):
    changes = {"freeze": freeze, "train": {"steps": 2}}
    config = make_config(**changes)
    settings = config.optimizer.model_validate({"lr": 1e-3, **optimizer})
    config = config.model_copy(update={"optimizer": settings})
    costs = predict_costs(build_parts(config), config).phases[-1]
    files = files_of(config, make_trainer)
    assert costs.delta_file_bytes == pytest.approx(files["weights.safetensors"], rel=0.01)
    assert costs.optimizer_file_bytes == pytest.approx(files["optimizer.safetensors"], rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1, 2])
def test_each_phase_has_the_sizes_of_the_checkpoint_at_its_end(
    make_config, make_trainer, tmp_path, number
):
    config = make_config(freeze=TWICE, train={"steps": 6, "checkpoint": {"keep_last": 9}})
    costs = predict_costs(build_parts(config), config)
    files = files_of(config, make_trainer, step=2 * (number + 1))
    cost = costs.phases[number]
    assert cost.delta_file_bytes == pytest.approx(files["weights.safetensors"], rel=0.01)
    assert cost.optimizer_file_bytes == pytest.approx(files["optimizer.safetensors"], rel=0.01)
    assert [(s.began, s.ends, s.is_certain) for s in costs.spans] == [
        (0, 2, True), (2, 4, True), (4, 6, True),
    ]  # fmt: skip


def files_of(config, make_trainer, step=None):
    """Train, and return the sizes of the files of one checkpoint, the last one if not told."""
    trainer = build_trainer(config, make_trainer().folder.path.parent / "sized")
    trainer.fit()
    folder = (
        trainer.saver.checkpoints.all()[-1]
        if step is None
        else trainer.saver.checkpoints.path_of(step)
    )
    return {path.name: path.stat().st_size for path in folder.iterdir()}


def test_activations_are_what_autograd_keeps_of_a_micro_batch(make_config):
    freeze = {"phases": [{"name": "top", "freeze": ["embed", {"depth": ":2"}]}]}
    config = make_config(freeze=freeze, train={"micro_batch": 16})
    parts = with_model(config, Transformer(4))
    costs = predict_costs(parts, config)
    for frozen, cost in ((parts.plan.phases[0].frozen, costs.phases[0]), (set(), costs.full)):
        direct = kept_of(parts, frozen, 16)
        assert cost.activations_bytes == pytest.approx(direct, rel=0.01)
    assert costs.phases[0].activations_bytes == pytest.approx(
        costs.full.activations_bytes / 2, rel=0.02
    )


def kept_of(parts, frozen, samples):
    """Measure directly, on a copy: storages of all tensors saved over a batch."""
    model = copy.deepcopy(parts.model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = parts.data.train.fetch(torch.arange(samples))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = parts.task.loss(model(**batch.inputs), batch)
    assert loss.requires_grad
    return sum(kept.values())


def test_a_frozen_prefix_keeps_no_activations(make_config):
    shallow, deep = (
        predict_costs(with_model(config, Transformer(blocks)), config).phases[0].activations_bytes
        for blocks in (1, 5)
        for config in [make_config(freeze={"phases": [{"name": "head", "train": ["head"]}]})]
    )
    assert shallow == deep


def test_memory_counts_gradients_of_what_trains_and_state_of_what_has_trained(make_config):
    config = make_config(freeze=TWICE, train={"steps": 6})
    head, body, norm = (16 * 10 + 10) * 4, (64 * 16 + 16) * 4, 32 * 4
    costs = predict_costs(build_parts(config), config)
    assert [cost.gradients_bytes for cost in costs.phases] == [
        head,
        body + head,
        head + body + norm,
    ]
    # two tensors of its size for each parameter, and a step count of 4 bytes
    assert [cost.optimizer_bytes for cost in costs.phases] == [
        2 * head + 8, 2 * (head + body) + 16, 2 * (head + body + norm) + 24,
    ]  # fmt: skip


def test_state_of_what_never_trains_again_is_no_longer_counted(make_config, make_trainer):
    body = {"name": "body", "train": ["body"], "until": {"steps": 2}}
    phases = [body, {"name": "head", "train": ["head"]}]
    config = make_config(freeze={"phases": phases}, train={"steps": 4})
    costs = predict_costs(build_parts(config), config)
    assert costs.phases[1].optimizer_bytes == 2 * (16 * 10 + 10) * 4 + 8
    files = files_of(config, make_trainer)
    assert costs.phases[1].optimizer_file_bytes == pytest.approx(
        files["optimizer.safetensors"], rel=0.01
    )


def test_predicting_changes_nothing_in_the_model_nor_the_random_state(make_config):
    config = make_config(freeze=TWICE, train={"steps": 6})
    parts = build_parts(config)
    model = parts.model
    freeze(model, ["norm"])
    model.train()
    torch.manual_seed(7)
    names = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
    first = next(model.parameters())
    first.grad = torch.ones_like(first)

    def state():
        return (
            fingerprints(model, names),
            [(m.training, m.__dict__.get("train")) for m in model.modules()],
            [(p.requires_grad, p.grad) for p in model.parameters()],
            [id(buffer) for buffer in model.buffers()],
            torch.get_rng_state().tolist(),
        )

    before = state()
    predict_costs(parts, config)
    assert state() == before
    assert torch.equal(first.grad, torch.ones_like(first))


@pytest.mark.slow
def test_what_trains_afterwards_is_bit_identical_to_a_run_without_prediction(
    make_config, make_trainer
):
    plain, planned = make_trainer("plain"), make_trainer("planned")
    config = make_config()
    predict_costs(replace(build_parts(config), model=planned.model), config)
    plain.fit()
    planned.fit()
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(tensor, planned.model.state_dict()[name]), name


def test_an_embedding_that_rescales_itself_is_put_back(make_config):
    class Rescaling(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(20, 10, max_norm=0.1)

        def forward(self, **inputs):
            (values,) = inputs.values()
            return self.embed(values.long().reshape(len(values), -1)).mean(1)

    config = make_config()
    parts = with_model(config, Rescaling())
    before = fingerprints(parts.model, ["embed.weight"])
    predict_costs(parts, config)
    assert fingerprints(parts.model, ["embed.weight"]) == before


def test_a_run_that_waits_for_a_metric_has_no_share_of_flops(make_config):
    until = {"plateau": "validation/loss", "at_most": {"steps": 5}}
    phases = [{"name": "a", "train": ["head"], "until": until}, {"name": "b", "freeze": []}]
    config = make_config(freeze={"phases": phases})
    costs = predict_costs(build_parts(config), config)
    assert costs.share_of_flops is None
    assert [asdict(span) for span in costs.spans] == [
        {"began": 0, "ends": 5, "is_certain": False},
        {"began": 5, "ends": 20, "is_certain": False},
    ]


@pytest.mark.parametrize(
    ("optimizer", "decay"),
    [
        ({"type": "AdamW"}, 0.01),
        ({"type": "AdamW", "weight_decay": 0.3}, 0.3),
        ({"type": "SGD"}, 0.0),
        ({"type": "Rprop"}, 0.0),
    ],
    ids=str,
)
def test_weight_decay_is_as_given_or_the_optimizers_own(make_config, optimizer, decay):
    config = make_config().optimizer.model_validate({"lr": 1e-3, **optimizer})
    assert weight_decay_of(config) == decay
