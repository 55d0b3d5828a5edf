"""A certificate finds every forgery of weights, base and statement, and names what is forged."""

import json
import random
import subprocess
import sys

import pytest
from safetensors.torch import load_file, save_file

from finetune.export.certified_files import check_certificate
from finetune.export.exporting import export_run

FILE = {"path": "base.safetensors"}
MODEL = {
    "layers": [
        {
            "name": "body",
            "type": "Linear",
            "out_features": 6,
            "weights": {"path": "base.safetensors"},
        },
        {"name": "twin", "type": "Linear", "out_features": 6},
        {"name": "act", "type": "Tanh"},
        {"name": "head", "type": "Linear", "out_features": 3},
    ]
}


@pytest.fixture(scope="module")
def certified(tmp_path_factory):
    """Train a small network over weights of a file; return certificate, base and weights."""
    import torch
    import yaml

    from finetune import build_trainer, load_config
    from finetune.export.certifying import certificate_of

    folder = tmp_path_factory.mktemp("certified")
    torch.manual_seed(5)
    save_file({"weight": torch.randn(6, 4), "bias": torch.randn(6)}, folder / "base.safetensors")
    config = {
        "model": MODEL,
        "data": {"source": {"type": "random", "samples": 40, "features": 4, "targets": 3}},
        "task": {"type": "regression"},
        "freeze": ["body", "twin"],
        "optimizer": {"type": "SGD", "lr": 0.05},
        "train": {"steps": 3, "batch_size": 8},
        "cache": "off",
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(config))
    build_trainer(load_config(folder / "c.yaml"), folder / "run").fit(quiet=True)
    export_run(folder / "run", "safetensors", folder / "exported", check=4)
    (folder / "certificate.json").write_text(certificate_of(folder / "run"))
    return folder


@pytest.fixture
def case(certified, tmp_path):
    """Copies of certificate, base and weights that a test may forge."""
    for name, source in (
        ("certificate.json", "certificate.json"),
        ("base.safetensors", "base.safetensors"),
        ("model.safetensors", "exported/model.safetensors"),
    ):
        (tmp_path / name).write_bytes((certified / source).read_bytes())
    return tmp_path


def faults(folder):
    done = check_certificate(
        folder / "certificate.json",
        base=folder / "base.safetensors",
        weights=folder / "model.safetensors",
    )
    return dict(done.faults)


def test_a_certificate_holds_for_what_it_was_made_of(case):
    assert faults(case) == {}
    document = json.loads((case / "certificate.json").read_text())
    assert document["_type"] == "https://in-toto.io/Statement/v1"
    assert {one["name"] for one in document["subject"]} == {"weights", "certificate"}
    tensors = {one["name"]: one for one in document["predicate"]["tensors"]}
    assert tensors["body.weight"]["base"] == tensors["body.weight"]["final"]
    assert tensors["head.weight"]["base"] != tensors["head.weight"]["final"]
    assert tensors["body.weight"]["base_name"] == "weight"


def flip(path, draw, names):
    """Flip one bit of a tensor of a file; return the tensor's name."""
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    name = draw.choice(sorted(set(header) & set(names)))
    begins, ends = header[name]["data_offsets"]
    content[8 + length + draw.randrange(begins, ends)] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    return name


WEIGHTS = [f"{layer}.{part}" for layer in ("body", "twin", "head") for part in ("weight", "bias")]


def bit_in_weights(folder, draw):
    return {f"tensor {flip(folder / 'model.safetensors', draw, WEIGHTS)}"}


def bit_in_base(folder, draw):
    return {f"tensor body.{flip(folder / 'base.safetensors', draw, ['weight', 'bias'])}"}


def swapped(folder, draw):
    tensors = load_file(folder / "model.safetensors")
    one, other = draw.choice([("body.bias", "twin.bias")])
    tensors[one], tensors[other] = tensors[other].clone(), tensors[one].clone()
    save_file(tensors, folder / "model.safetensors")
    return {f"tensor {one}", f"tensor {other}"}


def another_base(folder, draw):
    tensors = load_file(folder / "base.safetensors")
    name = draw.choice(sorted(tensors))
    tensors[name] = tensors[name] * (1 + draw.random())
    save_file(tensors, folder / "base.safetensors")
    return {f"tensor body.{name}"}


def renamed_or_new(folder, draw):
    tensors = load_file(folder / "model.safetensors")
    name = draw.choice(sorted(tensors))
    tensors[f"{name}_{draw.randrange(9)}"] = tensors.pop(name)
    new = (tensors.keys() - set(WEIGHTS)).pop()
    save_file(tensors, folder / "model.safetensors")
    return {f"tensor {name}", f"tensor {new}"}


def cut_weights(folder, draw):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    keep = draw.randrange(8, len(content))
    path.write_bytes(content[:keep])
    if keep < 8 + length:
        return {"weights"}
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    return {
        f"tensor {name}"
        for name, one in header.items()
        if 8 + length + one["data_offsets"][1] > keep
    }


def edited(section, change):
    def forge(folder, draw):
        path = folder / "certificate.json"
        document = json.loads(path.read_text())
        change(document["predicate"][section], draw)
        path.write_text(json.dumps(document))
        return {section}

    return forge


def edit_of_state(plan, draw):
    draw.choice(plan["phases"][0]["states"])["state"] = draw.choice(["half", "thawed"])


def edit_of_proof(proof, draw):
    phase = proof["phases"][0]
    phase["parameters"] += draw.randrange(1, 99)


def edit_of_config(config, draw):
    config["seed"] = draw.randrange(1, 2**20)


def edit_of_data(data, draw):
    data["sizes"]["train"] += draw.randrange(1, 99)


def digests_made_anew(folder, draw):
    """Edit the plan so that a frozen tensor seems to be trained, and make all digests anew."""
    from finetune.export.statement import digest_of_json

    path = folder / "certificate.json"
    document = json.loads(path.read_text())
    predicate = document["predicate"]
    name = draw.choice(["body.weight", "body.bias", "twin.weight", "twin.bias"])
    predicate["plan"]["ever_trained"].append(name)
    predicate["digests"]["plan"] = digest_of_json(predicate["plan"])
    document["subject"][1]["digest"] = {"sha256": digest_of_json(predicate["digests"])}
    path.write_text(json.dumps(document))
    return {f"tensor {name}"}


FORGERIES = {
    "a bit in the weights": bit_in_weights,
    "a bit in the base": bit_in_base,
    "swapped tensors": swapped,
    "another base": another_base,
    "a renamed tensor": renamed_or_new,
    "cut weights": cut_weights,
    "an edited plan": edited("plan", edit_of_state),
    "an edited proof": edited("proof", edit_of_proof),
    "an edited config": edited("config", edit_of_config),
    "edited data": edited("data", edit_of_data),
    "digests made anew": digests_made_anew,
}


def test_a_hundred_forgeries_are_found_and_named(case, certified):
    kinds = list(FORGERIES)
    originals = {path: path.read_bytes() for path in case.iterdir()}
    missed = []
    for number in range(110):
        for path, content in originals.items():
            path.write_bytes(content)
        kind = kinds[number % len(kinds)]
        forged = FORGERIES[kind](case, random.Random(number))
        found = set(faults(case))
        if not forged or not forged <= found or (kind != "digests made anew" and found != forged):
            missed.append((kind, number, forged, found))
    assert missed == []


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_a_cut_certificate_is_refused(case, command_line, keep):
    path = case / "certificate.json"
    content = path.read_bytes()
    path.write_bytes(content[: keep if keep == int(keep) else int(keep * len(content))])
    done = command_line("certify", "--check", path)
    assert done.code == 2
    assert "certificate.json: not JSON" in done.err


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(_type="https://example.org"),
        lambda d: d.pop("subject"),
        lambda d: d["predicate"].pop("plan"),
        lambda d: d["predicate"].update(tensors=[{"name": 3}]),
        lambda d: d.update(predicate=[]),
        lambda d: d["predicate"].update(proof=[1], plan="no"),
        lambda d: d["predicate"]["tensors"][0].update(shape=[float("inf")]),
        lambda d: d["predicate"]["tensors"][0].update(base_name=[]),
        lambda d: d["predicate"]["tensors"][0].update(dtype={}),
        lambda d: d["predicate"]["tensors"][0].update(is_trained="no"),
    ],
)
def test_a_forged_form_is_told_and_no_traceback(case, command_line, change):
    path = case / "certificate.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    base = case / "base.safetensors"
    assert command_line("certify", "--check", path, "--base", base).code == 2


def test_half_a_number_in_a_file_is_a_fault_of_its_tensor(case):
    path = case / "model.safetensors"
    header = b'{"body.bias": {"dtype": "F16", "shape": [6], "data_offsets": [0, 11]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(11))
    assert faults(case)["tensor body.bias"] == "is cut off in 'model.safetensors' (weights)"


def test_a_file_of_another_network_is_one_fault(case):
    other = case / "other.safetensors"
    some = [*load_file(case / "model.safetensors").values()][:3]
    save_file({f"other.{number}": one for number, one in enumerate(some)}, other)
    found = check_certificate(case / "certificate.json", base=other, weights=other)
    assert found.faults == (
        ("base", "'other.safetensors' has none of the 2 tensors by name"),
        ("weights", "'other.safetensors' has none of the 6 tensors by name"),
    )
    assert found.compared == {"base": 0, "weights": 0}


def test_two_layers_that_begin_with_one_tensor_of_a_file_are_both_compared(case):
    path = case / "certificate.json"
    document = json.loads(path.read_text())
    tensors = document["predicate"]["tensors"]
    (first,) = (one for one in tensors if one["name"] == "body.bias")
    again = first | {"name": "copy.bias", "exported": "copy.bias"}
    first["base"] = first["base"] | {"sha256": "0" * 64}
    tensors.append(again)
    path.write_text(json.dumps(document))
    found = check_certificate(path, base=case / "base.safetensors").faults
    assert ("tensor body.bias", "differs in 'base.safetensors' (base)") in found
    assert "tensor copy.bias" not in dict(found)


def test_the_command_tells_each_tensor_that_fails(case, command_line):
    weights = case / "model.safetensors"
    arguments = ("certify", "--check", case / "certificate.json", "--weights", weights)
    done = command_line(*arguments)
    assert done.code == 0
    assert done.out.splitlines() == [
        "certificate: holds for 6 tensors of the weights, of which 4 are frozen and bit-identical",
        "base: not compared",
        "weights: 6 tensors compared",
        "signature: not checked",
    ]
    flip(weights, random.Random(1), ["head.bias"])
    done = command_line(*arguments)
    assert done.code == 2
    assert "tensor head.bias: differs in 'model.safetensors' (weights)" in done.out
    assert "certificate: 1 fault\n" in done.out
    found = json.loads(command_line(*arguments, "--json").out)
    assert found["faults"] == [
        {"name": "tensor head.bias", "fault": "differs in 'model.safetensors' (weights)"}
    ]


def test_options_without_effect_are_refused(case, command_line):
    done = command_line("certify", "--check", case / "certificate.json", "--out", case / "x.json")
    assert (done.code, "--out: has no effect with --check" in done.err) == (2, True)
    done = command_line("certify", case, "--weights", case / "model.safetensors")
    assert (done.code, "--weights: has an effect only" in done.err) == (2, True)


def test_a_check_loads_no_torch(case):
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from finetune.export.certified_files import check_certificate\n"
        "done = check_certificate(Path('certificate.json'), base=Path('base.safetensors'), "
        "weights=Path('model.safetensors'))\n"
        "print(done.faults, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=case, capture_output=True, text=True, check=True
    )
    assert done.stdout == "() False\n"
