"""The stored prefix around a hand-written loop: same bits, fewer calls."""

import copy

import pytest
import torch
from torch import nn

import finetune
from finetune.errors import ModelError

NUM_SAMPLES = 64


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.Dropout(0.2), nn.Tanh())
        self.top, self.head = nn.Linear(32, 16), nn.Linear(16, 3)
        self.calls = 0

    def forward(self, features, *, shift=None):
        self.calls += 1
        hidden = self.top(self.body(features)).relu()
        return self.head(hidden if shift is None else hidden + shift[:, None])


def features():
    return torch.randn(NUM_SAMPLES, 8, generator=torch.Generator().manual_seed(3))


def trained(store, *, batch=16, epochs=3, lr=0.1, data=""):
    """Train by hand, with the prefix if `store` is not False; return the model and the prefix."""
    torch.manual_seed(0)
    model, inputs = Net(), features()
    finetune.freeze(model, ["body"])
    target = inputs[:, 0].gt(0).long()
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=lr, momentum=0.9
    )
    model.train()

    def train(run):
        for epoch in range(epochs):
            order = torch.randperm(NUM_SAMPLES, generator=torch.Generator().manual_seed(epoch))
            for indices in order.split(batch):
                optimizer.zero_grad()
                outputs = run(indices, inputs[indices], shift=inputs[indices, 1])
                nn.functional.cross_entropy(outputs, target[indices]).backward()
                optimizer.step()

    if store is False:
        train(lambda indices, *args, **kwargs: model(*args, **kwargs))
        return model, None
    with finetune.cached_prefix(model, store, num_samples=NUM_SAMPLES, data=data) as prefix:
        train(prefix)
    return model, prefix


def assert_equal(one, other):
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


@pytest.mark.parametrize("batch", [16, 20], ids=["whole batches", "a short last batch"])
def test_a_loop_by_hand_ends_with_the_same_bits_and_runs_the_prefix_once(batch):
    whole, _ = trained(False, batch=batch)
    stored, prefix = trained(None, batch=batch)
    assert_equal(stored, whole)
    assert prefix.statistics.recorded == NUM_SAMPLES
    assert prefix.statistics.answered + prefix.statistics.whole == 2 * NUM_SAMPLES
    # a short last batch may have other bits: then it runs whole
    assert prefix.statistics.answered >= 2 * (NUM_SAMPLES - NUM_SAMPLES % batch)


def test_a_store_on_disk_is_warm_for_the_next_loop(tmp_path):
    trained(tmp_path, data="v1")
    again, prefix = trained(tmp_path, data="v1", lr=0.05)
    whole, _ = trained(False, lr=0.05)
    assert_equal(again, whole)
    assert prefix.statistics.recorded == 0
    _, other = trained(tmp_path, data="v2")
    assert other.statistics.recorded == NUM_SAMPLES


def test_the_model_is_left_as_it_was():
    model, _ = trained(None)
    assert not any("forward" in vars(module) for module in model.modules())


def test_what_cannot_be_stored_runs_and_the_reason_is_told():
    model = Net()
    for parameter in model.body.parameters():
        parameter.requires_grad_(False)
    model.train()
    inputs = features()
    with finetune.cached_prefix(model, num_samples=NUM_SAMPLES) as prefix:
        for _ in range(2):
            prefix(torch.arange(16), inputs[:16])
    assert model.body[1].num_batches_tracked == 2
    assert any("body.1 (BatchNorm1d) moves its buffers" in reason for reason in prefix.reasons)


def test_a_store_without_the_name_of_its_data_is_refused(tmp_path):
    with (
        pytest.raises(ModelError, match="data="),
        finetune.cached_prefix(Net(), tmp_path, num_samples=4),
    ):
        pass


def test_inputs_that_are_no_samples_are_refused():
    with (
        finetune.cached_prefix(Net(), num_samples=NUM_SAMPLES) as prefix,
        pytest.raises(ModelError, match="'features' is no tensor of 3 samples"),
    ):
        prefix(torch.arange(3), features())


def frozen_net(seed=0):
    torch.manual_seed(seed)
    model = Net()
    finetune.freeze(model, ["body"])
    return model.train()


def test_evaluation_through_the_prefix_has_the_same_bits_too():
    model, inputs = frozen_net(), features()
    with finetune.cached_prefix(model, num_samples=NUM_SAMPLES) as prefix:
        for indices in torch.arange(NUM_SAMPLES).split(16):
            prefix(indices, inputs[indices])
        model.eval()
        for without_grad in (torch.no_grad, torch.inference_mode, torch.no_grad):
            answered = prefix.statistics.answered
            with without_grad():
                for indices in torch.arange(NUM_SAMPLES).split(16):
                    outputs = prefix(indices, inputs[indices])
                    assert not outputs.requires_grad
                    assert torch.equal(outputs, model(inputs[indices]))
        assert prefix.statistics.answered == answered + NUM_SAMPLES


class ByMode(Net):
    """What is frozen gets other values in training than in evaluation, by code outside of it."""

    def forward(self, features, *, shift=None):
        return super().forward(features * 2 if self.training else features, shift=shift)


def test_training_and_evaluation_in_turns_do_not_mix():
    torch.manual_seed(0)
    model, inputs = ByMode(), features()
    finetune.freeze(model, ["body"])
    with finetune.cached_prefix(model, num_samples=NUM_SAMPLES) as prefix:
        for is_training in (True, False, True, False):
            model.train(is_training)
            answered = prefix.statistics.answered
            for indices in torch.arange(NUM_SAMPLES).split(16):
                assert torch.equal(prefix(indices, inputs[indices]), model(inputs[indices]))
        assert prefix.statistics.answered == answered + NUM_SAMPLES
    assert not any("forward" in vars(module) for module in model.modules())


class Filling(Net):
    """Its trained part fills a buffer, and registers another, in its first call; both count on."""

    def __init__(self):
        super().__init__()
        self.register_buffer("empty", None)

    def forward(self, features, *, shift=None):
        if self.empty is None:
            self.empty = torch.zeros(())
            self.register_buffer("late", torch.zeros(()), persistent=False)
        self.empty = self.empty + 1
        self.late += 1
        return super().forward(features, shift=shift) * (1 + self.empty + self.late)


def test_buffers_that_the_first_call_makes_are_made_by_the_first_call():
    torch.manual_seed(0)
    model, inputs = Filling(), features()
    finetune.freeze(model, ["body"])
    whole = copy.deepcopy(model)
    with finetune.cached_prefix(model, num_samples=NUM_SAMPLES) as prefix:
        for indices in torch.arange(NUM_SAMPLES).split(16) * 2:
            assert torch.equal(prefix(indices, inputs[indices]), whole(inputs[indices]))
        assert prefix.statistics.answered == NUM_SAMPLES
    assert model.state_dict().keys() == whole.state_dict().keys()
    assert model.late == whole.late == 8


@pytest.mark.parametrize("on_disk", [True, False], ids=["disk takes the rest", "no disk"])
def test_all_modes_share_the_budget_of_memory(tmp_path, on_disk):
    model, inputs = frozen_net(), features()
    row_bytes = 32 * 4 + 8
    room = {"memory_gb": 1.5 * NUM_SAMPLES * row_bytes / (1 << 30), "data": "features"}
    store = tmp_path if on_disk else None
    with finetune.cached_prefix(model, store, num_samples=NUM_SAMPLES, **room) as prefix:
        for is_training in (True, False, True, False):
            model.train(is_training)
            answered = prefix.statistics.answered
            for indices in torch.arange(NUM_SAMPLES).split(16):
                assert torch.equal(prefix(indices, inputs[indices]), model(inputs[indices]))
        assert prefix.statistics.answered == answered + (NUM_SAMPLES if on_disk else 0)
        assert [reason.partition(":")[0] for reason in prefix.reasons] == (
            [] if on_disk else ["not stored"]
        )
        stores = [work.store for work in prefix._opened.values() if work]
        in_memory = [0, 0] if on_disk else [NUM_SAMPLES * row_bytes]
        assert [s.memory_bytes for s in stores] == in_memory


def test_a_larger_batch_than_the_first_runs_whole_and_ends_nothing():
    model, inputs = frozen_net(), features()
    with finetune.cached_prefix(model, num_samples=NUM_SAMPLES) as prefix:
        for start in (0, 0, 16, 32, 32):
            size = 32 if start == 16 else 16
            indices = torch.arange(start, start + size)
            assert torch.equal(prefix(indices, inputs[indices]), model(inputs[indices]))
    assert prefix.statistics.whole == 32
    assert prefix.statistics.recorded == prefix.statistics.answered == 32
    assert any("are larger than those whose rows" in reason for reason in prefix.reasons)


class Scaled(Net):
    """What is frozen goes by a number in an attribute that its code holds to be private."""

    class Body(nn.Linear):
        def __init__(self, scale):
            super().__init__(8, 32)
            self._scale = scale

        def forward(self, features):
            return super().forward(features) * self._scale

    def __init__(self, scale):
        super().__init__()
        self.body = self.Body(scale)


@pytest.mark.parametrize(
    ("one", "other"),
    [(Net, ByMode), (lambda: Scaled(1.0), lambda: Scaled(2.0))],
    ids=["code outside of what is frozen", "a private number"],
)
def test_a_store_on_disk_knows_another_network_by(tmp_path, one, other):
    def outputs(make):
        torch.manual_seed(0)
        model, inputs = make(), features()
        finetune.freeze(model, ["body"])
        with finetune.cached_prefix(model, tmp_path, num_samples=NUM_SAMPLES, data="v1") as prefix:
            return prefix(torch.arange(16), inputs[:16]), model(inputs[:16]), prefix.reasons

    for make in (one, other, one):
        stored, whole, reasons = outputs(make)
        assert torch.equal(stored, whole)
        # nor is it left to what is looked over when a store is opened
        assert not reasons


def test_an_output_that_nobody_needs_serves_inference_mode_and_then_training():
    class Spare(Net):
        class Body(nn.Linear):
            def forward(self, features):
                hidden = super().forward(features)
                return hidden.tanh(), hidden

        def __init__(self):
            super().__init__()
            self.body = self.Body(8, 32)

        def forward(self, features):
            return self.head(self.top(self.body(features)[0]))

    torch.manual_seed(0)
    model, inputs = Spare(), features()
    finetune.freeze(model, ["body"])
    with finetune.cached_prefix(model, num_samples=NUM_SAMPLES) as prefix:
        for mode in (True, True, False, False):
            with torch.inference_mode(mode):
                outputs = prefix(torch.arange(16), inputs[:16])
                assert torch.equal(outputs, model(inputs[:16]))
    outputs.sum().backward()
    assert prefix.statistics.answered > 16


def test_two_networks_at_once_do_not_mix():
    inputs, nets = features(), [frozen_net(1), frozen_net(2)]
    right = [net.eval()(inputs[:16]) for net in nets]
    with (
        finetune.cached_prefix(nets[0], num_samples=NUM_SAMPLES) as one,
        finetune.cached_prefix(nets[1], num_samples=NUM_SAMPLES) as two,
    ):
        for _ in range(3):
            for prefix, outputs in ((one, right[0]), (two, right[1])):
                assert torch.equal(prefix(torch.arange(16), inputs[:16]), outputs)
        assert one.statistics.answered == two.statistics.answered > 0


@pytest.mark.parametrize("where", ["in the loop", "in the network"])
def test_an_error_leaves_the_network_as_it_was(where):
    model, inputs = frozen_net(), features()
    own = model.body.forward
    model.body.forward = own  # a method of its own, as other tools put there

    def failing(*_):
        raise ValueError("meant")

    def loop():
        with finetune.cached_prefix(model, num_samples=NUM_SAMPLES) as prefix:
            prefix(torch.arange(16), inputs[:16])
            if where == "in the network":
                model.head.register_forward_hook(failing)
                prefix(torch.arange(16), inputs[:16])
            failing()

    with pytest.raises(ValueError, match="meant"):
        loop()
    assert vars(model.body)["forward"] == own
    assert not any("forward" in vars(m) for m in model.modules() if m is not model.body)


def test_inputs_that_only_the_kwargs_of_a_network_take_are_handed_on():
    class Wrapped(Net):
        def forward(self, features, **more):
            return super().forward(features, **more)

    model, inputs = Wrapped().eval(), features()
    finetune.freeze(model, ["body"])
    shift = inputs[:16, 1]
    right = model(inputs[:16], shift=shift)
    with finetune.cached_prefix(model, num_samples=NUM_SAMPLES) as prefix:
        for _ in range(2):
            assert torch.equal(prefix(torch.arange(16), inputs[:16], shift=shift), right)


def test_where_rows_do_not_fit_everything_runs_and_the_reason_is_told(tmp_path):
    store = tmp_path / "a file"
    store.touch()
    uncached, _ = trained(False)
    cached, prefix = trained(store, data="features, first version")
    assert_equal(uncached, cached)
    assert prefix.statistics.answered > 0  # kept in memory instead

    model, inputs = Net(), features()
    finetune.freeze(model, ["body"])
    room = {"memory_gb": 1e-9, "num_samples": NUM_SAMPLES}
    with finetune.cached_prefix(model, **room) as prefix:
        outputs = prefix(torch.arange(16), inputs[:16])
        assert torch.equal(outputs, model(inputs[:16]))
    assert prefix.statistics.answered == prefix.statistics.recorded == 0
    assert prefix.reasons[-1].startswith("not stored: ")


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = (
            nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 16)),
            nn.Linear(16, 3),
        )

    def forward(self, input_ids, attention_mask):
        mask = attention_mask[..., None]
        return self.head((self.body(input_ids) * mask).sum(1) / mask.sum(1))


class Summing(Words):
    """What stands behind the end of a text counts as well."""

    def forward(self, input_ids, attention_mask):
        return self.head(self.body(input_ids).sum(1) + attention_mask.sum(1, keepdim=True))


@pytest.mark.parametrize("side", ["right", "left", "holes"])
@pytest.mark.parametrize("kind", [Words, Summing])
def test_wherever_texts_are_filled_up_bits_are_the_same(side, kind):
    torch.manual_seed(0)
    model = kind()
    finetune.freeze(model, ["body"])
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(50, (16, 6), generator=draw)
    mask = (torch.arange(6) < torch.randint(2, 6, (16, 1), generator=draw)).long()
    if side == "left":
        mask = mask.flip(1)
    elif side == "holes":
        mask = torch.randint(2, (16, 6), generator=draw)
    with finetune.cached_prefix(model, num_samples=16) as prefix:
        for indices in torch.arange(16).repeat(3).split(4):
            inputs = {"input_ids": ids[indices], "attention_mask": mask[indices]}
            assert torch.equal(prefix(indices, **inputs), model(**inputs))
        if side == "right":
            # the first batch was filled up behind the end, this one is not
            inputs["attention_mask"] = inputs["attention_mask"].flip(1)
            assert torch.equal(prefix(indices, **inputs), model(**inputs))
    assert (prefix.statistics.answered > 0) == (kind is Words or side != "right")


def test_inputs_of_another_width_are_not_taken_for_the_same(tmp_path):
    class Pooled(Words):
        def forward(self, ids, key_padding_mask):
            return self.head(self.pool(ids, key_padding_mask))

        def __init__(self):
            super().__init__()
            self.pool = self.Pool(self.body)

        class Pool(nn.Module):
            def __init__(self, body):
                super().__init__()
                self.body = body

            def forward(self, ids, mask):
                # what is filled up counts a little, as kernels may round by the width
                return (self.body(ids) * mask[..., None]).sum(1) * (1 + ids.shape[1] * 2**-20)

    ids = torch.randint(50, (8, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(9).lt(4).expand(8, 9)
    for widths in ((6, 6, 9, 6), (9, 9)):
        torch.manual_seed(0)
        model = Pooled()
        finetune.freeze(model, ["body", "pool"])
        with finetune.cached_prefix(model, tmp_path, num_samples=8, data="v1") as prefix:
            for width in widths:
                inputs = {"ids": ids[:, :width], "key_padding_mask": mask[:, :width]}
                assert torch.equal(prefix(torch.arange(8), **inputs), model(**inputs))
        assert not any("are wrong" in reason for reason in prefix.reasons)
        assert prefix.statistics.answered > 0


def test_texts_of_another_length_run_whole_and_it_is_said_once():
    model = Words()
    finetune.freeze(model, ["body"])
    ids = torch.randint(50, (8, 6), generator=torch.Generator().manual_seed(0))
    indices = torch.arange(8)
    with finetune.cached_prefix(model, num_samples=8) as prefix:
        for length in (6, 6, 4, 4, 6):
            mask = torch.ones(8, length, dtype=torch.int64)
            inputs = {"input_ids": ids[:, :length], "attention_mask": mask}
            assert torch.equal(prefix(indices, **inputs), model(**inputs))
    assert prefix.statistics.answered == 16
    assert prefix.reasons == ("only batches of 6 tokens, as the first had, are answered: pad all",)
