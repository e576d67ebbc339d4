"""Hearing a topic whatever QoS its publishers offer, as rosbag2 does."""

from collections.abc import Iterable, Iterator

from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

from hapo_ros.nodes.common import message_class
from hapo_ros.nodes.polling import UNWATCHED, never, received


def adapted(wanted: QoSProfile, offered: Iterable[QoSProfile]) -> QoSProfile:
    """``wanted``, less what one of the publishers does not offer: so all of them are heard.

    Reliable only if all are, transient local only if all are. Their depth, deadline, lifespan and
    liveliness keep no one from being heard who asks for none.
    """
    offered = list(offered)
    lossy = any(each.reliability == ReliabilityPolicy.BEST_EFFORT for each in offered)
    volatile = any(each.durability == DurabilityPolicy.VOLATILE for each in offered)
    return QoSProfile(
        depth=wanted.depth,
        reliability=ReliabilityPolicy.BEST_EFFORT if lossy else wanted.reliability,
        durability=DurabilityPolicy.VOLATILE if volatile else wanted.durability,
    )


class Listener:
    """A raw subscription whose messages are taken by hand, see ``polling``."""

    def __init__(self, node, topic: str, type_name: str, wanted: QoSProfile):
        self.type_name = type_name
        self._node, self._topic, self._wanted = node, topic, wanted
        self._subscribe(wanted)

    def _subscribe(self, qos: QoSProfile) -> None:
        self._subscription = self._node.create_subscription(
            message_class(self.type_name),
            self._topic,
            never,
            qos,
            callback_group=UNWATCHED,
            raw=True,
        )

    def _publishers(self):
        return self._node.get_publishers_info_by_topic(self._subscription.topic_name)

    def received(self) -> Iterator[tuple[bytes, int]]:
        """Messages that have come since the last call, in order, and when, ns."""
        return received(self._subscription)

    def adapt(self) -> None:
        """Subscribe anew where that takes another QoS; what was not yet taken is lost then."""
        offered = [p.qos_profile for p in self._publishers() if p.topic_type == self.type_name]
        old, new = self._subscription.qos_profile, adapted(self._wanted, offered)
        if (new.reliability, new.durability) != (old.reliability, old.durability):
            self._node.destroy_subscription(self._subscription)
            self._subscribe(new)
            self._node.get_logger().info(
                f"{self._topic} is read {new.reliability.name} and {new.durability.name} from now "
                "on, as it is offered."
            )

    def is_heard(self) -> bool:
        """Whether this is connected to a publisher."""
        return self._subscription.get_publisher_count() > 0

    def misfit(self) -> str:
        """Of publishers that cannot be heard, who and why; "" if there are none of that kind."""
        others = [p for p in self._publishers() if p.topic_type != self.type_name]
        return "; ".join(
            f"{p.node_namespace.rstrip('/')}/{p.node_name} publishes {self._topic} as "
            f"{p.topic_type}, not as {self.type_name}"
            for p in others
        )
