"""Predict every image below a folder: python scripts/predict_folder.py RUN FOLDER."""

import csv
import sys
from pathlib import Path

import finetune

ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


def main(run: str, folder: str) -> None:
    """Write a table of all images to standard output."""
    predictor = finetune.load_predictor(run)
    files = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in ENDINGS)
    table = csv.writer(sys.stdout)
    table.writerow(["file", "label", "probability"])
    # Batch by batch: neither images nor predictions of a large folder pile up in memory.
    for file, found in zip(files, predictor.stream(files), strict=True):
        row = found.row()
        table.writerow([file, row["label"], row["probability"]])


if __name__ == "__main__":
    main(*sys.argv[1:])
