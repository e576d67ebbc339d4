"""Small bags on disk, for the tests of those who show them."""

import numpy as np

from hapo_ros import labels, topics
from hapo_ros.arbitration.types import Applied, Authority, Decision, PolicyCommand, Reason, Tick
from hapo_ros.episodes import EpisodeInfo, EpisodeWriter, Observation, messages

TYPES = messages.bag_types()
P, H, N = labels.POLICY, labels.HUMAN, labels.NONE
PERIOD_NS = 50_000_000
NAMES = ["x", "y", "z", "gripper"]
HOSTILE = "<script>alert('lift')</script> & \"run\""
CORRECTED = (P,) * 15 + (H,) * 6 + (N,) + (P,) * 4


def record(root, episode_id, live, outcome="success", size=(8, 8), names=NAMES, extra=(), **about):
    """A bag; live: a label a step, after which comes the last observation. extra: (topic, message)
    added at its end."""
    rng = np.random.default_rng(0)
    info = EpisodeInfo(
        **{
            "episode_id": episode_id,
            "task": "Lift",
            "instruction": HOSTILE,
            "source": "deployment",
            "seed": 7,
            "cameras": {"front": list(size), "wrist": list(size)},
            "action_space": {"names": names, "gripper": "-1 open, 1 closed"},
        }
        | about
    )
    recorded = topics.recorded(info.cameras, bool(info.object_state))
    writer = EpisodeWriter(root, info, recorded, start_ns=0)
    for sequence in range(len(live) + 1):
        now_ns = (sequence + 1) * PERIOD_NS
        applied = Applied.APPLIED if sequence else Applied.NO_DECISION
        tick = Tick(episode_id, sequence, now_ns, sequence - 1, applied)
        observation = Observation(
            images={name: rng.integers(0, 256, (*size, 3), np.uint8) for name in info.cameras},
            joint_positions=np.zeros(7),
            eef_pose=np.array([0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]),
            object_state=np.zeros(1) if info.object_state else None,
        )
        observed = messages.observation_messages(TYPES, observation, tick, info.object_state)
        for topic, message in observed.items():
            writer.write_message(topic, message, now_ns)
        if sequence == len(live):
            break
        action = np.full(len(names), (-1.0) ** (sequence // 4), np.float32)
        if live[sequence] == P:
            command = PolicyCommand(
                episode_id, sequence, 1, "v1", action[None], sequence / len(live)
            )
            message = messages.policy_action_message(TYPES, command, now_ns)
            writer.write_message(topics.POLICY_ACTION, message, now_ns)
        decision = Decision(
            episode_id, sequence, action, action, live[sequence], Authority.POLICY,
            Reason.POLICY_ACTS, 1,
        )  # fmt: skip
        message = messages.executed_action_message(TYPES, decision, now_ns)
        writer.write_message(topics.EXECUTED_ACTION, message, now_ns)
    for topic, message in extra:
        writer.write_message(topic, message, now_ns)
    return writer.finish(writer.result(outcome))
