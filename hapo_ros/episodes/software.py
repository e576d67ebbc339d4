"""Which software an episode came from."""

import platform
from importlib import metadata

SOFTWARE = ("hapo_ros", "robosuite", "mujoco", "numpy", "torch")


def software_versions() -> dict[str, str]:
    """Versions of Python and, by distribution, of what is installed of ``SOFTWARE``."""
    from hapo_ros import __version__

    versions = {"hapo_ros": __version__, "python": platform.python_version()}
    for name in SOFTWARE:
        try:
            versions.setdefault(name, metadata.version(name))
        except metadata.PackageNotFoundError:
            continue
    return versions
