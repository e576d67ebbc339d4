"""Who commands the robot: a pure state machine and its limits."""

from hapo_ros.arbitration.arbiter import Arbiter
from hapo_ros.arbitration.transitions import TRANSITIONS, Trigger
from hapo_ros.arbitration.types import (
    OPEN_M,
    Applied,
    ArbiterConfig,
    Authority,
    Decision,
    Event,
    HumanSample,
    PolicyCommand,
    Reason,
    Refusal,
    Tick,
)

__all__ = [
    "OPEN_M",
    "TRANSITIONS",
    "Applied",
    "Arbiter",
    "ArbiterConfig",
    "Authority",
    "Decision",
    "Event",
    "HumanSample",
    "PolicyCommand",
    "Reason",
    "Refusal",
    "Tick",
    "Trigger",
]
