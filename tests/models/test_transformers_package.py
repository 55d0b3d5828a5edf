"""The package transformers works as before when it does not read all its files twice."""

from pathlib import Path

import pytest

from finetune.models.transformers_package import load_transformers

pytest.importorskip("transformers")


def test_names_known_from_the_first_reading_are_those_of_a_second_one():
    transformers = load_transformers()
    known = load_transformers().utils.import_utils.define_import_structure
    models = Path(transformers.__file__).parent / "models"
    place = str(models / "__init__.py")
    read = known._read.cache_info().misses
    found = known(place)
    # Nothing was read again for it, and nothing is known of names that were not read.
    assert known._read.cache_info().misses == read
    assert found == known._read(place)
    assert known(place) is not known._read(models, prefix="models")
    assert sum(map(len, known(place).values())) > 500
    bert = str(models / "bert" / "__init__.py")
    assert known(bert) == known._read(bert) != known(place)
