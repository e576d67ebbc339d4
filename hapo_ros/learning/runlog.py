"""What a training run writes besides its checkpoint: metrics for people and for programs."""

import json
import math
import platform
from importlib import metadata
from pathlib import Path

SOFTWARE = ("hapo_ros", "torch", "numpy", "peft", "transformers", "safetensors")


def jsonable(value):
    """The value with NaN and infinity as None, and tuples as lists."""
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def software() -> dict[str, str]:
    """Versions of Python and of the installed packages that decide the result."""
    versions = {"python": platform.python_version()}
    for name in SOFTWARE:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def new_folder(wanted) -> Path:
    """``wanted``, or with -2, -3, ... behind it where that exists; created."""
    wanted = Path(wanted)
    folder, number = wanted, 1
    while folder.exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    folder.mkdir(parents=True)
    return folder


class RunLog:
    """``metrics.jsonl``, one line a step, and TensorBoard events beside it, in ``folder``.

    ``notes``: sentences a user should read, which are in ``notes.txt`` too.
    """

    def __init__(self, folder):
        from torch.utils.tensorboard import SummaryWriter

        self.folder = Path(folder)
        self._lines = (self.folder / "metrics.jsonl").open("x", buffering=1)
        self._board = SummaryWriter(self.folder)
        self.notes: list[str] = []

    def write(self, step: int, metrics: dict[str, float]) -> None:
        self._lines.write(json.dumps({"step": step, **jsonable(metrics)}) + "\n")
        for name, value in metrics.items():
            if math.isfinite(value):
                self._board.add_scalar(name, value, step)

    def note(self, step: int, text: str) -> None:
        self.notes.append(text)
        with (self.folder / "notes.txt").open("a", encoding="utf-8") as file:
            file.write(f"Step {step}: {text}\n")
        self._board.add_text("notes", text, step)

    def close(self) -> None:
        self._lines.close()
        self._board.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
