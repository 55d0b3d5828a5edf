"""A network that thaws while two processes train it: do both still hold the same weights?

Lightning's `BackboneFinetuning` under its `ddp`, and this project with the same network, head first
and all of it from the third epoch on. Each process leaves its weights after every epoch; printed is
the largest difference between the two. torchrun starts the processes of both.

Run: `python benchmarks/thaw_on_ranks.py`; Lightning is in the extra `bench`.
"""

import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

_EPOCHS, _FROZEN_EPOCHS = 5, 2
_SAMPLES, _BATCH = 256, 16
_FEATURES, _WIDTH, _TARGETS = 8, 16, 3


def main() -> None:
    """Let both train; print a line for each."""
    contestants = ["ours"] + ["lightning"] * (find_spec("lightning") is not None)
    print(f"epoch                 {''.join(f'{n + 1:>10}' for n in range(_EPOCHS))}")
    for name in contestants:
        with tempfile.TemporaryDirectory() as folder:
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            command = [*torchrun, "--nproc-per-node=2", __file__, name, folder]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            done = subprocess.run(
                command, check=False, env=environment, capture_output=True, text=True
            )
            if done.returncode:
                sys.exit(done.stderr)
            found = [_furthest(Path(folder), epoch) for epoch in range(_EPOCHS)]
        print(f"{name:22}{''.join(f'{one:10.1e}' for one in found)}", flush=True)
    if "lightning" not in contestants:
        print("lightning: not installed; pip install -e '.[bench]'")


def _furthest(folder: Path, epoch: int) -> float:
    """Return the largest difference of a number between the two processes, after an epoch."""
    one, other = (load_file(folder / f"rank{rank}-epoch{epoch}") for rank in range(2))
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def _leave(model: nn.Module, folder: Path, epoch: int) -> None:
    """Write the weights that this process holds."""
    tensors = {name: value.detach().clone() for name, value in model.state_dict().items()}
    save_file(tensors, folder / f"rank{os.environ['RANK']}-epoch{epoch}")


def ours(folder: Path) -> None:
    """Train in this rank by this project."""
    import finetune
    from finetune.config.run import RunConfig

    source = {"type": "random", "samples": _SAMPLES, "features": _FEATURES, "targets": _TARGETS}
    config = RunConfig.model_validate(
        {
            "model": {
                "layers": [
                    {"name": "backbone", "type": "Linear", "out_features": _WIDTH},
                    {"name": "act", "type": "Tanh"},
                    {"name": "head", "type": "Linear", "out_features": _TARGETS},
                ]
            },
            "data": {"source": source},
            "task": {"type": "regression"},
            "optimizer": {"type": "AdamW", "lr": 0.01},
            "freeze": {
                "phases": [
                    {"name": "head", "train": ["head"], "until": {"epochs": _FROZEN_EPOCHS}},
                    {"name": "all", "freeze": []},
                ]
            },
            "train": {"epochs": _EPOCHS, "batch_size": _BATCH},
            "tracking": {"to": [], "report": False},
        }
    )
    trainer = finetune.build_trainer(config, folder / "run")
    step, steps, done = trainer.step, _SAMPLES // _BATCH, 0

    def leaving(window: Any) -> Any:
        nonlocal done
        stats = step(window)
        done += 1
        if done % steps == 0:
            _leave(trainer.model, folder, done // steps - 1)
        return stats

    trainer.step = leaving
    trainer.fit(quiet=True)


def lightning(folder: Path) -> None:
    """Train in this rank by Lightning."""
    import lightning as L
    from lightning.pytorch.callbacks import BackboneFinetuning

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Sequential(nn.Linear(_FEATURES, _WIDTH), nn.Tanh())
            self.head = nn.Linear(_WIDTH, _TARGETS)

        def training_step(self, batch: list[Tensor]) -> Tensor:
            features, target = batch
            return nn.functional.mse_loss(self.head(self.backbone(features)), target)

        def on_train_epoch_end(self) -> None:
            _leave(self, folder, self.current_epoch)

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=0.01)

    L.seed_everything(0, verbose=False)
    draw = torch.Generator().manual_seed(0)
    tensors = [torch.randn(_SAMPLES, size, generator=draw) for size in (_FEATURES, _TARGETS)]
    samples = torch.utils.data.TensorDataset(*tensors)
    loader = torch.utils.data.DataLoader(samples, batch_size=_BATCH // 2, shuffle=True)
    trainer = L.Trainer(
        max_epochs=_EPOCHS,
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        callbacks=[BackboneFinetuning(unfreeze_backbone_at_epoch=_FROZEN_EPOCHS)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(Module(), loader)


if __name__ == "__main__":
    if sys.argv[1:]:
        {"ours": ours, "lightning": lightning}[sys.argv[1]](Path(sys.argv[2]))
    else:
        main()
