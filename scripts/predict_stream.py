"""Predict each line of standard input: tail -f log.txt | python scripts/predict_stream.py RUN."""

import json
import sys
from itertools import islice

import finetune


def main(run: str) -> None:
    """Write a line of JSON for each line that is not blank."""
    predictor = finetune.load_predictor(run)
    lines = (line.rstrip("\n") for line in sys.stdin if line.strip())
    # As many at once as make a batch, so that a stream without an end is answered as it comes.
    while texts := list(islice(lines, predictor.batch_size)):
        for text, found in zip(texts, predictor(texts), strict=True):
            print(json.dumps({"text": text} | found.row(), ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
