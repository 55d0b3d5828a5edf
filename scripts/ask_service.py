"""Ask a running `finetune serve` for predictions: one line of JSON for each text and run.

    python scripts/ask_service.py "The striker scored twice." --runs topic tone
    python scripts/ask_service.py --files a.png b.png

Nothing beside Python is needed. Copy it.
"""

import argparse
import base64
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("texts", nargs="*", help="texts to predict")
parser.add_argument("--files", nargs="*", default=[], help="files to predict: images, recordings")
parser.add_argument("--runs", nargs="*", help="runs that predict; all if left out")
parser.add_argument("--url", default="http://127.0.0.1:8000")
given = parser.parse_args()
contents = [{"base64": base64.b64encode(Path(f).read_bytes()).decode()} for f in given.files]
question = {"inputs": [*given.texts, *contents]} | ({"runs": given.runs} if given.runs else {})
request = urllib.request.Request(
    f"{given.url}/predict", json.dumps(question).encode(), {"content-type": "application/json"}
)
try:
    with urllib.request.urlopen(request, timeout=60) as answer:
        found = json.load(answer)
except urllib.error.HTTPError as error:
    sys.exit(f"refused ({error.code}): {error.read().decode()}")
except urllib.error.URLError as error:
    sys.exit(f"no service answers at {given.url}: {error.reason}; --url names another address")
for note in found["notes"]:
    print(f"note: {note}", file=sys.stderr)
for run, predictions in found["predictions"].items():
    for name, row in zip([*given.texts, *given.files], predictions, strict=True):
        print(json.dumps({"run": run, "input": name} | row))
