"""Segmentation from files to files: masks that are read, refused, learnt and written."""

import csv
import io
import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from finetune import build_trainer, load_config, load_predictor
from finetune.data.media.pixel_classes import IGNORED
from finetune.data.prepare import open_data
from finetune.errors import DataError, FinetuneError
from finetune.outfolder import folder_beside, pictures_in
from finetune.train.after.trained import evaluate_run, evaluated, load_run

LAYERS = [
    {"name": "conv", "type": "Conv2d", "out_channels": 8, "kernel_size": 3, "padding": 1},
    {"name": "relu", "type": "ReLU"},
    {"name": "head", "type": "Conv2d", "out_channels": "classes", "kernel_size": 1},
]
HALF = [LAYERS[0] | {"stride": 2}, *LAYERS[1:]]


def grey(mask, path):
    Image.fromarray(mask).save(path)


def with_palette(mask, path):
    image = Image.fromarray(mask)
    image.putpalette([9, 9, 9, 200, 30, 30] * 128)
    image.save(path)


def write_data(folder, *, save=grey, count=24, size=(8, 12), numbers=(0, 1), sizes=()):
    """Write images with a bright half, and the masks of these; return rows of a table."""
    draw, rows = np.random.default_rng(0), []
    for number in range(count):
        height, width = sizes[number % len(sizes)] if sizes else size
        is_bright = np.zeros((height, width), bool)
        cut = int(draw.integers(2, width - 2))
        is_bright[:, :cut] = True
        noise = draw.integers(0, 40, (height, width))
        pixels = (np.where(is_bright, 200, 20) + noise).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        mask = np.where(is_bright, numbers[1], numbers[0]).astype(np.uint8)
        save(mask, folder / f"{number}_mask.png")
        rows.append([f"{number}.png", f"{number}_mask.png"])
    return rows


def write_table(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["image", "mask"], *rows])
    return path


@pytest.fixture
def config(tmp_path):
    """Write data and the config of a small run on them; `how` goes to `write_data`."""

    def write(task=(), layers=LAYERS, transforms=None, train=(), freeze=None, **how):
        write_table(tmp_path / "data.csv", write_data(tmp_path, **how))
        whole = {
            "seed": 0,
            "model": {"layers": layers},
            "data": {
                "source": {"type": "csv", "path": "data.csv"},
                "inputs": ["image"],
                "target": "mask",
                "split": {"validation": 0.25},
            },
            "task": {"type": "segmentation", "classes": ["dark", "bright"]} | dict(task),
            "optimizer": {"type": "AdamW", "lr": 0.05},
            "train": {"epochs": 12, "batch_size": 6} | dict(train),
        }
        whole["task"] = {key: value for key, value in whole["task"].items() if value != "left out"}
        if transforms is not None:
            whole["data"]["transforms"] = transforms
        if freeze is not None:
            whole["freeze"] = freeze
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(whole))
        return path

    return write


def trained(path, run="run"):
    trainer = build_trainer(load_config(path), path.parent / run)
    trainer.fit(quiet=True)
    return trainer


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("save", [grey, with_palette])
def test_masks_of_files_are_learnt_and_predicted_as_files(config, call, tmp_path, save):
    """Images of two sizes are resized with their masks; each prediction has its own size."""
    resize = {"type": "Resize", "size": [8, 12], "with": ["mask"]}
    flip = {"type": "RandomVerticalFlip", "with": ["mask"]}
    path = config(save=save, sizes=[(8, 12), (16, 20)], transforms=[resize, flip])
    trainer = trained(path)
    assert trainer.progress.metrics["validation/mean_iou"] > 0.9
    out = tmp_path / "said.jsonl"
    told = call("predict", tmp_path / "run", tmp_path / "data.csv", "--out", out).err
    assert f"24 predictions in {out}, their masks in {tmp_path / 'said_masks'}" in told
    rows = rows_of(out)
    assert rows[0]["mask"] == "said_masks/predicted_000001_data.png"
    assert [*rows[0]] == ["input", "image", "input/mask", "mask", "shares"]
    assert [*rows[0]["shares"]] == ["dark", "bright"]
    for number, row in enumerate(rows):
        with (
            Image.open(tmp_path / row["mask"]) as mask,
            Image.open(tmp_path / f"{number}.png") as own,
        ):
            assert mask.size == own.size
            values = np.asarray(mask)
        assert row["shares"]["bright"] == pytest.approx(float((values == 1).mean()))
    records = load_predictor(tmp_path / "run")([str(tmp_path / f"{n}.png") for n in range(24)])
    assert records[1].mask.shape == (16, 20)
    assert np.array_equal(records[23].mask.numpy(), values)


def test_what_was_predicted_is_evaluated_as_right(config, call, tmp_path):
    """The masks that are written are masks that are read, with the numbers of the training."""
    path = config(
        {"classes": "left out", "ignore_index": None}, numbers=(7, 255), train={"epochs": 1}
    )
    trained(path)
    call("predict", tmp_path / "run", tmp_path / "data.csv", "--out", tmp_path / "said.jsonl")
    rows = rows_of(tmp_path / "said.jsonl")
    assert set(rows[0]["shares"]) == {"7", "255"}
    again = [[f"{number}.png", row["mask"]] for number, row in enumerate(rows)]
    table = write_table(tmp_path / "again.csv", again)
    told = call("eval", tmp_path / "run", table, "--json").out
    assert json.loads(told)["metrics"]["mean_iou"] == 1, told


def test_predictions_in_csv_name_their_masks_and_shares(config, call, tmp_path):
    trained(config(train={"epochs": 1}))
    call("predict", tmp_path / "run", tmp_path / "0.png", "--out", tmp_path / "said.csv")
    with (tmp_path / "said.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert [*row] == ["input", "mask", "share/dark", "share/bright"]
    assert row["mask"] == "said_masks/predicted_000001_0.png"
    assert (tmp_path / row["mask"]).is_file()


def test_without_a_file_the_shares_alone_are_written_and_that_is_told(config, call, tmp_path):
    trained(config(train={"epochs": 1}))
    shown = call("predict", tmp_path / "run", tmp_path / "0.png")
    assert [*json.loads(shown.out)] == ["input", "shares"]
    assert "masks are written as PNG beside the file that --out names" in shown.err


def test_a_folder_of_masks_is_replaced_and_one_of_other_files_is_not(
    config, call, command_line, tmp_path
):
    trained(config(train={"epochs": 1}))
    ask = ("predict", tmp_path / "run", tmp_path / "data.csv", "--out", tmp_path / "said.jsonl")
    call(*ask)
    masks = tmp_path / "said_masks"
    before = {file.name: file.read_bytes() for file in masks.iterdir()}
    (masks / "predicted_000001_data.png").write_bytes(b"of an earlier run")
    call(*ask)
    assert {file.name: file.read_bytes() for file in masks.iterdir()} == before
    (masks / "notes.txt").write_text("mine")
    refused = command_line(*ask)
    assert refused.code == 2
    assert "holds 'notes.txt', which finetune has not made" in refused.err
    assert (masks / "notes.txt").read_text() == "mine"
    assert len([*masks.iterdir()]) == 25
    assert not [*tmp_path.glob(".*")]


def test_a_folder_that_holds_an_input_is_not_replaced(config, command_line, tmp_path):
    trained(config(train={"epochs": 1}))
    folder = tmp_path / "said_masks"
    folder.mkdir()
    (tmp_path / "0.png").rename(folder / "predicted_000001_0.png")
    asked = (folder / "predicted_000001_0.png", "--out", tmp_path / "said.jsonl")
    refused = command_line("predict", tmp_path / "run", *asked)
    assert refused.code == 2
    assert "would replace" in refused.err
    assert (folder / "predicted_000001_0.png").is_file()


def test_logits_of_another_size_are_resized_and_that_is_told(config, call, tmp_path):
    path = config(layers=HALF)
    told = call("plan", path)
    assert (told.out + told.err).count("the network gives logits of (4, 6) pixels") == 1
    assert "the masks are of (8, 12): losses and metrics take" in told.out + told.err
    assert trained(path).progress.metrics["validation/mean_iou"] > 0.7


@pytest.mark.parametrize("name", ["000001.png", "000001_cat.png"])
def test_a_folder_of_the_users_masks_is_not_replaced_however_they_are_numbered(tmp_path, name):
    folder = folder_beside(tmp_path / "said.jsonl", "mask")
    folder.mkdir()
    (folder / name).write_bytes(b"drawn by hand")
    with pytest.raises(FinetuneError, match=f"holds '{name}'"), pictures_in(folder, []) as put:
        put("0.png", b"made")
    assert (folder / name).read_bytes() == b"drawn by hand"


def test_palettes_that_number_colours_otherwise_are_told(tmp_path, small_config):
    red, green, black = [200, 0, 0], [0, 200, 0], [0, 0, 0]
    palettes = [[*black, *red, *green], [*black, *red], [*black, *green], [*black, *red]]

    def told(palettes):
        remaining = iter(palettes)

        def save(mask, path):
            image = Image.fromarray(mask)
            image.putpalette(next(remaining))
            image.save(path)

        rows = write_data(tmp_path, save=save, count=4)
        source = {"type": "csv", "path": str(write_table(tmp_path / "pairs.csv", rows))}
        task = {"type": "segmentation", "classes": ["floor", "wall", "door"]}
        data = {"source": source, "inputs": ["image"], "target": "mask"}
        config = small_config(data=data, task=task)
        notes = open_data(config.data, config.task, seed=0, trust=()).facts.notes
        return [note for note in notes if "palette" in note]

    [note] = told(palettes)
    assert note.startswith("column 'mask': 1 of 4 palettes of masks have other colours than that")
    assert "'%s': number 1 is #00c800 there, and #c80000" % (tmp_path / "2_mask.png") in note
    # One that ends earlier, or is filled up with black, numbers its colours alike.
    assert told([palettes[0], palettes[1], [*black, *red, *black * 9], palettes[0]]) == []


def test_numbers_that_masks_hold_are_the_classes_if_none_are_named(config, tmp_path):
    path = config({"classes": "left out", "ignore_index": None}, numbers=(3, 255))
    trainer = trained(path)
    assert trainer.progress.metrics["validation/mean_iou"] > 0.9
    assert json.loads((tmp_path / "run" / "data.json").read_text())["classes"] == ["3", "255"]


def spoilt(tmp_path, number, change):
    """Change the mask of a sample."""
    path = tmp_path / f"{number}_mask.png"
    with Image.open(path) as image:
        mask = change(np.asarray(image).copy())
    grey(mask, path)


def with_seven(mask):
    mask[0, 0] = 7
    return mask


FAULTS = {
    "a number of no class": (
        lambda tmp_path: [spoilt(tmp_path, n, with_seven) for n in range(24)],
        r"_mask\.png' has the number 7 in a pixel, which is no class: classes are 0, 1, "
        "ignored is 255",
    ),
    "another size": (
        lambda tmp_path: [spoilt(tmp_path, n, lambda mask: mask[:6]) for n in range(24)],
        r"_mask\.png' is of \(6, 12\) pixels, its image '.*\.png' of \(8, 12\), in row",
    ),
    "colours": (
        lambda tmp_path: [
            Image.fromarray(np.full((8, 12, 3), (1, 2, 3), np.uint8)).save(path)
            for path in tmp_path.glob("*_mask.png")
        ],
        "its pixels are colours",
    ),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_mask_that_does_not_fit_is_told_with_its_file(config, tmp_path, kind):
    path = config()
    spoil, message = FAULTS[kind]
    spoil(tmp_path)
    with pytest.raises(DataError, match=message):
        trained(path)


def test_masks_of_one_class_are_refused_with_the_key_that_may_be_wrong(config):
    path = config({"classes": "left out"}, numbers=(0, 255))
    with pytest.raises(DataError, match="all 0 but for ignored ones of 255") as error:
        trained(path)
    assert error.value.hint == "if 255 is a class: task: {ignore_index: null}"


def test_texts_are_no_masks(config, tmp_path):
    path = config()
    write_table(tmp_path / "data.csv", [[f"{n}.png", "cat"] for n in range(24)])
    with pytest.raises(
        DataError, match=r"column 'mask' holds 'cat' in .*; a mask is an image file"
    ):
        trained(path)


def test_a_classification_of_masks_is_told_of_the_task_that_takes_them(config):
    flip = {"type": "RandomHorizontalFlip", "with": ["mask"]}
    path = config({"type": "classification", "classes": "left out"}, transforms=[flip])
    with pytest.raises(DataError, match="holds masks, which task 'classification'") as error:
        trained(path)
    assert "task: {type: segmentation}" in error.value.hint


def arrays(tmp_path, masks, images=None):
    """The source of images and masks in arrays."""
    draw = np.random.default_rng(0)
    images = draw.integers(0, 255, (24, 8, 12, 3)).astype(np.uint8) if images is None else images
    np.savez(tmp_path / "data.npz", image=images, mask=masks)
    return {"type": "arrays", "path": "data.npz"}


def on_arrays(path, source):
    whole = yaml.safe_load(path.read_text())
    whole["data"]["source"] = source
    path.write_text(yaml.safe_dump(whole))
    return path


def test_masks_in_arrays_are_learnt(config, tmp_path):
    draw = np.random.default_rng(0)
    images = draw.integers(0, 255, (24, 8, 12, 3)).astype(np.uint8)
    masks = (images[..., 0] > 127).astype(np.int64)
    masks[:, 0] = 255
    path = on_arrays(config(), arrays(tmp_path, masks, images))
    assert trained(path).progress.metrics["validation/mean_iou"] > 0.8
    predictor = load_predictor(tmp_path / "run")
    assert predictor(images[:2])[0].mask.shape == (8, 12)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (np.full((24, 8, 12), 7), "the mask in row 1 .* has the number 7 in a pixel"),
        (np.full((24, 8, 12), 0.5), "holds 0.5 in row 1 .*; a mask has whole numbers"),
        (np.full((24, 8, 12), -3), "holds -3 in row 1"),
        (np.zeros((24, 4, 12), np.uint8), r"is of \(4, 12\) pixels, its image in column 'image'"),
        (np.zeros((24, 12), np.int64), r"holds \(12,\) numbers a sample, a mask has one"),
    ],
    ids=["no class", "a fraction", "below 0", "another size", "a row"],
)
def test_arrays_that_are_no_masks_are_refused(config, tmp_path, masks, message):
    path = on_arrays(config(), arrays(tmp_path, masks))
    with pytest.raises(DataError, match=message):
        trained(path)


def test_masks_that_differ_in_size_are_told_how_to_be_resized(config):
    resize = {"type": "Resize", "size": [8, 12]}
    path = config(sizes=[(8, 12), (16, 20)], transforms=[resize])
    with pytest.raises(DataError, match="column 'mask' differ in shape") as error:
        trained(path)
    assert "with: [mask] in it for their masks" in error.value.hint


def test_a_frozen_layer_stays_and_its_cached_run_has_the_same_bits(config, tmp_path):
    path = config(freeze=["conv"], train={"epochs": 3})
    ends = {}
    for cache in ("auto", "off"):
        trainer = build_trainer(load_config(path, [f"cache={cache}"]), tmp_path / cache)
        trainer.fit(quiet=True)
        proof = json.loads((tmp_path / cache / "freeze_proof.json").read_text())
        assert proof["intact"]
        ends[cache] = (trainer.model.state_dict(), trainer.progress.metrics)
    answered = json.loads((tmp_path / "auto" / "summary.json").read_text())["activation_cache"]
    assert answered
    for name, tensor in ends["off"][0].items():
        assert tensor.equal(ends["auto"][0][name]), name
    assert ends["off"][1] == ends["auto"][1]
    figures = evaluate_run(tmp_path / "auto", "validation")
    assert figures["mean_iou"] == pytest.approx(ends["off"][1]["validation/mean_iou"])


@pytest.mark.parametrize(
    "step",
    [
        {"type": "RandomRotation", "degrees": [30, 60], "fill": 1},
        {"type": "Pad", "padding": 2},
        {"type": "RandomAffine", "degrees": 0, "translate": [0.5, 0.5], "fill": 255},
        {"type": "CenterCrop", "size": 14},
    ],
    ids=lambda step: step["type"],
)
@pytest.mark.parametrize("is_array", [False, True], ids=["files", "arrays"])
def test_what_comes_in_from_outside_of_an_image_is_ignored(config, tmp_path, step, is_array):
    path = config(transforms=[step | {"with": ["mask"]}], train={"epochs": 1})
    if is_array:
        path = on_arrays(path, arrays(tmp_path, np.ones((24, 8, 12), np.uint8)))
    train = trained(path).splits.train
    batches = [train.fetch(range(6), epoch=epoch) for epoch in range(3)]
    assert any((batch.target == IGNORED).any() for batch in batches)
    assert {*torch.cat([batch.target.flatten() for batch in batches]).tolist()} <= {IGNORED, 0, 1}
    if is_array:
        assert not any((batch.target == 0).any() for batch in batches)


def test_an_empty_cell_among_names_of_masks_is_named_with_its_row(config, tmp_path):
    path = config()
    rows = [[f"{n}.png", f"{n}_mask.png"] for n in range(24)]
    write_table(tmp_path / "data.csv", [*rows[:7], ["7.png", ""], *rows[8:]])
    with pytest.raises(DataError, match=r"'mask' holds '' in row 8 of .*; a mask is an image file"):
        trained(path)


@pytest.mark.parametrize("column", ["image", "mask"])
def test_names_on_standard_input_lead_out_of_no_folder(config, tmp_path, monkeypatch, column):
    trained(config(train={"epochs": 1}))
    here, row = tmp_path / "here", {"image": "0.png", "mask": "0_mask.png"}
    here.mkdir()
    for name in row.values():
        shutil.copy(tmp_path / name, here)
    monkeypatch.chdir(here)

    def figures(row):
        monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(row)))
        return evaluated(load_run(tmp_path / "run"), source="-").figures

    assert "mean_iou" in figures(row)
    with pytest.raises(DataError, match="which leaves the folder"):
        figures(row | {column: f"../{row[column]}"})


def test_a_mask_of_a_cut_image_is_of_what_the_network_sees_and_that_is_told(config, call, tmp_path):
    crop = {"type": "CenterCrop", "size": [6, 6], "with": ["mask"]}
    trained(config(transforms=[crop], train={"epochs": 1}))
    out = tmp_path / "said.jsonl"
    told = call("predict", tmp_path / "run", tmp_path / "0.png", "--out", out).err
    assert "evaluation cuts or pads images: a mask is of what the network sees" in told
    with Image.open(tmp_path / "said_masks" / "predicted_000001_0.png") as mask:
        assert mask.size == (6, 6)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_mask_is_upright_like_the_image_that_is_seen(config, tmp_path, orientation):
    trained(config(train={"epochs": 1}))
    image = Image.open(tmp_path / "0.png")
    tags = image.getexif()
    tags[0x0112] = orientation
    image.save(tmp_path / "turned.jpg", exif=tags)
    (record,) = load_predictor(tmp_path / "run")([str(tmp_path / "turned.jpg")])
    assert record.mask.shape == ((12, 8) if orientation == 6 else (8, 12))


def test_a_network_of_transformers_gets_the_head_for_pixels(config, tmp_path):
    # transformers takes seconds to load: the other tests do without
    from transformers import SegformerConfig, SegformerModel

    sizes = {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "num_channels": 1}
    sizes |= {"hidden_sizes": [8, 16], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2]}
    sizes |= {"patch_sizes": [7, 3], "strides": [4, 2], "decoder_hidden_size": 8}
    SegformerModel(SegformerConfig(**sizes)).save_pretrained(tmp_path / "net")
    layer = {"name": "net", "type": "transformers", "path": "net", "output": "logits"}
    trainer = trained(config(layers=[layer], size=(16, 16), count=12, train={"epochs": 1}))
    assert type(trainer.model.net).__name__ == "SegformerForSemanticSegmentation"
    assert 0 < trainer.progress.metrics["validation/mean_iou"] <= 1


def damaged(folder, named):
    """Write a table of images and masks, cut one of each short, and return a config."""
    rows = write_data(folder)
    for name in ("3.png", "7_mask.png", "0_mask.png"):
        raw = (folder / name).read_bytes()
        (folder / name).write_bytes(raw[: len(raw) // 2])
    table = write_table(folder / "table.csv", rows)
    more = {"classes": ["dark", "bright"]} if named else {}
    data = {"source": {"type": "csv", "path": str(table)}, "inputs": ["image"], "target": "mask"}
    steps = [
        {"type": "RandomHorizontalFlip", "with": ["mask"]},
        {"type": "ToDtype", "dtype": "float32", "scale": True},
    ]
    return {
        "model": {"layers": LAYERS},
        "data": data | {"transforms": steps, "on_error": "skip"},
        "task": {"type": "segmentation", "ignore_index": None, **more},
        "optimizer": {"type": "SGD", "lr": 0.1},
        "train": {"steps": 6, "batch_size": 4},
    }


@pytest.mark.parametrize("named", [True, False], ids=["classes named", "classes found"])
def test_unreadable_masks_and_images_are_skipped_and_counted(tmp_path, capsys, named):
    given = damaged(tmp_path, named)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(given))
    runs = []
    for workers in (0, 2):
        config = load_config(tmp_path / "c.yaml", overrides=[f"data.workers={workers}"])
        run = build_trainer(config, tmp_path / f"run{workers}")
        run.fit()
        runs.append({name: tensor.clone() for name, tensor in run.model.state_dict().items()})
        told = capsys.readouterr()
        assert "3 of 24 train samples were skipped (data.on_error: skip)" in told.out + told.err
        found = "2 numbers in 22 masks are the classes (2 cannot be read)"
        assert (found in " ".join((told.out + told.err).split())) is not named
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_an_unreadable_mask_is_named_with_its_row(tmp_path):
    given = damaged(tmp_path, named=False)
    del given["data"]["on_error"]
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(given))
    with pytest.raises(DataError, match=r"cannot read the image '.*0_mask\.png': .*, in row 1 of"):
        build_trainer(load_config(tmp_path / "c.yaml"), tmp_path / "run")


def test_a_pixel_of_no_class_is_never_skipped(tmp_path):
    given = damaged(tmp_path, named=True)
    grey(np.full((8, 12), 9, np.uint8), tmp_path / "5_mask.png")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(given))
    trainer = build_trainer(load_config(tmp_path / "c.yaml"), tmp_path / "run")
    with pytest.raises(DataError, match="has the number 9 in a pixel, which is no class"):
        trainer.fit(quiet=True)
