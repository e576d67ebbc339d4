"""What follows from the end of a node: the restart rules of a deployment, applied to one run.

Pure. ``hapo deploy`` and the launch file both ask :class:`Restarts`, so that they cannot differ.
"""

from collections import deque
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hapo_ros.deployment import NodeSpec


RUN_ENDS = 4  # exit code of a node that can be started again, where that would not help


class Reaction(Enum):
    """What is to be done."""

    RESTART = auto()  # start the node again, after its delay
    GO_ON = auto()  # without it
    DONE = auto()  # end the run well
    END = auto()  # end the run with an error


@dataclass(frozen=True)
class Verdict:
    """A reaction, and the sentence that says what happened and what follows."""

    reaction: Reaction
    sentence: str


class Restarts:
    """Remembers the restarts of one run, which began at ``began_s`` (seconds, steady clock)."""

    def __init__(self, began_s: float):
        self._began_s = began_s
        self._restarts: dict[str, deque[float]] = {}  # node -> times, within its window

    def ended(self, spec: "NodeSpec", code: int, now_s: float) -> Verdict:
        """What follows from this end at ``now_s``. code: exit code, or minus a signal's number."""
        if code == 0 and (spec.done or spec.essential):
            return Verdict(Reaction.DONE, f"{spec.name} is done.")
        if code == RUN_ENDS:
            return Verdict(Reaction.END, f"{spec.name} has given up. The run ends.")
        what = f"{spec.name} ended with {f'signal {-code}' if code < 0 else f'exit code {code}'}"
        if spec.essential:
            return Verdict(Reaction.END, f"{what}. The run ends.")
        rule = spec.restart
        if rule is None:
            return Verdict(Reaction.GO_ON, f"{what}. The run goes on without it.")
        if code == 1 and now_s - self._began_s < rule.refusal_s:
            return Verdict(Reaction.END, f"{what} at its start. The run ends.")
        recent = self._restarts.setdefault(spec.name, deque())
        while recent and now_s - recent[0] > rule.within_s:
            recent.popleft()
        if len(recent) >= rule.times:
            return Verdict(
                Reaction.END,
                f"{what}, for the {len(recent) + 1}th time within {rule.within_s:g} s. The run "
                "ends.",
            )
        recent.append(now_s)
        return Verdict(Reaction.RESTART, f"{what}. It is started again.")
