"""What the machinery of the prefix costs: nothing without frozen parts, no Python per sample."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import finetune.activations
from finetune.activations.estimate import TOO_FEW, find_estimate
from finetune.freezing.apply import apply_mask
from finetune.preview.costs import predict_costs
from finetune.store.directory import cache_root, claim_as_it_is
from finetune.store.store import Store
from finetune.train.build import build_parts
from finetune.train.cache_use import cache_use
from finetune.train.wire import build_trainer

HOME = str(Path(finetune.activations.__file__).parent)


def profiled(run):
    """Run a function; return the calls made meanwhile: file and name of each."""
    calls = []

    def note(frame, event, argument):
        if event == "call":
            calls.append((frame.f_code.co_filename, frame.f_code.co_name))
        elif event == "c_call":
            calls.append(("", argument.__name__))

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.usefixtures("always")
def test_where_nothing_is_frozen_nothing_is_tried_and_nothing_is_done_in_a_step(small_run):
    trainer = small_run(cache="auto")
    passes = []
    trainer.model.body.register_forward_hook(lambda *_: passes.append(1))
    calls = [name for file, name in profiled(trainer.fit) if file.startswith(HOME)]
    assert len(passes) == trainer.progress.step == 6
    once = {
        "open",
        "is_boundary_needed",
        "_choose",
        "find_estimate",
        "_own_estimate",
        "_why_not_probed",
        "leave",
        "close",
        "_forget",
        "__init__",
    }
    in_steps = [name for name in calls if name not in once and not name.startswith("<")]
    # The device is where steps on whole batches run.
    assert set(in_steps) <= {"forward", "fetches", "as_data", "device_of", "seconds_saved"}
    assert in_steps.count("forward") == 6


def frozen_digits(runs, batch_size, folder):
    config = runs.odd_config("UNet", freeze=["net.down1"], cache="auto", batch_size=batch_size)
    trainer = build_trainer(config, folder)
    trainer._enter_phase()
    return trainer


@pytest.mark.usefixtures("always")
def test_a_batch_that_is_answered_takes_no_python_for_each_sample(runs, tmp_path):
    counts = []
    for size in (8, 64):
        trainer = frozen_digits(runs, size, tmp_path / str(size))
        prefix, samples = trainer.cache.now, trainer.splits.train
        cuts = [torch.arange(size)]

        def once_through(prefix=prefix, samples=samples, cuts=cuts):
            for batch in prefix.fetches(samples, cuts, epoch=0):
                prefix.forward(batch, samples)

        once_through()
        once_through()
        before = trainer.cache.statistics.answered
        counts.append(len(profiled(once_through)))
        assert trainer.cache.statistics.answered == before + size
        trainer.cache.close()
    few, many = counts
    assert abs(many - few) < 8, counts


def decided(trainer):
    """Fetch a first batch of training twice; return the fetched ones after running each."""
    cache, samples, found = trainer.cache.now, trainer.splits.train, []
    for _ in range(2):
        fetched = cache.fetches(samples, [torch.arange(8)], epoch=0)
        found += [(batch, cache.forward(batch, samples)) for batch in fetched]
    return found


@pytest.mark.usefixtures("always")
def test_a_fetched_batch_carries_its_rows_and_lacks_only_what_nobody_reads(runs, tmp_path):
    trainer = frozen_digits(runs, 8, tmp_path)
    batches = decided(trainer)
    assert [batch.rows.tolist() for batch, _ in batches] == [list(range(8))] * 2
    assert trainer.cache.now.boundaries[0].replay.boundary.unread == {"image"}
    assert [bool(batch.inputs["image"].any()) for batch, _ in batches] == [True, False]
    assert torch.equal(*(outputs for _, outputs in batches))
    assert trainer.cache.statistics.recorded == trainer.cache.statistics.answered == 8
    trainer.cache.close()


@pytest.mark.usefixtures("always")
def test_a_fetched_batch_is_answered_also_if_its_rows_are_given_up_meanwhile(runs, tmp_path):
    """Another process may find a row damaged after the batch was fetched: bytes stay readable."""
    trainer = frozen_digits(runs, 8, tmp_path)
    decided(trainer)
    cache, samples = trainer.cache.now, trainer.splits.train
    store = cache.boundaries[0].splits["train"].store
    for batch in cache.fetches(samples, [torch.arange(8)], epoch=0):
        before = cache.forward(batch, samples)
        other = Store.of(
            store.meta, claim_as_it_is(cache_root(), store.meta), limit_bytes=float("inf")
        )
        other.discard()
        other.close()
        assert torch.equal(cache.forward(batch, samples), before)
    (batch,) = cache.fetches(samples, [torch.arange(8)], epoch=0)
    assert batch.rows is None
    assert batch.inputs["image"].any()
    assert torch.equal(cache.forward(batch, samples), before)
    trainer.cache.close()


@pytest.mark.usefixtures("always")
def test_the_summary_says_what_was_saved_and_a_line_what_is_expected(runs, tmp_path):
    config = runs.odd_config("UNet", freeze=["net.down1", "net.down2"], cache="auto")
    trainer, said = runs.trained(config, tmp_path / "run")
    (line,) = [line for line in said if "activation cache:" in line]
    assert "up to net.down2 runs once per sample" in line
    assert "expected to save" in line
    told = trainer.folder.read_json("summary.json")["activation_cache"]
    assert told["answered"] == 2 * (264 + 33)
    assert told["recorded"] == 330
    assert told["whole"] == 0
    spent = told["seconds_reading"] + told["seconds_writing"] + told["seconds_trying"]
    assert told["seconds_saved"] == pytest.approx(told["seconds_avoided"] - spent, abs=0.01)


def test_a_plan_tells_of_each_phase_what_its_own_length_lets_a_run_do(runs):
    long, short = {"epochs": 2}, {"steps": 1}
    body = {"freeze": ["net.down1"]}

    def not_stored(*ends, **settings):
        phases = [body | {"name": str(n), "until": end} for n, end in enumerate((*ends, short))]
        freeze = {"phases": [*phases, body | {"name": "last"}]}
        config = runs.odd_config("UNet", freeze=freeze, epochs=6, **{"cache": "auto"} | settings)
        return [cost.not_stored for cost in predict_costs(build_parts(config), config).phases]

    assert not_stored(long) == [None, TOO_FEW, None]
    assert not_stored(short, long) == [TOO_FEW, None, TOO_FEW, None]
    # rounded values are found in however short a phase, as bits depend on them
    assert not_stored(short, cache={"store_dtype": "bfloat16"}) == [None] * 3


def test_a_smaller_number_format_is_reckoned_with(runs):
    def prospect(prefix):
        config = runs.odd_config("UNet", freeze=["net.down1"], cache=prefix)
        parts = build_parts(config)
        apply_mask(parts.model, parts.plan.phases[0].frozen)
        return find_estimate(parts.model, cache_use(config, parts), epochs=20)

    whole, half = prospect("auto"), prospect({"store_dtype": "float16"})
    assert half.layout.columns[0].row_bytes * 2 == whole.layout.columns[0].row_bytes
    assert half.reading < whole.reading


def test_an_estimate_goes_by_the_samples_that_epochs_draw(runs):
    def prospect(data=runs.DIGITS, **train):
        config = runs.odd_config("UNet", freeze=["net.down1"], cache="auto", data=data, **train)
        parts = build_parts(config)
        apply_mask(parts.model, parts.plan.phases[0].frozen)
        found = find_estimate(parts.model, cache_use(config, parts), epochs=20)
        return parts.data.order, found

    _, whole = prospect()
    order, limited = prospect(limit=0.25)
    assert order.count == order.num_drawn == limited.train_rows == round(0.25 * whole.train_rows)
    assert limited.visits == whole.visits == 20
    # The store is one with that of a run on all samples.
    assert limited.layout == whole.layout
    at_one_pace = [replace(one, pace=whole.pace, trying=0.0) for one in (whole, limited)]
    assert at_one_pace[1].saving == pytest.approx(0.25 * at_one_pace[0].saving)
    assert prospect(limit=3)[1] == TOO_FEW
    order, balanced = prospect(runs.DIGITS | {"balance": "oversample"})
    assert order.count > order.num_drawn == balanced.train_rows == whole.train_rows
    assert balanced.visits == round(20 * order.count / order.num_drawn)
