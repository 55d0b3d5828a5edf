"""What a refused request is told, and JSON that is safe wherever it is shown."""

import json
from dataclasses import dataclass
from typing import Any

from finetune.visible import finite


@dataclass(frozen=True, slots=True)
class ServiceLimits:
    """Limits of a service."""

    body_bytes: int = 16 * 2**20
    """Size of a request's body."""
    items: int = 256
    """Samples of one request."""
    requests: int = 256
    """Requests at a time: read, waiting or answered."""
    timeout_s: float = 30.0
    """Time from the whole request to its answer."""
    read_timeout_s: float = 10.0
    """Time in which the headers of a request must come, and then its body."""
    batch_wait_ms: float = 5.0
    """Time that a request waits for others to share its batch; 0 for a batch of its own."""


class Refusal(Exception):  # noqa: N818 - it is an answer, not a fault of ours
    """A request that is not answered, and why.

    Args:
        status: Status code of HTTP.
        reason: What is wrong, in one line.
        hint: The remedy.
    """

    def __init__(self, status: int, reason: str, hint: str | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.hint = status, reason, hint

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer: where trying again helps, when."""
        # For all others the same request gets the same refusal again.
        return {"retry-after": "1"} if self.status in (429, 503) else {}

    def as_data(self) -> dict[str, str]:
        """Return the body of the answer."""
        return {"error": self.reason} | ({} if self.hint is None else {"hint": self.hint})


def safe_json(value: Any) -> bytes:
    """Return JSON in ASCII without NaN, that is also harmless if something shows it as HTML.

    NaN and infinity, which JSON has not, become null.
    """
    text = json.dumps(finite(value), ensure_ascii=True, allow_nan=False)
    for character in "<>&":
        # They can only be inside of strings.
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode("ascii")
