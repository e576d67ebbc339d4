"""The policy's answers on the way to their ticks: topics have no order among each other."""

from collections.abc import Iterable

from hapo_ros.arbitration.types import PolicyCommand, Tick


class Answers:
    """Keeps the newest answer until its tick is decided."""

    def __init__(self):
        self._kept: PolicyCommand | None = None

    def add(self, command: PolicyCommand, ticks: Iterable[tuple[str, int]]) -> bool:
        """Keep an answer; False where a newer one of its episode is kept already.

        ticks: (episode_id, sequence) of those that are known. Raises ValueError for an answer that
        is more than one tick ahead of them: it was made to no observation, and kept it would keep
        out the answers to all ticks up to its own.
        """
        newest = max((at for episode, at in ticks if episode == command.episode_id), default=-1)
        if command.sequence > newest + 1:
            raise ValueError(
                f"it is to tick {command.sequence} of {command.episode_id}, and the newest is "
                f"{newest}"
            )
        kept = self._kept
        same_episode = kept is not None and kept.episode_id == command.episode_id
        if same_episode and command.sequence < kept.sequence:
            return False
        self._kept = command
        return True

    def to(self, tick: Tick) -> PolicyCommand | None:
        """The answer to this tick, where it is there."""
        kept, asked = self._kept, (tick.episode_id, tick.sequence)
        return kept if kept and (kept.episode_id, kept.sequence) == asked else None

    def decided(self, sequence: int) -> None:
        """Forget what is of no use any more after a tick was decided."""
        if self._kept is not None and self._kept.sequence <= sequence:
            self._kept = None

    def clear(self) -> None:
        """Forget everything: the episode has ended."""
        self._kept = None
