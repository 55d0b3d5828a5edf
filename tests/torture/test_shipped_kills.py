"""Three real kills of a run of a shipped config, for each type of task, change no bit of it."""

import pytest
from killed_pairs import assert_same_run, killed, summary
from shipped import OF_TASK, written

pytestmark = pytest.mark.slow

STORED = ("classification", "token_classification", "span", "detection")
"""Those whose frozen layers have rows between the kills; two columns of tokens, as `similarity` has
them, have none."""


@pytest.mark.parametrize("task", OF_TASK)
def test_three_kills_change_no_bit_of_a_run_of_a_shipped_config(tmp_path, task):
    config = written(task, tmp_path)
    killed(config, "whole", 0, tmp_path)
    seen = killed(config, "killed", 3, tmp_path, seed=11)
    assert seen["kills"] == 3, seen
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    ended = summary(tmp_path / "killed")
    cache = ended["activation_cache"]["answered"]
    assert (cache > 0) == (task in STORED)
    print(
        f"{task}: killed 3 times, newest checkpoints before and after {seen['newest']}, "
        f"{ended['steps']} steps, bits equal, {cache} samples answered by the cache"
    )
