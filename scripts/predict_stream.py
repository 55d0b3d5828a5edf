"""Predict each line of standard input: tail -f log.txt | python scripts/predict_stream.py RUN."""

import json
import sys
from collections.abc import Iterator
from typing import BinaryIO

import finetune


def lots(stream: BinaryIO) -> Iterator[list[str]]:
    """Yield the lines that have come since the last time; wait until there is one."""
    rest = b""
    # `read1` returns what there is: an iteration over lines would wait for a whole batch of them.
    while part := stream.read1(1 << 16):  # type: ignore[attr-defined]
        *lines, rest = (rest + part).split(b"\n")
        yield [line.decode().rstrip("\r") for line in lines if line.strip()]
    if rest.strip():
        yield [rest.decode()]


def main(run: str) -> None:
    """Write a line of JSON for each line that is not blank."""
    predictor = finetune.load_predictor(run)
    for texts in lots(sys.stdin.buffer):
        for text, found in zip(texts, predictor(texts), strict=True):
            print(json.dumps({"text": text} | found.row(), ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
