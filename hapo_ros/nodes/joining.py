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
        messages.tick_stamps(message)
        self._ticks.append(message)

    @property
    def tick_episode_id(self) -> str | None:
        """Episode of the newest tick that is waited for; None where there is none."""
        return self._ticks[-1].episode_id if self._ticks else None

    def missing(self) -> list[str]:
        """Wanted topics that the newest tick still waits for."""
        return self._missing(self._ticks[-1]) if self._ticks else []

    def take(self):
        """(message, {topic: message}) of the newest complete tick, which ends the wait for older
        ones; None where none is complete."""
        tick = next((tick for tick in reversed(self._ticks) if not self._missing(tick)), None)
        if tick is None:
            return None
        while self._ticks.popleft() is not tick:
            pass  # an older one
        return tick, {topic: each[_stamp(tick, topic)] for topic, each in self._buffers.items()}

    def _missing(self, tick) -> list[str]:
        return [t for t, buffer in self._buffers.items() if _stamp(tick, t) not in buffer]


def _stamp(tick, topic: str) -> int:
    """The stamp that a tick names for a topic; its own for one that is no observation."""
    return messages.tick_stamps(tick).get(topic, messages.message_stamp_ns(tick))
