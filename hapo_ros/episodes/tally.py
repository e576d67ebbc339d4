"""What became of an episode, counted while it is recorded, so that a cut-short one has it too."""

from hapo_ros import labels, topics
from hapo_ros.arbitration.types import Applied
from hapo_ros.episodes import parsers
from hapo_ros.episodes.contents import cdr_stamp_ns, checked_decision
from hapo_ros.episodes.interfaces import from_cdr
from hapo_ros.episodes.types import EpisodeInfo, EpisodeResult

RECENT = 200  # messages of a topic that a tick may still name; as deep as the readers' queues


class Tally:
    """Decided ticks of one episode by live label, and what is missing, from its messages.

    They may come in any order. A decision of which no tick says APPLIED counts as NONE, and one
    that the arbiter sent by its own timer (``tick`` false) does not count, as for the reader.

    Lost is what the messages that came prove to have been: what a tick names and is not there, a
    tick with a later one, a decision that a tick says reached the robot (APPLIED or REFUSED; with
    LATE_HELD there may never have been one). A few numbers are kept a tick.

    clock_jumps: as of EpisodeResult, for who watches the clock to append to.
    """

    def __init__(self, info: EpisodeInfo):
        self._episode_id, self._max_lost_fraction = info.episode_id, info.max_lost_fraction
        self.clock_jumps: list[list[float]] = []
        self._labels: dict[int, int] = {}  # sequence -> of its decision
        self._outcomes: dict[int, Applied] = {}
        self._ticks: set[int] = set()
        self._last_tick = -1
        self._success = False
        observed = topics.observed(info.cameras, bool(info.object_state))
        self._recent: dict[str, dict[int, None]] = {topic: {} for topic in observed}  # stamps
        # Stamps, with the sequence of the first tick that names them.
        self._awaited: dict[str, dict[int, int]] = {topic: {} for topic in observed}

    def see(self, topic: str, cdr: bytes) -> None:
        """Take note of a message.

        Raises ValueError for a tick, an object state, an answer or a decision that is malformed: no
        reader would take a bag that has it.
        """
        if topic == topics.OBJECT_STATE:
            parsers.state_vector_from(from_cdr(cdr, topics.TYPES[topic]))
        if topic in self._awaited:
            self._see_observation(topic, cdr_stamp_ns(cdr))
        if topic not in (topics.OBSERVATION_TICK, topics.POLICY_ACTION, topics.EXECUTED_ACTION):
            return
        message = from_cdr(cdr, topics.TYPES[topic])
        if message.episode_id != self._episode_id:
            return
        if topic == topics.OBSERVATION_TICK:
            self._see_tick(message)
        elif topic == topics.POLICY_ACTION:
            parsers.policy_command_from(message)
        elif message.tick:
            self._labels.setdefault(message.sequence, checked_decision(message).label)

    def _see_observation(self, topic: str, stamp_ns: int) -> None:
        self._awaited[topic].pop(stamp_ns, None)
        recent = self._recent[topic]
        recent[stamp_ns] = None
        if len(recent) > RECENT:
            del recent[next(iter(recent))]

    def _see_tick(self, message) -> None:
        tick, stamps = parsers.tick_from(message), parsers.tick_stamps(message)
        self._success = tick.success
        self._outcomes.setdefault(tick.applied_sequence, tick.applied)
        self._ticks.add(tick.sequence)
        self._last_tick = max(self._last_tick, tick.sequence)
        for topic, awaited in self._awaited.items():
            if topic in stamps and stamps[topic] not in self._recent[topic]:
                awaited.setdefault(stamps[topic], tick.sequence)

    def lost(self, but_newest: int = 0) -> dict[str, int]:
        """Messages known to be missing, by topic; topics of which none is are left out.

        but_newest: of so many ticks at the end nothing is counted, it may be under way.
        """
        until = self._last_tick - but_newest
        lost = {
            topic: sum(sequence <= until for sequence in stamps.values())
            for topic, stamps in self._awaited.items()
        }
        there = sum(sequence <= until for sequence in self._ticks)
        lost[topics.OBSERVATION_TICK] = max(until + 1, 0) - there
        lost[topics.EXECUTED_ACTION] = sum(
            outcome in (Applied.APPLIED, Applied.REFUSED)
            and sequence <= until
            and sequence not in self._labels
            for sequence, outcome in self._outcomes.items()
        )
        return {topic: count for topic, count in lost.items() if count}

    def is_whole(self, sequence: int) -> bool:
        """Whether everything is there, up to the tick ``sequence`` at least."""
        return self._last_tick >= sequence and not self.lost()

    def result(self, outcome: str | None = None, **known) -> EpisodeResult:
        """EpisodeResult of what was seen; outcome: by default what the last tick says.

        known: the other fields of EpisodeResult (complete, recovered, unresolved, note).
        """
        live = [
            label if self._outcomes.get(sequence) == Applied.APPLIED else labels.NONE
            for sequence, label in self._labels.items()
        ]
        lost = self.lost()
        return EpisodeResult(
            outcome=outcome or ("success" if self._success else "failure"),
            steps=len(live),
            labels=labels.counts(live),
            lost=lost,
            lossy=max(lost.values(), default=0) > self._max_lost_fraction * (self._last_tick + 1),
            clock_jumps=self.clock_jumps,
            **known,
        )
