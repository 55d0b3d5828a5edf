"""What the service has done, in the text format of Prometheus."""

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_ITEMS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)


class _Histogram:
    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds, self._counts, self._sum = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    # The counts of Prometheus are cumulative: each bucket holds all values up to its bound.
    def lines(self, name: str) -> list[str]:
        total, lines = 0, []
        bounds = [*map(_number, self._bounds), "+Inf"]
        for bound, count in zip(bounds, self._counts, strict=True):
            total += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {total}')
        return [*lines, f"{name}_sum {self._sum!r}", f"{name}_count {total}"]


class Counters:
    """Counts requests, predictions and batches. Safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._predictions: Counter[str] = Counter()
        self._spared = 0
        self._seconds, self._batch_seconds = _Histogram(_SECONDS), _Histogram(_SECONDS)
        self._items = _Histogram(_ITEMS)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count a request with its answer."""
        with self._lock:
            self._requests[route, status] += 1
            self._seconds.add(seconds)

    def ran(self, names: Sequence[str], items: int, seconds: float, spared: int) -> None:
        """Count a batch of some samples, predicted by some runs."""
        with self._lock:
            for name in names:
                self._predictions[name] += items
            self._items.add(items)
            self._batch_seconds.add(seconds)
            self._spared += spared

    def text(self, gauges: Mapping[str, float]) -> str:
        """Return all counts, and the present values of `gauges` by name."""
        with self._lock:
            requests = [
                f'finetune_requests_total{{route="{_escaped(route)}",status="{status}"}} {count}'
                for (route, status), count in sorted(self._requests.items())
            ]
            predictions = [
                f'finetune_predictions_total{{run="{_escaped(name)}"}} {count}'
                for name, count in sorted(self._predictions.items())
            ]
            families = [
                ("finetune_requests_total", "counter", "requests answered", requests),
                ("finetune_predictions_total", "counter", "samples predicted", predictions),
                (
                    "finetune_passes_spared_total",
                    "counter",
                    "passes through a frozen prefix that another run's pass has spared",
                    [f"finetune_passes_spared_total {self._spared}"],
                ),
                _family("finetune_request_seconds", "from request to answer", self._seconds),
                _family("finetune_batch_seconds", "time to predict a batch", self._batch_seconds),
                _family("finetune_batch_samples", "samples of a batch", self._items),
            ]
        families += [
            (f"finetune_{name}", "gauge", name.replace("_", " "), [f"finetune_{name} {value:g}"])
            for name, value in gauges.items()
        ]
        lines = []
        for name, kind, text, samples in families:
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}", *samples]
        return "\n".join(lines) + "\n"


def _family(name: str, text: str, values: _Histogram) -> tuple[str, str, str, list[str]]:
    return name, "histogram", text, values.lines(name)


def _number(value: float) -> str:
    return f"{value:g}"


def _escaped(label: str) -> str:
    r"""Return a label's value as the format wants it: `\\`, `\"` and `\n`."""
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
