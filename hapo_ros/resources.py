"""Where the files that ship with the package are: config/, models/, msg/, srv/, action/."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def resource(relative: str) -> Path:
    """Path of a shipped file or folder, installed or in a checkout.

    ``relative`` is a path such as ``config/deployment.yaml`` or ``msg``. Raises FileNotFoundError
    where neither the installed package nor the checkout has it.
    """
    installed = "interfaces" if relative.split("/")[0] in ("msg", "srv", "action") else "."
    for candidate in (_PACKAGE / installed / relative, _PACKAGE.parent / relative):
        if candidate.exists():
            return candidate
    raise FileNotFoundError(
        f"{relative} is not part of this installation. Install hapo_ros again (see README)."
    )
