"""A checkpoint or run folder that lies, its digests made to fit, never reaches what is frozen.

Every edit of `forged_runs.py` is tried on a run that was killed before its last step. What was
edited is passed over or refused in one line, or the run ends normally; each time no frozen tensor
has another bit. Some 200 edits are tried in every run of the tests, 690 in the slow ones, and
3,000 with `FINETUNE_ALL_EXAMPLES=1`.
"""

import importlib
import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

sys.path.insert(0, str(Path(__file__).parent))
forged = importlib.import_module("forged_runs")
sys.path.pop(0)

# The same examples are drawn at every run, so that all of them are tried on demand only.
ALL = "FINETUNE_ALL_EXAMPLES" in os.environ
COMMON = settings(
    derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
OPTIMIZERS = {
    "AdamW": {"type": "AdamW", "lr": 0.01},
    "NAdam": {"type": "NAdam", "lr": 0.01},
    "momentum": {"type": "SGD", "lr": 0.01, "momentum": 0.9},
}
DOCUMENTS = {
    "config.yaml": forged.edit_config,
    "data.json": forged.edit_json,
    "plan.json": forged.edit_json,
    "metrics.jsonl": forged.edit_lines,
    "freeze_proof.json": forged.edit_json,
    "summary.json": forged.edit_json,
}


@pytest.fixture(scope="module", params=OPTIMIZERS)
def forgery(request, tmp_path_factory):
    """A killed run, for each optimizer."""
    home = tmp_path_factory.mktemp(request.param)
    return forged.Forgery(home, optimizer=OPTIMIZERS[request.param])


def edit_a_checkpoint(forgery, data):
    forgery.restore_newest()
    forged.edit_checkpoint(data.draw, forgery.newest)
    step = forgery.taken_up().progress.step
    assert step in (forgery.last, forgery.last - 1)
    if step < forgery.last:
        assert [line for line in forgery.listener.lines if line.endswith("; passed over")] != []
    looks_closer = data.draw(st.integers(0, 19)) == 0
    if looks_closer:
        forgery.reads_or_tells()
    if looks_closer or step == forgery.last:
        forgery.ends_or_tells()
        forgery.restore()


def edit_a_document(forgery, data):
    name = data.draw(st.sampled_from(sorted(DOCUMENTS)))
    forgery.restore(finished=name == "summary.json" or data.draw(st.booleans()))
    DOCUMENTS[name](data.draw, forgery.folder / name)
    forgery.reads_or_tells()
    forgery.ends_or_tells()
    forgery.restore()


@pytest.mark.slow
@settings(COMMON, max_examples=50)
@given(data=st.data())
def test_a_forged_checkpoint_is_passed_over_or_the_run_ends_normally(forgery, data):
    edit_a_checkpoint(forgery, data)


@pytest.mark.slow
@settings(COMMON, max_examples=20)
@given(data=st.data())
def test_a_forged_document_is_told_in_one_line_or_the_run_ends_normally(forgery, data):
    edit_a_document(forgery, data)


@pytest.mark.slow
@settings(COMMON, max_examples=900 if ALL else 200)
@given(data=st.data())
def test_many_forged_checkpoints(forgery, data):
    edit_a_checkpoint(forgery, data)


@pytest.mark.slow
@settings(COMMON, max_examples=100 if ALL else 30)
@given(data=st.data())
def test_many_forged_documents(forgery, data):
    edit_a_document(forgery, data)
