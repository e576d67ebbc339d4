"""What can change the authority, and to what: one table, and nothing beside it."""

from enum import Enum, auto

from hapo_ros.arbitration.types import Authority, Reason


class Trigger(Enum):
    """What can change the authority."""

    START_DEPLOYMENT = auto()
    START_DEMONSTRATION = auto()
    JOIN = auto()  # a restarted arbiter meets an episode that runs already
    JOIN_IN_FAULT = auto()  # the same, and the one before it had latched a fault
    END_EPISODE = auto()
    CAP = auto()  # an armed, live device was moved past the threshold
    AUTHORITY_BUTTON = auto()
    LET_GO = auto()  # the cap was neutral long enough, handback: release
    DEADMAN = auto()  # the same, handback: deadman
    RESUME = auto()
    HOLD = auto()
    DEVICE_LOST = auto()
    POLICY_GONE = auto()
    TICKS_LOST = auto()
    ESTOP = auto()
    SECOND_ARBITER = auto()
    TIME_RESET = auto()
    CLEAR_FAULT = auto()
    RECORDING_ENDED = auto()  # the policy's steps would be lost; a human keeps the arm


_P, _H, _HOLD, _F = Authority
TRANSITIONS: dict[tuple[Authority, Trigger], tuple[Authority, Reason]] = {
    (_HOLD, Trigger.START_DEPLOYMENT): (_P, Reason.POLICY_ACTS),
    (_HOLD, Trigger.START_DEMONSTRATION): (_HOLD, Reason.AWAITING_HUMAN),
    (_P, Trigger.JOIN): (_HOLD, Reason.RESTARTED),
    (_HOLD, Trigger.JOIN): (_HOLD, Reason.RESTARTED),
    (_HOLD, Trigger.JOIN_IN_FAULT): (_F, Reason.RESTARTED_IN_FAULT),
    (_P, Trigger.CAP): (_H, Reason.CAP_MOVED),
    (_HOLD, Trigger.CAP): (_H, Reason.CAP_MOVED),
    (_P, Trigger.AUTHORITY_BUTTON): (_H, Reason.BUTTON_TAKEOVER),
    (_H, Trigger.AUTHORITY_BUTTON): (_P, Reason.HANDED_BACK),
    (_HOLD, Trigger.AUTHORITY_BUTTON): (_P, Reason.RESUMED),
    (_H, Trigger.LET_GO): (_P, Reason.LET_GO),
    (_H, Trigger.DEADMAN): (_HOLD, Reason.DEADMAN_RELEASED),
    (_H, Trigger.RESUME): (_P, Reason.RESUMED),
    (_HOLD, Trigger.RESUME): (_P, Reason.RESUMED),
    (_P, Trigger.HOLD): (_HOLD, Reason.OPERATOR_HOLD),
    (_H, Trigger.HOLD): (_HOLD, Reason.OPERATOR_HOLD),
    (_P, Trigger.DEVICE_LOST): (_HOLD, Reason.DEVICE_LOST_POLICY),
    (_H, Trigger.DEVICE_LOST): (_HOLD, Reason.DEVICE_LOST),
    (_P, Trigger.POLICY_GONE): (_HOLD, Reason.POLICY_GONE),
    (_P, Trigger.TICKS_LOST): (_HOLD, Reason.TICKS_LOST),
    (_P, Trigger.TIME_RESET): (_HOLD, Reason.TIME_WAS_RESET),
    (_H, Trigger.TIME_RESET): (_HOLD, Reason.TIME_WAS_RESET),
    (_HOLD, Trigger.TIME_RESET): (_HOLD, Reason.TIME_WAS_RESET),
    (_P, Trigger.RECORDING_ENDED): (_HOLD, Reason.RECORDING_ENDED),
    (_P, Trigger.END_EPISODE): (_HOLD, Reason.NO_EPISODE),
    (_H, Trigger.END_EPISODE): (_HOLD, Reason.NO_EPISODE),
    (_HOLD, Trigger.END_EPISODE): (_HOLD, Reason.NO_EPISODE),
    (_F, Trigger.CLEAR_FAULT): (_HOLD, Reason.FAULT_CLEARED),
} | {
    (authority, trigger): (_F, reason)
    for authority in (_P, _H, _HOLD)
    for trigger, reason in (
        (Trigger.ESTOP, Reason.ESTOPPED),
        (Trigger.SECOND_ARBITER, Reason.SECOND_ARBITER_SEEN),
    )
}
