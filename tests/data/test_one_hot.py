"""One-hot categories are kept as positions, and every batch is as if they were vectors."""

import pytest
import torch

from finetune.data.loading.gathered_samples import GatheredSamples
from finetune.data.table import Numbers
from finetune.data.vectors import OneHot, Vectors

COUNT, KINDS = 500, 40


@pytest.fixture
def columns():
    draw = torch.Generator().manual_seed(0)
    positions = torch.randint(0, KINDS + 1, (COUNT,), generator=draw)
    # A position of 0 is a word that training has not seen.
    dense = torch.eye(KINDS + 1)[positions][:, 1:].contiguous()
    numbers = torch.randn(COUNT, generator=draw), torch.randn(COUNT, 3, generator=draw)
    vectors = Vectors((numbers[0], OneHot.of(positions, KINDS), numbers[1]))
    whole = torch.cat([numbers[0][:, None], dense, numbers[1]], dim=1)
    return vectors, Numbers(whole)


def test_rows_and_fingerprint_are_those_of_the_vectors_in_full(columns):
    vectors, whole = columns
    rows = torch.tensor([4, 499, 0, 4])
    assert torch.equal(vectors.gather(rows), whole.gather(rows))
    assert vectors.gather(rows).is_contiguous()
    assert torch.equal(vectors[7], whole[7])
    assert torch.equal(vectors.whole().values, whole.values)
    assert vectors.fingerprint() == whole.fingerprint()
    found, expected = (GatheredSamples({"x": one}, None) for one in columns)
    assert found.specs == expected.specs
    assert torch.equal(found.fetch(rows).inputs["x"], expected.fetch(rows).inputs["x"])
    assert torch.equal(
        found.fetch(rows, blank=["x"]).inputs["x"], expected.fetch(rows, blank=["x"]).inputs["x"]
    )


def test_a_position_takes_one_byte_for_few_categories_and_two_for_many():
    few, many = (OneHot.of(torch.arange(count), count) for count in (255, 1000))
    assert (few.positions.element_size(), many.positions.element_size()) == (1, 2)
    assert torch.equal(many.gather(torch.tensor([999]))[0].nonzero(), torch.tensor([[998]]))


TABLE = "n,town,y,part\n" + "".join(
    f"{row},{'abc'[row % 3]},{row % 2},{'validation' if row > 25 else 'train'}\n"
    for row in range(30)
)
ONE_HOT = {"type": "categories", "columns": ["town"], "as": "one_hot"}
STEPS = {
    "stacked": [ONE_HOT, {"type": "stack"}],
    "scaled afterwards": [ONE_HOT, {"type": "standardize", "columns": ["town"]}, {"type": "stack"}],
    "stacked twice": [
        ONE_HOT,
        {"type": "stack", "columns": ["town"], "name": "towns"},
        {"type": "stack"},
    ],
    "alone": [ONE_HOT],
}


@pytest.mark.parametrize("steps", STEPS)
def test_a_table_gives_the_batches_that_vectors_in_full_gave(
    steps, tmp_path, prepared, monkeypatch
):
    (tmp_path / "t.csv").write_text(TABLE)
    data = {
        "source": {"type": "csv", "path": str(tmp_path / "t.csv")},
        "inputs": ["n", "town"],
        "target": "y",
        "split": {"by": "part"},
        "transforms": STEPS[steps],
    }
    found = prepared(data)
    in_full = staticmethod(lambda positions, count: torch.eye(count + 1)[positions][:, 1:])
    monkeypatch.setattr(OneHot, "of", in_full)
    expected = prepared(data)
    for one, other in ((found.train, expected.train), (found.validation, expected.validation)):
        rows = range(len(one))
        assert one.fetch(rows).inputs.keys() == other.fetch(rows).inputs.keys()
        for name, values in one.fetch(rows).inputs.items():
            assert torch.equal(values, other.fetch(rows).inputs[name])
        assert one.fingerprint() == other.fingerprint()
