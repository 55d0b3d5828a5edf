"""Run the code of model cards in a process in which finetune cannot be imported."""

import json
import os
import subprocess
import sys

_CHILD = '''
import json, os, re, sys, warnings
sys.modules["finetune"] = None  # makes every import of it fail
import numpy, soundfile, torch
from safetensors.torch import load_file

def difference(found, wanted):
    size = wanted.reshape(len(wanted), -1).abs().amax(1).clamp(min=1)
    return float(((found - wanted).reshape(len(wanted), -1).abs().amax(1) / size).max())

def outputs(names, kind, inputs):
    if kind == "onnx":
        session = names["session"]
        taken = [one.name for one in session.get_inputs()]
        given = {name: inputs[name].numpy() for name in taken}
        return torch.from_numpy(session.run(None, given)[0])
    if kind in ("safetensors", "delta"):
        return plain(names["network"], inputs)
    if kind == "timm":
        return names["network"](inputs["image"])
    return names["network"](**inputs)

def plain(network, inputs):
    """Call the layers by hand: an encoder and its mean, then each layer after the other."""
    if not isinstance(network, torch.nn.ModuleDict):
        found = network(**inputs) if "input_ids" in inputs else network(*inputs.values())
        return getattr(found, "logits", found)
    layers = dict(network.items())
    value = None
    if "encoder" in layers:
        hidden = layers.pop("encoder")(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        value = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
    else:
        (value,) = inputs.values()
    for place, layer in enumerate(layers.values()):
        value = layer(torch.tanh(value) if place and "encoder" not in network else value)
    return value

def of_media(network, kind, files, said):
    """Return how far a pipeline is from the predictor: largest difference, 1 for other masks."""
    largest = 0.0
    for path, wanted in zip(files, said):
        if kind == "hf masks":
            found = {one["label"]: torch.tensor(numpy.array(one["mask"])) > 0
                     for one in network(path)}
            mask = torch.tensor(wanted)
            names = ["dark", "bright"]
            apart = [(found.get(n, torch.zeros_like(mask)).bool() != (mask == c)).any()
                     for c, n in enumerate(names)]
            largest = max(largest, float(torch.stack(apart).any()))
            continue
        if kind == "hf sounds":
            wave = soundfile.read(path, dtype="float32")[0]
            path = numpy.pad(wave[:1600], (0, max(0, 1600 - len(wave))))
        scores = {one["label"]: one["score"] for one in network(path)}
        assert scores.keys() == wanted.keys()
        largest = max(largest, *(abs(scores[name] - wanted[name]) for name in wanted))
    return largest

told = {}
for place, kind, samples in json.loads(sys.argv[1]):
    os.chdir(place)
    card = open("README.md", encoding="utf-8").read()
    code = re.search(r"```python\\n(.*?)```", card, re.S)[1]
    assert len(code.splitlines()) <= 16, code
    names = {}
    exec(code, names)
    if kind in ("hf images", "hf sounds", "hf masks"):
        told[place] = of_media(names["network"], kind, **json.load(open(samples)))
        continue
    if kind == "hf":
        pairs = json.load(open(samples))
        scores = names["network"](pairs["texts"], truncation=True, top_k=None)
        found = torch.tensor([[{one["label"]: one["score"] for one in each}[name]
                               for name in pairs["classes"]] for each in scores])
        told[place] = difference(found, torch.tensor(pairs["probabilities"]))
        continue
    if kind == "sentences":
        pairs = json.load(open(samples))
        found = torch.from_numpy(names["network"].encode(pairs["texts"]))
        told[place] = difference(found, torch.tensor(pairs["outputs"]))
        continue
    saved = load_file(samples)
    numbers = sorted({name.partition("/")[0] for name in saved})
    largest = 0.0
    with torch.no_grad():
        for number in numbers:
            own = {name.partition("/")[2]: t for name, t in saved.items()
                   if name.startswith(f"{number}/")}
            wanted = own.pop("output")
            largest = max(largest, difference(outputs(names, kind, own), wanted))
    told[place] = largest
print(json.dumps(told))
'''


def fresh_process(entries):
    """Run the card of each export; return the largest difference by folder.

    Args:
        entries: Folder, kind and file of samples of each export.
    """
    return list(run_apart(_CHILD, entries).values())


def run_apart(code, entries):
    """Run code with entries as its argument, without this package; return the JSON it prints."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, json.dumps([list(map(str, one)) for one in entries])],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env=clean | {"HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def save_passes(passes, path):
    """Write inputs and outputs of passes, each under its number."""
    from safetensors.torch import save_file

    tensors = {}
    for number, one in enumerate(passes):
        tensors |= {f"{number}/{name}": t.contiguous() for name, t in one.inputs.items()}
        tensors[f"{number}/output"] = one.outputs["output"].contiguous()
    save_file(tensors, path)
    return path
