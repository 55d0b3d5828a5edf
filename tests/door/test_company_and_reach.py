"""Networks that mix the samples of a batch, or cannot give what they are to learn, are told."""

import pytest
import torch
from torch import nn

from finetune.lints.mixed_samples import FEW, FEWER, mixed_samples
from finetune.lints.out_of_reach import out_of_reach
from finetune.train.wire import build_trainer

LINEAR = {"name": "head", "type": "Linear", "out_features": 3}


class OverSamples(nn.Module):
    """Torch's own default: the first axis counts as time."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(4, 3)

    def forward(self, x):
        return self.rnn(x.unsqueeze(1))[0].squeeze(1)


class OfBatch(nn.Module):
    def forward(self, x):
        return x - x.mean()


class Named(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.head = inner, nn.LazyLinear(2)

    def forward(self, x):
        return self.head(self.inner(x))


@pytest.mark.parametrize(
    "inner",
    [
        nn.Softmax(0),
        nn.BatchNorm1d(4, track_running_stats=False),
        OverSamples(),
        OfBatch(),
    ],
    ids=["softmax over samples", "norm without statistics", "recurrent over samples", "own"],
)
def test_a_module_that_mixes_samples_is_found_by_name(inner):
    model = Named(inner).eval()
    x = torch.randn(FEW, 4, generator=torch.manual_seed(0))
    with torch.no_grad():
        found = mixed_samples(model, {"x": x}, {"x": x[-FEWER:]})
    assert found is not None
    assert found.module.startswith("inner")
    assert found.change > 0.001


@pytest.mark.parametrize(
    "inner", [nn.Softmax(1), nn.BatchNorm1d(4), nn.GRU(4, 3, batch_first=True), nn.Dropout()]
)
def test_modules_that_keep_samples_apart_are_not_told(inner):
    model = nn.Sequential(inner).eval()
    x = torch.randn(FEW, 4, generator=torch.manual_seed(0))
    if isinstance(inner, nn.GRU):
        x = x.unsqueeze(1)
    with torch.no_grad():
        assert mixed_samples(model, {"input": x}, {"input": x[-FEWER:]}) is None


class Noise(nn.Module):
    """Gives rounding noise: the norm of rows that differ from a constant by rounding alone."""

    def __init__(self, mixing):
        super().__init__()
        self.mixing, self.norm = mixing, nn.LayerNorm(64, elementwise_affine=False)
        self.first = nn.Linear(4, 64, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([0.1, 0.7, -0.3, 1.9]).expand(64, 4))

    def forward(self, x):
        # Rows of 64 equal numbers, rounded otherwise in a batch of another size.
        x = self.first(x)
        ulp = torch.finfo(x.dtype).eps * len(x)
        noise = self.norm(x * (1 + ulp * torch.linspace(0, 1, 64).to(x)))
        return noise + 1e-3 * x.mean() if self.mixing else noise


@pytest.mark.parametrize("mixing", [False, True])
def test_rounding_noise_around_zero_mixes_no_samples(mixing):
    model = Noise(mixing).eval()
    x = torch.randn(FEW, 4, generator=torch.manual_seed(0))
    with torch.no_grad():
        found = mixed_samples(model, {"x": x}, {"x": x[-FEWER:]})
    assert (found is not None) == mixing


@pytest.mark.parametrize(
    ("function", "low", "high"),
    [(nn.Sigmoid(), 0, 1), (nn.Tanh(), -1, 1), (nn.ReLU(), 0, None), (nn.Softplus(), 0, None)],
)
def test_targets_beyond_the_range_of_the_last_function_are_counted(function, low, high):
    model = nn.Sequential(nn.Linear(2, 1), function).eval()
    inputs = {"input": torch.randn(4, 2)}
    inside = torch.linspace(low, high or 9, 8)
    with torch.no_grad():
        assert out_of_reach(model, inputs, inside) is None
        found = out_of_reach(model, inputs, torch.cat([inside, torch.tensor([-3.0, -2.0])]))
        assert found is not None
        assert "2 of 10 samples" in found.told
        assert (out_of_reach(model, inputs, torch.tensor([50.0])) is None) == (high is None)


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        ({"name": "odd", "type": "Softmax", "dim": 0}, "'odd' (Softmax) mixes the samples"),
        ({"name": "odd", "type": "Sigmoid"}, "'odd' (Sigmoid) gives values from 0 to 1"),
    ],
)
def test_a_run_says_both_before_it_trains(small_config, tmp_path, heard, layer, said):
    model = {"layers": [LINEAR, layer, {"name": "last", "type": "Identity"}]}
    build_trainer(small_config(model=model), tmp_path / "run", tracker=heard).fit()
    assert any(said in line for line in heard.said)
