"""Episodes in memory, and updates on them, for the tests of learning."""

import numpy as np
import torch

from hapo_ros import labels
from hapo_ros.episodes.types import EpisodeInfo, Observation, Step
from hapo_ros.learning import methods, reference
from hapo_ros.learning.data import Episode
from hapo_ros.learning.updates import OBJECTIVES
from hapo_ros.policies import checkpoint

NAMES = ["x", "y", "gripper"]
SMALL = {"width": 32, "blocks": 1, "batch_size": 16, "lr": 3e-3}


def episode(name, source, live, actions, states, k=4, version="", **result):
    """An episode with these live labels (T,), actions (T, 3) and object states (T, S)."""
    relabelled = (
        labels.demonstration(live)
        if source == "demonstration"
        else labels.relabel(np.array(live), k)
    )
    pose = np.array([0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    steps = [
        Step(
            t,
            t,
            Observation({}, np.zeros(9), pose, states[t]),
            actions[t].astype(np.float32),
            np.zeros(0, np.float32),
            int(live[t]),
            int(relabelled[t]),
            "",
            False,
            0,
            0.5,
        )
        for t in range(len(live))
    ]
    info = EpisodeInfo(name, "toy", "reach it", source, 0, version, action_space={"names": NAMES})
    return Episode(info, steps, f"hash of {name}", **result)


def update_of(method, base, table, moved=True, **settings):
    """A method's update on a base that has become surer since the reference was computed: of what
    everyone does more than of the rest, so that z0 is positive."""
    resolved = methods.resolve(method, {"k": 4, "batch_size": 8, **settings})
    objective = OBJECTIVES[methods.method(method).objective]
    policy = checkpoint.load(base.checkpoint)
    if not objective.needs_reference:
        update = objective(policy, table, resolved)
        torch.manual_seed(0)
        for parameter in (p for module in update.modules for p in module.parameters()):
            parameter.data += 0.02 * torch.randn_like(parameter)  # a critic that knows something
        return update
    policy.network.head.weight.data *= 0.6
    kept = reference.compute(policy, table, objective.second(resolved))
    if moved:
        policy.network.head.weight.data /= 0.6
    return objective(policy, table, resolved, kept)


def gradients(update, rows):
    """Metrics of one effective batch, and its gradients in one vector."""
    modules = (update.policy.network, *update.modules)
    parameters = [p for module in modules for p in module.parameters()]
    for parameter in parameters:
        parameter.grad = None
    metrics = update.accumulate(np.asarray(rows))
    return metrics, torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
