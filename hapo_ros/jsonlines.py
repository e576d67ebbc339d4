"""One JSON object a line, as every reader takes it: a number that is none is null."""

import json
import math


def line(data: dict) -> str:
    """``data`` as one line of strict JSON; NaN and infinities become null."""
    return json.dumps(_strict(data), allow_nan=False)


def read(text: str) -> dict | None:
    """The object that a line holds; None for anything else: libraries chatter on stdout."""
    try:
        said = json.loads(text)
    except ValueError:
        return None
    return said if isinstance(said, dict) else None


def _strict(value):
    if isinstance(value, dict):
        return {name: _strict(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
