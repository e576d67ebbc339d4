"""What a training run writes besides its checkpoint: metrics for people and for programs."""

import json
import math
import os
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
    folder = _folders(wanted)[-1]
    folder.mkdir(parents=True)
    return folder


def last_folder(wanted) -> Path:
    """What ``new_folder`` made last; ``wanted`` itself where it made none."""
    return _folders(wanted)[-2:][0]


def _folders(wanted) -> list[Path]:
    """``wanted``, then with -2, -3, ... behind it; all exist but for the last."""
    folders = [Path(wanted)]
    while folders[-1].exists():
        folders.append(folders[0].with_name(f"{folders[0].name}-{len(folders) + 1}"))
    return folders


class Notes:
    """The log of a rank that writes none: ``notes``, sentences a user should read, are kept."""

    def __init__(self):
        self.notes: list[str] = []

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Metrics of a step."""

    def draw(self, step: int, scalars: dict[str, float], samples: dict) -> None:
        """For TensorBoard alone: what differs between runs that do the same, and histograms of
        one value a sample (arrays or tensors of any length)."""

    def note(self, step: int, text: str) -> None:
        self.notes.append(text)

    def keep(self) -> None:
        """What was written so far is on the disk, whatever happens next."""

    def close(self) -> None:
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class RunLog(Notes):
    """``metrics.jsonl``, one line a step, and TensorBoard events beside it, in ``folder``.

    step: of the run there that is gone on with; what was written of later ones is dropped. Notes
    are in ``notes.txt`` too.
    """

    def __init__(self, folder, step: int = 0):
        from torch.utils.tensorboard import SummaryWriter

        super().__init__()
        self.folder = Path(folder)
        path = self.folder / "metrics.jsonl"
        before = path.read_text().splitlines(keepends=True)[:step] if step else []
        self._lines = path.open("w", buffering=1)
        self._lines.writelines(before)
        self._board = SummaryWriter(self.folder, purge_step=step + 1 if step else None)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        self._lines.write(json.dumps({"step": step, **jsonable(metrics)}) + "\n")
        for name, value in metrics.items():
            if math.isfinite(value):
                self._board.add_scalar(name, value, step)

    def draw(self, step: int, scalars: dict[str, float], samples: dict) -> None:
        for name, value in scalars.items():
            self._board.add_scalar(name, value, step)
        for name, values in samples.items():
            if len(values):
                self._board.add_histogram(name, values, step)

    def note(self, step: int, text: str) -> None:
        super().note(step, text)
        with (self.folder / "notes.txt").open("a", encoding="utf-8") as file:
            file.write(f"Step {step}: {text}\n")
        self._board.add_text("notes", text, step)

    def keep(self) -> None:
        os.fsync(self._lines.fileno())
        self._board.flush()

    def close(self) -> None:
        self._lines.close()
        self._board.close()
