"""Other forms of episodes: read into bags (`hapo import`), written from bags (`hapo export`).

One module a format, with ``found(source, options)`` where it is read and ``write(readers, output,
options, advance)`` where it is written. docs/formats.md says what each holds.
"""

from hapo_ros.episodes.formats.common import BadSource, Foreign, NotInstalled, Options, Summary
from hapo_ros.episodes.formats.transfer import FORMATS, export_episodes, import_episodes

__all__ = [
    "FORMATS",
    "BadSource",
    "Foreign",
    "NotInstalled",
    "Options",
    "Summary",
    "export_episodes",
    "import_episodes",
]
