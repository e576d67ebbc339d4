"""Counts steps and labels while an episode is written, so that a cut-short one has them too."""

from hapo_ros import labels, topics
from hapo_ros.arbitration.types import Applied
from hapo_ros.episodes.types import EpisodeResult


class Tally:
    """Decided ticks of one episode by live label, from its messages in any order.

    As the reader counts: a decision of which no tick says APPLIED counts as NONE, and one that the
    arbiter sent by its own timer (``tick`` false) does not count.
    """

    def __init__(self, episode_id: str):
        self._episode_id = episode_id
        self._labels: dict[int, int] = {}
        self._outcomes: dict[int, int] = {}
        self._success = False

    def see(self, topic: str, cdr: bytes) -> None:
        """Take note of a message; only ticks and decisions are looked into."""
        if topic not in (topics.OBSERVATION_TICK, topics.EXECUTED_ACTION):
            return
        from hapo_ros.episodes.interfaces import from_cdr

        message = from_cdr(cdr, topics.TYPES[topic])
        if message.episode_id != self._episode_id:
            return
        if topic == topics.EXECUTED_ACTION:
            if message.tick:
                self._labels.setdefault(message.sequence, message.label)
            return
        self._success = message.success
        self._outcomes.setdefault(message.applied_sequence, message.applied)

    def result(self, outcome: str | None = None, **known) -> EpisodeResult:
        """EpisodeResult of what was seen; outcome: by default what the last tick says.

        known: the other fields of EpisodeResult (lost, complete, recovered, note).
        """
        live = [
            label if self._outcomes.get(sequence) == Applied.APPLIED else labels.NONE
            for sequence, label in self._labels.items()
        ]
        return EpisodeResult(
            outcome=outcome or ("success" if self._success else "failure"),
            steps=len(live),
            labels=labels.counts(live),
            **known,
        )
