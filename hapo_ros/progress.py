"""How far a long job is: a bar on a terminal, a line now and then elsewhere (logs, pipes)."""

import sys
import time
from collections.abc import Callable
from contextlib import contextmanager

LINE_EVERY_S = 10.0


@contextmanager
def progress(what: str, total: int, silent: bool = False):
    """Yields ``advance(done, text="", total=None)``; text is shown behind the bar."""
    if silent:
        yield lambda done, text="", total=None: None
    elif sys.stderr.isatty():
        yield from _bar(what, total)
    else:
        yield _lines(what, total)


def _bar(what: str, total: int):
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total, text="")

        def advance(done: int, text: str = "", total: int | None = None) -> None:
            known = {} if total is None else {"total": total}
            bar.update(task, completed=done, text=text, **known)

        yield advance


def _lines(what: str, expected: int) -> Callable:
    state = {"said": time.monotonic(), "total": expected}

    def advance(done: int, text: str = "", total: int | None = None) -> None:
        state["total"] = total or state["total"]
        now = time.monotonic()
        if now - state["said"] >= LINE_EVERY_S or done == state["total"]:
            state["said"] = now
            print(f"  {what}: {done}/{state['total']} {text}".rstrip(), file=sys.stderr, flush=True)

    return advance
