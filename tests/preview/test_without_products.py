"""What a plan measures without computing products is what it measures with all of them."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from finetune.config.freeze import ModulesConfig
from finetune.freezing.plan import make_plan
from finetune.models.inventory import take_inventory
from finetune.preview.flop_formulas import FORMULAS
from finetune.preview.meter import Meter
from finetune.preview.without_products import ValueReadError, WithoutProducts
from finetune.train.build import build_parts


class Reshaped(nn.Module):
    """Takes the inputs of a batch as `(B, 8)` and gives 10 outputs."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(8, 16), nn.Linear(16, 10)

    def forward(self, **inputs):
        (values,) = inputs.values()
        rows = values.float().reshape(len(values), -1)[:, :8]
        return self.head(self.body(torch.tanh(self.first(rows))))

    def body(self, hidden):
        return hidden


class Convolved(Reshaped):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 2, groups=2, padding=1)
        self.norm, self.back = nn.BatchNorm2d(8), nn.ConvTranspose2d(8, 4, 2, stride=1)

    def body(self, hidden):
        images = hidden.reshape(-1, 4, 2, 2)
        images = self.back(functional.relu(self.norm(self.conv(images))))[:, :, :2, :2]
        return images.reshape(len(hidden), 16)


class Attending(Reshaped):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=True)

    def body(self, hidden):
        tokens = hidden.reshape(len(hidden), 4, 4)
        tokens = functional.scaled_dot_product_attention(tokens, tokens, tokens)
        return self.layer(tokens).reshape(len(hidden), 16)


class Recurrent(Reshaped):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 4, batch_first=True)

    def body(self, hidden):
        found, _ = self.lstm(hidden.reshape(len(hidden), 4, 4))
        return (found @ found.transpose(1, 2)).reshape(len(hidden), 16)


class ByMask(Reshaped):
    """Asks about its input, not about a product: this may decide."""

    def forward(self, **inputs):
        (values,) = inputs.values()
        return super().forward(**inputs) if bool((values == values).all()) else None


class Experts(Reshaped):
    """Rows go to an expert by a product; the two cost different FLOPs."""

    def __init__(self):
        super().__init__()
        self.small, self.large = nn.Linear(16, 16), nn.Sequential(*[nn.Linear(16, 16)] * 4)

    def body(self, hidden):
        parts = [self.large(hidden[rows]) for rows in (self.chosen(hidden),)]
        return hidden + self.small(hidden) + parts[0].sum()

    def chosen(self, hidden):
        return (hidden[:, 0] > 0.1).nonzero().squeeze(1)


class ByItem(Experts):
    def chosen(self, hidden):
        return slice(0, 1 if hidden.sum().item() > 1e6 else None)


class ByList(Experts):
    def chosen(self, hidden):
        return [row for row, value in enumerate(hidden[:, 0].tolist()) if value > 0.1]


class ByArray(Experts):
    def chosen(self, hidden):
        return torch.from_numpy((hidden.detach().numpy()[:, 0] > 0.1).nonzero()[0])


class ByItemCaught(Experts):
    """The error of a read is caught: another way is gone than with real values."""

    def chosen(self, hidden):
        try:
            return slice(0, 1 if hidden.sum().item() > 1e6 else None)
        except Exception:  # noqa: BLE001 - as code of a user may do
            return slice(0, 0)


class OutOfRange(Reshaped):
    """Ones in the place of products make an index beyond the table."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(1, 16)

    def body(self, hidden):
        alike = hidden @ hidden.T
        return hidden + self.table((alike[:, 0] == 1.0).long())


class Marking(Reshaped):
    """Writes a buffer; ones in the place of products leave its bits as they were."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mark", torch.zeros(()))

    def body(self, hidden):
        product = hidden.detach() @ hidden.detach().T
        self.mark.copy_((product != 1).any().float())
        return hidden


class MarkingByData(Marking):
    """Writes it in a way that torch does not count."""

    def body(self, hidden):
        product = hidden.detach() @ hidden.detach().T
        self.mark.data.copy_((product != 1).any().float())
        return hidden


NETWORKS = [
    Reshaped, Convolved, Attending, Recurrent, ByMask,
    Experts, ByItem, ByList, ByArray, ByItemCaught, OutOfRange,
]  # fmt: skip


@pytest.fixture
def meter_of(make_config):
    def build(network):
        torch.manual_seed(0)
        config = make_config(freeze=["body", "norm"], cache={"use": "off"})
        parts = build_parts(config.model_copy(update={"freeze": None}))
        model = network()
        parts = replace(parts, model=model)
        plan = make_plan(None, config.optimizer, take_inventory(model))
        return Meter.of(replace(parts, plan=plan), config), plan.phases[0]

    return build


@pytest.mark.parametrize("frozen", [False, True], ids=["all trains", "the first layer is frozen"])
@pytest.mark.parametrize("network", NETWORKS)
def test_figures_do_not_depend_on_which_products_are_computed(meter_of, network, frozen):
    meter, phase = meter_of(network)
    if frozen:
        names = frozenset({"first.weight", "first.bias"})
        phase = replace(phase, frozen=names, modules=ModulesConfig())
    for batch in (meter.few, meter.more):
        counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
        whole = meter._counted(phase, batch, "not cached", counter)
        forward, none = (
            meter._pass(phase, batch, "not cached", is_forward_computed=computed)
            for computed in (True, False)
        )
        assert forward == whole
        assert replace(none, moved=whole.moved) == whole
        assert whole.flops > whole.forward > 0 < whole.kept


@pytest.mark.parametrize("network", [Marking, MarkingByData])
def test_a_buffer_moves_also_where_only_the_right_products_move_it(meter_of, network):
    meter, phase = meter_of(network)
    assert meter.measure(phase, 1.0).moved == {"mark"}
    assert meter._pass(phase, meter.few, "not cached").moved == frozenset()


def counted(network, values, *, fills):
    counter = WithoutProducts(flop_registry) if fills else FlopCounterMode(display=False)
    with counter.entered() if fills else counter:
        output = network(values=values)
    return output, counter.get_total_flops()


@pytest.mark.parametrize("network", [Reshaped, Convolved, Attending, Recurrent, ByMask])
def test_products_are_filled_with_ones_and_counted_all_the_same(network):
    torch.manual_seed(0)
    model, values = network(), torch.rand(3, 8)
    output, flops = counted(model, values, fills=True)
    real, expected = counted(model, values, fills=False)
    assert torch.equal(output, torch.ones(3, 10))
    assert not torch.equal(real, output)
    assert flops == expected > 0


@pytest.mark.parametrize("network", [Experts, ByItem, ByList, ByArray])
def test_a_value_that_follows_from_a_filled_one_is_not_read(network):
    with pytest.raises(ValueReadError):
        counted(network(), torch.rand(3, 8), fills=True)


def test_a_read_is_known_of_also_where_its_error_is_caught():
    products = WithoutProducts(flop_registry)
    with products.entered():
        ByItemCaught()(values=torch.rand(3, 8))
    assert products.was_read


def test_a_value_written_over_in_part_still_counts_as_filled():
    products = WithoutProducts(flop_registry)
    with products.entered():
        made = torch.zeros(2, 2)
        made[0] = (torch.rand(2, 2) @ torch.rand(2, 2))[0]
        made[1] = 5.0
        with pytest.raises(ValueReadError):
            made[0, 0].item()
        assert torch.zeros(2)[0].item() == 0.0
