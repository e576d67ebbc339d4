"""Subscriptions whose messages are taken by hand, many at once, instead of one callback each.

rclpy builds a wait set anew for every message that it delivers, which costs ten times what
recording a message does. Who can wait a few milliseconds subscribes with
``callback_group=UNWATCHED`` and ``callback=never``, and calls :func:`taken` from a timer. Who can
wait except at times, as a policy that lacks one image to answer, uses a :class:`WatchedWhile`, with
a callback for these times, and calls :func:`taken` for what came before.
"""

from collections import deque
from collections.abc import Callable, Iterator

from rclpy.callback_groups import CallbackGroup
from rclpy.qos import QoSProfile, ReliabilityPolicy

REMEMBERED = 500  # messages that may be under way to oneself


class WatchedWhile(CallbackGroup):
    """The executor sees what is in this group only while ``condition`` holds: it is asked before
    each wait, so it has to change in a callback. What comes meanwhile is kept, as far as the QoS
    keeps it."""

    def __init__(self, condition: Callable[[], bool]):
        super().__init__()
        self._condition = condition

    def can_execute(self, entity) -> bool:
        return self._condition()

    def beginning_execution(self, entity) -> bool:
        return self._condition()

    def ending_execution(self, entity) -> None:
        """Callbacks of this group may follow each other in any way."""


UNWATCHED = WatchedWhile(lambda: False)


def never(_message) -> None:
    """The callback of a subscription that the executor leaves alone."""


def taken(subscription) -> Iterator:
    """Messages (bytes, of a raw subscription) that have come since the last call, in order."""
    return (message for message, _ in received(subscription))


def received(subscription) -> Iterator[tuple[object, int]]:
    """As ``taken``, each with the time of its receipt, ns of the system's clock."""
    with subscription.handle:
        while found := subscription.handle.take_message(subscription.msg_type, subscription.raw):
            message, info = found
            yield message, info["received_timestamp"]


class OnlySpeaker:
    """Notices that someone else publishes on a topic that ought to be this node's alone.

    Who is matched is not enough: a process that was killed stays matched for a while, and one that
    never says anything does no harm. What counts is a message that this node has not sent. key: of
    a message, what tells it from others (its bytes do not: padding in them is whatever it was).
    """

    def __init__(self, node, publisher, key: Callable):
        self._node, self._publisher, self._key = node, publisher, key
        self._said = deque(maxlen=REMEMBERED)
        self._heard = node.create_subscription(
            publisher.msg_type,
            publisher.topic_name,
            never,
            QoSProfile(depth=REMEMBERED, reliability=ReliabilityPolicy.BEST_EFFORT),  # hears all
            callback_group=UNWATCHED,
        )

    def publish(self, message) -> None:
        """Publish, and remember it."""
        self._said.append(self._key(message))
        self._publisher.publish(message)

    def others(self) -> str:
        """Names of the other publishers, if one of them has spoken since the last call, else ""."""
        if all([self._key(message) in self._said for message in taken(self._heard)]):
            return ""
        own = self._node.get_fully_qualified_name()
        infos = self._node.get_publishers_info_by_topic(self._publisher.topic_name)
        names = {f"{info.node_namespace.rstrip('/')}/{info.node_name}" for info in infos} - {own}
        return ", ".join(sorted(names)) or "a node of the same name"
