"""A run on disk, so that it can be gone on with: ``resume.pt`` in the run's folder.

It is written now and then, for a run that is killed or loses power, and when one is cancelled.
"""

import os
import pickle
from pathlib import Path

NAME = "resume.pt"
WRITING = f".{NAME}.writing"


def write(folder: Path, run: dict, state: dict) -> None:
    """Keep ``state`` (of ``loop.Training``) of a run, which ``run`` tells from every other one:
    plain data by what it is called in a sentence. What was kept before is replaced at once, and
    only by what is whole on the disk."""
    import torch

    temporary = folder / WRITING
    with temporary.open("wb") as file:
        torch.save({"run": run, "state": state}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, folder / NAME)


def read(folder: Path, run: dict) -> dict:
    """The state that ``write`` kept of this very run.

    ValueError where there is none, where it is damaged, or where it is another run's, naming what
    is different.
    """
    import torch

    try:
        kept = torch.load(folder / NAME, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ValueError(
            f"There is no interrupted run in {folder} (no {NAME}), so nothing was trained. Start "
            "it without --resume."
        ) from error
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{folder / NAME} is damaged ({str(error).splitlines()[0]}), so nothing was trained. "
            "Start again without --resume."
        ) from error
    different = [name for name, value in run.items() if kept["run"].get(name) != value]
    if different:
        raise ValueError(
            f"The interrupted run in {folder} was another one: other {', other '.join(different)}, "
            "so nothing was trained. Give what it was started with, or start a new one without "
            "--resume."
        )
    return kept["state"]


def forget(folder: Path) -> None:
    """The run has come to its end."""
    for name in (NAME, WRITING):
        (folder / name).unlink(missing_ok=True)
