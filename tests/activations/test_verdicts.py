"""What trials have shown is kept beside the rows, and trusted only as it was written."""

import json

import pytest

from finetune.activations.verdicts import Verdicts
from finetune.store.directory import cache_root, claim_as_it_is, entries
from finetune.store.store import Store

SHAPES = {"32 x None": None, "7 x None": "are computed with other bits"}


@pytest.fixture
def path(tmp_path):
    written = Verdicts(tmp_path / "verdicts", "network")
    for shape, fault in SHAPES.items():
        written.add(shape, fault)
    return tmp_path / "verdicts"


def test_another_process_finds_them_again(path):
    found = Verdicts(path, "network")
    assert {shape: found[shape] for shape in SHAPES} == SHAPES
    assert "8 x None" not in found


def test_another_network_finds_none_and_takes_none_away(path):
    other = Verdicts(path, "other")
    assert not any(shape in other for shape in SHAPES)
    other.add("32 x None", "ends in other outputs")
    assert Verdicts(path, "network")["32 x None"] is None
    assert Verdicts(path, "other")["32 x None"] == "ends in other outputs"


def test_what_two_processes_add_in_turns_is_all_there(path):
    one, two = Verdicts(path, "network"), Verdicts(path, "network")
    one.add("1 x None", None)
    two.add("2 x None", None)
    assert all(shape in Verdicts(path, "network") for shape in ("1 x None", "2 x None"))


@pytest.mark.parametrize("number", range(0, 120, 7))
def test_a_flipped_bit_is_never_trusted(path, number):
    raw = bytearray(path.read_bytes())
    raw[number % len(raw)] ^= 1
    path.write_bytes(raw)
    found = Verdicts(path, "network")
    assert not any(shape in found for shape in SHAPES)


@pytest.mark.parametrize("raw", [b"", b"\xff\xfe", b"no digest\n{}", b"\n"])
def test_a_file_of_something_else_is_passed_over_and_written_anew(path, raw):
    path.write_bytes(raw)
    Verdicts(path, "network").add("5 x None", None)
    assert "5 x None" in Verdicts(path, "network")


def test_where_nothing_can_be_written_the_process_still_knows(tmp_path):
    verdicts = Verdicts(tmp_path / "missing" / "verdicts", "network")
    verdicts.add("32 x None", None)
    assert verdicts["32 x None"] is None
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.usefixtures("always")
def test_a_warm_run_tries_no_shape_again_and_one_with_another_middle_does(runs, tmp_path):
    def statistics(name, net="UNet", **args):
        config = runs.odd_config(net, freeze=["net.down1"], cache="auto", args=args)
        trainer, _ = runs.trained(config, tmp_path / name)
        return trainer.cache.statistics

    assert statistics("cold").seconds_trying > 0
    warm = statistics("warm")
    assert warm.recorded == warm.seconds_trying == 0
    assert warm.answered > 0
    other = statistics("other middle", width=24)
    assert other.recorded == 0
    assert other.seconds_trying > 0


@pytest.mark.slow
@pytest.mark.usefixtures("always")
def test_a_shape_that_was_found_inexact_is_told_again_by_a_warm_run(runs, tmp_path):
    config = runs.odd_config("UNet", freeze=["net.down1"], cache="auto")
    runs.trained(config, tmp_path / "cold")
    for path in cache_root().glob("*/verdicts"):
        network, known = next(iter(json.loads(path.read_text().partition("\n")[2]).items()))
        path.unlink()
        verdicts = Verdicts(path, network)
        for shape in known:
            verdicts.add(shape, "are made up")
    warm, said = runs.trained(config, tmp_path / "warm")
    assert warm.cache.statistics.answered == 0
    assert any("the store: are made up" in line for line in said)


def test_what_may_have_passed_is_not_kept_for_the_next_process(path):
    known = Verdicts(path, "network")
    known.add("9 x None", "cannot be answered (OSError: disk)", is_lasting=False)
    assert known["9 x None"] is not None
    assert "9 x None" not in Verdicts(path, "network")
    known.add("10 x None", None)
    assert "9 x None" not in Verdicts(path, "network")


def test_the_networks_tried_last_are_kept(path):
    for number in range(20):
        Verdicts(path, f"network {number}").add("32 x None", None)
    assert "32 x None" in Verdicts(path, "network 19")
    assert "32 x None" not in Verdicts(path, "network 0")


@pytest.mark.slow
@pytest.mark.usefixtures("always")
def test_where_rows_turn_out_wrong_verdicts_go_too(runs, tmp_path):
    config = runs.odd_config("UNet", freeze=["net.down1"], cache="auto")
    cold, _ = runs.trained(config, tmp_path / "cold")
    for entry in entries(cache_root()):
        claim = claim_as_it_is(cache_root(), entry.meta)
        store = Store.of(entry.meta, claim, limit_bytes=float("inf"))
        sealed = store.written()
        wrong = {name: values + 1 for name, values in store.read(sealed).items()}
        store.discard()
        store.write(sealed, wrong)
        store.close()
    again, said = runs.trained(config, tmp_path / "again")
    assert any("are wrong: all recomputed" in line for line in said)
    assert again.cache.statistics.recorded == cold.cache.statistics.recorded
    assert again.cache.statistics.seconds_trying > 0
    runs.assert_equal_weights(cold, again)
