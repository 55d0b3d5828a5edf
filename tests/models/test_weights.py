"""Loading pretrained tensors: what fits, what does not, and what is never loaded."""

import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from finetune.config.model import WeightsConfig
from finetune.errors import FinetuneError, ModelError
from finetune.models.loaded_values import not_finite
from finetune.models.pretrained import load_weights

KEY = ("model", "weights")


class Exploit:
    def __reduce__(self):
        return (print, ("code of the file ran",))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


def two_layers():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def load(module, path, **more):
    return load_weights(module, WeightsConfig(path=str(path), **more), key=KEY)


@pytest.mark.parametrize("ending", ["safetensors", "pt", "pth", "bin"])
@pytest.mark.parametrize("under", [None, "state_dict", "model"])
def test_tensors_come_bit_equal_from_any_format(tmp_path, same_parameters, ending, under):
    source, target = two_layers(), two_layers()
    path = tmp_path / f"weights.{ending}"
    if ending == "safetensors":
        save_file(source.state_dict(), path)
    else:
        content = source.state_dict()
        torch.save(content if under is None else {under: content, "epoch": 3}, path)
    report = load(target, path)
    assert same_parameters(source, target)
    assert report.complete
    assert str(report) == f"7 tensors loaded from weights.{ending}"


def test_the_module_keeps_its_own_element_type(tmp_path):
    path = tmp_path / "half.safetensors"
    save_file({"weight": torch.full((2, 2), 0.5, dtype=torch.float16)}, path)
    module = nn.Linear(2, 2, bias=False)
    load(module, path)
    assert torch.equal(module.weight, torch.full((2, 2), 0.5))


@pytest.mark.parametrize(
    ("rename", "given"),
    [
        ({"module.": ""}, "module.0.weight"),
        ({"": "0."}, "weight"),
        ({"a.b": "0", "a.": "9."}, "a.b.weight"),
    ],
)
def test_the_first_beginning_that_fits_is_renamed(tmp_path, rename, given):
    others = {"a.x.weight": torch.ones(1)} if "a." in rename else {}
    save_file({given: torch.ones(2, 2), **others}, tmp_path / "w.safetensors")
    module = nn.Sequential(nn.Linear(2, 2, bias=False))
    report = load(module, tmp_path / "w.safetensors", rename=rename, strict=False)
    assert torch.equal(module[0].weight, torch.ones(2, 2))
    assert report.loaded == ("0.weight",)
    assert report.unexpected == (("9.x.weight",) if others else ())


def misfitting(path):
    content = two_layers().state_dict()
    content["0.weight"] = torch.zeros(9, 3)
    content["extra"] = content.pop("1.bias")
    save_file(content, path)
    return path


def test_a_strict_misfit_names_what_is_missing_unexpected_and_mismatched(tmp_path):
    with pytest.raises(ModelError) as caught:
        load(two_layers(), misfitting(tmp_path / "w.safetensors"))
    assert caught.value.key == KEY
    assert str(caught.value) == (
        "'w.safetensors' does not fit: 1 missing (1.bias); 1 unexpected (extra); "
        "1 mismatched (0.weight); 0.weight is (9, 3), wants (4, 3)\n"
        "    strict: false loads what fits"
    )


def test_without_strict_what_fits_is_loaded_and_the_rest_told(tmp_path):
    report = load(two_layers(), misfitting(tmp_path / "w.safetensors"), strict=False)
    assert str(report) == (
        "5 tensors loaded from w.safetensors; 1 missing: 1.bias; "
        "1 unexpected: extra; 1 mismatched: 0.weight"
    )


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        (("module.0.weight", "module.0.bias"), 'try rename: {"module.": ""}'),
        (("weight", "bias"), 'try rename: {"": "0."}'),
        (("fc.weight", "fc.bias"), 'try rename: {"fc.": "0."}'),
        (("strange",), None),
    ],
)
def test_weights_of_which_nothing_fits_are_refused_even_without_strict(tmp_path, names, hint):
    save_file({name: torch.zeros(2) for name in names}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match="has nothing that fits") as caught:
        load(nn.Sequential(nn.Linear(2, 2)), tmp_path / "w.safetensors", strict=False)
    assert caught.value.hint == hint


def test_a_rename_that_fits_no_name_is_refused(tmp_path):
    save_file(nn.Linear(2, 2).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"no name of the file begins with 'modul\.'"):
        load(nn.Linear(2, 2), tmp_path / "w.safetensors", rename={"modul.": ""})


def test_a_rename_that_makes_two_tensors_one_is_refused(tmp_path):
    save_file({"a.bias": torch.ones(2), "bias": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match="two tensors of the file become 'bias'"):
        load(nn.Linear(2, 2), tmp_path / "w.safetensors", rename={"a.": ""}, strict=False)


def test_a_tied_tensor_is_not_missing_when_one_of_its_names_is_there(tmp_path):
    save_file({"embed.weight": torch.ones(5, 3)}, tmp_path / "w.safetensors")
    module = Tied()
    assert load(module, tmp_path / "w.safetensors").complete
    assert torch.equal(module.head.weight, torch.ones(5, 3))


def test_the_step_counter_of_a_batch_norm_is_never_missing(tmp_path):
    content = two_layers().state_dict()
    del content["1.num_batches_tracked"]
    save_file(content, tmp_path / "w.safetensors")
    assert load(two_layers(), tmp_path / "w.safetensors").complete


def write_exploit(path):
    torch.save({"weight": Exploit()}, path)


def write_pickle(path):
    path.write_bytes(pickle.dumps({"weight": Exploit()}))


def write_module(path):
    torch.save(nn.Linear(2, 2), path)


def write_number(path):
    torch.save({"weight": torch.zeros(2, 2), "epoch": 3}, path)


def write_list(path):
    torch.save([torch.zeros(2)], path)


def write_text(path):
    path.write_text("not weights at all")


def write_nothing(path):
    path.touch()


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (write_exploit, "holds more than tensors"),
        (write_pickle, "holds more than tensors"),
        (write_module, "holds more than tensors"),
        (write_number, "'epoch' is a int"),
        (write_list, "holds a list, not tensors by name"),
        (write_text, "is not loaded"),
        (write_nothing, "is not a readable weights file"),
    ],
)
def test_a_file_that_holds_more_than_tensors_is_not_loaded(tmp_path, capfd, write, said):
    write(tmp_path / "w.pt")
    with pytest.raises(ModelError, match=said):
        load(nn.Linear(2, 2), tmp_path / "w.pt", strict=False)
    assert "ran" not in capfd.readouterr().out


@pytest.mark.parametrize("path", ["gone.pt", "gone.safetensors", "package:torch/gone.pt"])
def test_a_missing_file_is_one_clear_error(path):
    with pytest.raises(FinetuneError, match="no weights file"):
        load(nn.Linear(2, 2), path)


def test_a_broken_safetensors_file_is_one_clear_error(tmp_path):
    (tmp_path / "w.safetensors").write_text("garbage")
    with pytest.raises(ModelError, match="is not a readable weights file"):
        load(nn.Linear(2, 2), tmp_path / "w.safetensors")


def test_layer_weights_and_model_weights_are_both_loaded_and_reported(tmp_path, build):
    save_file({"weight": torch.ones(4, 64), "bias": torch.ones(4)}, tmp_path / "a.safetensors")
    save_file({"old.bias": torch.full((4,), 2.0)}, tmp_path / "b.safetensors")
    network = build(
        {"type": "Flatten"},
        {
            "name": "fc",
            "type": "Linear",
            "out_features": 4,
            "weights": {"path": str(tmp_path / "a.safetensors")},
        },
        weights={
            "path": str(tmp_path / "b.safetensors"),
            "rename": {"old.": "fc."},
            "strict": False,
        },
    )
    assert torch.equal(network.fc.weight, torch.ones(4, 64))
    assert torch.equal(network.fc.bias, torch.full((4,), 2.0))
    assert [len(report.loaded) for report in network.weights_reports] == [2, 1]


@pytest.mark.parametrize(
    ("value", "named"),
    {
        "NaN": (torch.nan, ("weight",)),
        "infinity": (torch.inf, ("weight",)),
        "large": (3e38, ()),
    }.values(),
    ids=["NaN", "infinity", "large values whose sum overflows"],
)
def test_parameters_that_are_not_finite_are_named(value, named):
    layer = nn.Linear(4, 4)
    with torch.no_grad():
        layer.weight[:2] = value
    assert not_finite(layer, ["weight", "bias"]) == named
