"""Join a tick with the messages that belong to it, by the stamps the tick names."""

from collections import OrderedDict, deque

from hapo_ros.episodes import messages


class TickJoiner:
    """Collects messages by topic and stamp until a tick has all that it names.

    Only ``wanted`` topics are waited for. Nothing is ever joined by nearest time. ``keep``: how
    many messages of a topic are kept for a tick that has not come yet. ``ticks``: how many may wait
    at once; who needs only the newest gives up an older one when it comes, who is in no hurry waits
    longer for what a busy machine is late with.
    """

    def __init__(self, wanted, keep: int = 30, ticks: int = 1):
        self._buffers = {topic: OrderedDict() for topic in wanted}
        self._keep = keep
        self._ticks = deque(maxlen=ticks)

    def add(self, topic: str, message) -> None:
        """Keep a message of a wanted topic."""
        buffer = self._buffers[topic]
        buffer[messages.message_stamp_ns(message)] = message
        while len(buffer) > self._keep:
            buffer.popitem(last=False)

    def add_tick(self, message) -> None:
        """A tick to complete; the oldest beyond ``ticks`` is given up. ValueError if malformed."""
        self._ticks.append((message, messages.tick_stamps(message)))

    @property
    def tick_episode_id(self) -> str | None:
        """Episode of the newest tick that is waited for; None where there is none."""
        return self._ticks[-1][0].episode_id if self._ticks else None

    def missing(self) -> list[str]:
        """Wanted topics that the newest tick still waits for."""
        return self._missing(*self._ticks[-1]) if self._ticks else []

    def take(self):
        """(message, {topic: message}) of the newest complete tick, which ends the wait for older
        ones; None where none is complete."""
        waiting = next((each for each in reversed(self._ticks) if not self._missing(*each)), None)
        if waiting is None:
            return None
        while self._ticks.popleft() is not waiting:
            pass  # an older one
        tick, stamps = waiting
        parts = {t: each[_stamp(tick, stamps, t)] for t, each in self._buffers.items()}
        return tick, parts

    def _missing(self, tick, stamps) -> list[str]:
        return [t for t, each in self._buffers.items() if _stamp(tick, stamps, t) not in each]


def _stamp(tick, stamps: dict[str, int], topic: str) -> int:
    """The stamp that a tick names for a topic; its own for one that is no observation."""
    return stamps.get(topic, messages.message_stamp_ns(tick))
