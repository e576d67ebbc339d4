"""Join a tick with the messages that belong to it, by the stamps the tick names."""

from collections import OrderedDict

from hapo_ros.episodes import messages


class TickJoiner:
    """Collects messages by topic and stamp until a tick has all that it names.

    Only ``wanted`` topics are waited for. Nothing is ever joined by nearest time. ``keep``: how
    many messages of a topic are kept for a tick that has not come yet.
    """

    def __init__(self, wanted, keep: int = 30):
        self._buffers = {topic: OrderedDict() for topic in wanted}
        self._keep = keep
        self._tick = None

    def add(self, topic: str, message) -> None:
        """Keep a message of a wanted topic."""
        buffer = self._buffers[topic]
        buffer[messages.message_stamp_ns(message)] = message
        while len(buffer) > self._keep:
            buffer.popitem(last=False)

    def add_tick(self, message) -> None:
        """The tick to complete from now on; an older one is given up. ValueError if malformed."""
        messages.tick_stamps(message)
        self._tick = message

    @property
    def tick_episode_id(self) -> str | None:
        """Episode of the tick that is waited for; None where there is none."""
        return None if self._tick is None else self._tick.episode_id

    def missing(self) -> list[str]:
        """Wanted topics that the present tick still waits for."""
        if self._tick is None:
            return []
        return [
            topic for topic, buffer in self._buffers.items() if self._stamp(topic) not in buffer
        ]

    def take(self):
        """(tick message, {topic: message}) once the tick is complete, else None."""
        if self._tick is None or self.missing():
            return None
        parts = {topic: buffer[self._stamp(topic)] for topic, buffer in self._buffers.items()}
        tick, self._tick = self._tick, None
        return tick, parts

    def _stamp(self, topic: str) -> int:
        """The stamp that the tick names for a topic; its own for one that is no observation."""
        own = messages.message_stamp_ns(self._tick)
        return messages.tick_stamps(self._tick).get(topic, own)
