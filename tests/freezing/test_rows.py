"""Rows of a parameter are frozen exactly, trained as a parameter of their own, saved as a slice."""

import pytest
import torch
from safetensors import safe_open
from torch import nn

from finetune.config.selectors import ByRows
from finetune.errors import SelectorError
from finetune.freezing.rows import (
    RowSlices,
    fits,
    rows_of,
    split_inventory,
    tensor_of,
    whole_when_all_frozen,
)
from finetune.models.inventory import take_inventory
from finetune.optim.groups import state_by_name
from finetune.train.after.trained import load_run

FROZEN_TOP = {"phases": [{"name": "rows", "freeze": [{"rows": "body.weight[:2]"}]}]}
SAVED_OFTEN = {"steps": 6, "batch_size": 8, "checkpoint": {"every": {"steps": 2}}}


def make_net():
    torch.manual_seed(0)
    return nn.ModuleDict({"emb": nn.Embedding(7, 4), "head": nn.Linear(4, 7, bias=False)})


def cut(*texts, model=None):
    inventory = take_inventory(model or make_net())
    return split_inventory(inventory, [ByRows(rows=text) for text in texts], key=("freeze",))


@pytest.mark.parametrize(
    ("texts", "slices"),
    [
        (["emb.weight[:3]"], ["[0:3]", "[3:7]"]),
        (["emb.weight[2:4]"], ["[0:2]", "[2:4]", "[4:7]"]),
        (["emb.weight[-2:]"], ["[0:5]", "[5:7]"]),
        (["emb.weight[3]"], ["[0:3]", "[3:4]", "[4:7]"]),
        (["emb.weight[::2]"], ["[0:7:2]", "[1:6:2]"]),
        (["emb.weight[:]"], ["[0:7]"]),
        (["emb.weight[:3]", "emb.weight[:3]"], ["[0:3]", "[3:7]"]),
        (["emb.weight[:4]", "emb.weight[2:]"], ["[0:2]", "[2:4]", "[4:7]"]),
        (["emb.weight[:5]", "emb.weight[::3]"], ["[0:4:3]", "[1:3]", "[4:5]", "[5:6]", "[6:7]"]),
    ],
    ids=str,
)
def test_a_parameter_is_cut_where_any_selector_parts_it(texts, slices):
    names = [param.name for param in cut(*texts) if param.slice_of is not None]
    assert sorted(names) == sorted(f"emb.weight{one}" for one in slices)


@pytest.mark.parametrize("texts", [["emb.weight[:3]"], ["emb.weight[::2]", "emb.weight[1:5]"]])
def test_the_slices_are_the_whole_parameter_each_row_once(texts):
    whole = torch.arange(7)
    parts = [whole[rows_of(p.name)[1]] for p in cut(*texts) if p.slice_of is not None]
    assert sorted(torch.cat(parts).tolist()) == list(range(7))


def test_a_hundred_different_cuts_of_one_parameter_are_kept_apart():
    """More cuts than a machine word has bits."""
    model = nn.ModuleDict({"emb": nn.Embedding(400, 1)})
    nested = cut(*(f"emb.weight[{n}:]" for n in range(340, 400, 1)), model=model)
    assert len(nested) == 61
    assert {param.shape for param in nested[1:]} == {(1, 1)}


def test_rows_that_scatter_into_many_pieces_are_refused():
    model = nn.ModuleDict({"emb": nn.Embedding(1000, 1)})
    texts = [f"emb.weight[{n}]" for n in range(0, 800, 10)]
    with pytest.raises(SelectorError, match="160 pieces, more than 64") as caught:
        cut(*texts, model=model)
    assert caught.value.key == ("freeze",)


def test_a_slice_counts_and_weighs_what_its_rows_do():
    part = next(param for param in cut("emb.weight[:3]") if param.name == "emb.weight[0:3]")
    assert (part.shape, part.numel, part.size_bytes, part.slice_of) == ((3, 4), 12, 48, 7)


def test_rows_of_a_tied_tensor_are_found_under_each_name_and_cut_once():
    model = make_net()
    model["head"].weight = model["emb"].weight
    names = [(p.name, p.aliases) for p in cut("head.weight[:2]", "emb.weight[:2]", model=model)]
    assert names == [
        ("emb.weight[0:2]", ("head.weight[0:2]",)),
        ("emb.weight[2:7]", ("head.weight[2:7]",)),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("embd.weight[:2]", "did you mean 'emb.weight'"),
        ("emb.weight[7:]", "takes no row: emb.weight has the shape (7, 4)"),
        ("emb.weight[::-1]", "positive stride"),
    ],
)
def test_rows_that_are_not_there_are_refused_where_they_are_written(text, message):
    with pytest.raises(SelectorError) as caught:
        cut("emb.weight[:1]", text)
    assert message in str(caught.value)
    assert caught.value.key == ("freeze", 1)
    assert not fits(ByRows(rows=text), take_inventory(make_net()))


def test_a_parameter_whose_slices_are_all_frozen_is_frozen_itself():
    inventory = cut("emb.weight[:3]")
    frozen = {"emb.weight[0:3]", "emb.weight[3:7]"}
    assert whole_when_all_frozen(inventory, frozen) == frozen | {"emb.weight"}
    assert whole_when_all_frozen(inventory, {"emb.weight[0:3]"}) == {"emb.weight[0:3]"}


def test_a_slice_is_a_view_that_gets_its_rows_of_the_gradient_or_none():
    model = make_net()
    slices = RowSlices.of(model, ["emb.weight[0:3]", "emb.weight[3:7:2]", "head.weight"])
    weight = model["emb"].weight
    weight.grad = torch.randn_like(weight)
    slices.hand_over_gradients({"emb.weight[0:3]"})
    assert slices.slices["emb.weight[0:3]"].grad is None
    assert torch.equal(slices.slices["emb.weight[3:7:2]"].grad, weight.grad[3:7:2])
    slices.slices["emb.weight[3:7:2]"].data.fill_(9)
    assert torch.equal(weight[3:7:2], torch.full((2, 4), 9.0))
    slices.clear_gradients()
    assert weight.grad is None


def test_tensor_of_gives_a_view_of_the_rows_and_the_whole_without_them():
    tensors = {"w": torch.arange(6.0)}
    assert tensor_of(tensors, "w") is tensors["w"]
    assert tensor_of(tensors, "w[1:6:2]").tolist() == [1, 3, 5]


def test_trained_rows_move_as_a_parameter_of_their_own_would(small_run):
    """By hand: the frozen rows are a constant, the others a parameter, joined in the forward."""
    settings = {"type": "AdamW", "lr": 0.05, "weight_decay": 0.3}
    trainer = small_run(freeze=FROZEN_TOP, optimizer=settings)
    twin = small_run("twin", optimizer=settings)
    body, head = twin.model.get_submodule("body"), twin.model.get_submodule("head")
    fixed, free = body.weight.detach()[:2], nn.Parameter(body.weight.detach()[2:].clone())
    optimizer = torch.optim.AdamW(
        [free, body.bias, head.weight, head.bias], lr=0.05, weight_decay=0.3
    )
    for window in twin._windows():
        batch = window[0]
        optimizer.zero_grad()
        weight = torch.cat([fixed, free])
        hidden = torch.tanh(nn.functional.linear(batch.inputs["features"], weight, body.bias))
        (head(hidden) - batch.target).square().mean(dim=1).mean().backward()
        optimizer.step()
        twin.progress.step += 1
    trainer.fit()
    trained = trainer.model.get_parameter("body.weight")
    assert torch.equal(trained[:2], fixed)
    torch.testing.assert_close(trained[2:], free)


def test_the_delta_holds_the_trained_rows_alone_and_gives_the_whole_network_back(small_run):
    trainer = small_run(freeze=FROZEN_TOP, train=SAVED_OFTEN)
    trainer.fit()
    newest = trainer.saver.checkpoints.all()[-1]
    with safe_open(newest / "weights.safetensors", framework="pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in list(file.keys())}
    assert shapes == {
        "body.weight[2:6]": (4, 4), "body.bias": (6,), "head.weight": (3, 6), "head.bias": (3,),
    }  # fmt: skip
    loaded = load_run(trainer.folder.path).model
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_rows_that_train_in_some_phase_are_in_the_delta_and_no_others(small_run):
    phases = [
        {"name": "low", "train": [{"rows": "body.weight[:2]"}], "until": {"steps": 2}},
        {"name": "next", "train": [{"rows": "body.weight[2:4]"}]},
    ]
    trainer = small_run(freeze={"phases": phases})
    trainer.fit()
    with safe_open(
        trainer.saver.checkpoints.all()[-1] / "weights.safetensors", framework="pt"
    ) as file:
        assert set(file.keys()) == {"body.weight[0:2]", "body.weight[2:4]"}
    assert set(state_by_name(trainer.optimizer)) == {"body.weight[2:4]"}


def test_a_run_over_rows_goes_on_as_if_it_had_not_stopped(small_run):
    unbroken = small_run("unbroken", freeze=FROZEN_TOP, train=SAVED_OFTEN)
    unbroken.fit()
    small_run("broken", freeze=FROZEN_TOP, train=SAVED_OFTEN | {"steps": 4}).fit()
    resumed = small_run("broken", freeze=FROZEN_TOP, train=SAVED_OFTEN)
    assert resumed.progress.step == 4
    resumed.fit()
    for name, tensor in unbroken.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name
    one, other = state_by_name(unbroken.optimizer), state_by_name(resumed.optimizer)
    assert one.keys() == other.keys()
    assert torch.equal(
        one["body.weight[2:6]"]["momentum_buffer"], other["body.weight[2:6]"]["momentum_buffer"]
    )


def test_frozen_rows_have_no_part_in_the_norm_that_clipping_goes_by(small_run):
    seen = {}
    for run, freeze in {"rows": FROZEN_TOP, "all": None}.items():
        trainer = small_run(run, freeze=freeze, train={"steps": 1, "batch_size": 8})
        stats = trainer.train_step(next(trainer._windows()))
        body = trainer.model.get_parameter("body.weight").grad
        seen[run] = float(stats.grad_norm)
    assert seen["all"] ** 2 - seen["rows"] ** 2 == pytest.approx(
        float(body[:2].square().sum()), rel=1e-4
    )
