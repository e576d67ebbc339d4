"""Episodes: recorded, recovered, read. One rosbag2 (MCAP) bag each; needs no ROS."""

from hapo_ros.episodes.collection import Skipped, describe, open_episodes, summary
from hapo_ros.episodes.contents import BadEpisode
from hapo_ros.episodes.reader import EpisodeReader
from hapo_ros.episodes.recovery import RecoveryError, recover, unfinished
from hapo_ros.episodes.types import EpisodeInfo, EpisodeResult, Observation, Step
from hapo_ros.episodes.writer import EpisodeWriteError, EpisodeWriter

__all__ = [
    "BadEpisode",
    "EpisodeInfo",
    "EpisodeReader",
    "EpisodeResult",
    "EpisodeWriteError",
    "EpisodeWriter",
    "Observation",
    "RecoveryError",
    "Skipped",
    "Step",
    "describe",
    "open_episodes",
    "recover",
    "summary",
    "unfinished",
]
