"""Embed each line of a file by a layer: python scripts/embed.py RUN LAYER texts.txt out.npy."""

import sys
from pathlib import Path

import numpy as np

import finetune


def main(run: str, layer: str, source: str, out: str) -> None:
    """Write an array with a row for each line."""
    predictor = finetune.load_predictor(run).tapped(layer)
    texts = Path(source).read_text(encoding="utf-8").splitlines()
    found = (answer.embedding for answer in predictor.answers(texts))
    rows = [embedding.numpy() for embedding in found if embedding is not None]
    np.save(out, np.stack(rows))
    print(f"{len(rows)} embeddings of {rows[0].shape} in {out}")


if __name__ == "__main__":
    main(*sys.argv[1:])
