"""Episodes in memory, and updates on them, for the tests of learning."""

from dataclasses import replace

import numpy as np
import torch

from hapo_ros import labels
from hapo_ros.episodes.types import EpisodeInfo, Observation, Step
from hapo_ros.labels import HUMAN, POLICY
from hapo_ros.learning import methods, reference, trainer
from hapo_ros.learning.data import Episode
from hapo_ros.learning.updates import OBJECTIVES
from hapo_ros.policies import checkpoint
from hapo_ros.policies.pi0_fast import Pi0Fast
from hapo_ros.policies.small import Recorded

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


def run(name, live, outcome="success", **options):
    """A deployment episode of random states and the actions that they ask for."""
    rng = np.random.default_rng(len(name) + len(live))
    states = rng.uniform(-1, 1, (len(live), 2))
    return episode(name, "deployment", live, np.c_[states, np.ones(len(live))], states,
                   outcome=outcome, **options)  # fmt: skip


def episodes():
    """Two demonstrations, a success and a failure of the policy alone, and one of each with help
    in the middle."""
    demonstrations = [replace(run(f"demo{i}", [POLICY] * 8), bag_hash=f"d{i}") for i in range(2)]
    for made in demonstrations:
        made.info.source = "demonstration"
    p, h = [POLICY], [HUMAN]
    return [
        *demonstrations,
        run("alone", p * 6),
        run("lost", p * 5, "failure"),
        run("helped", p * 3 + h * 4 + p * 3),
        run("in vain", p * 2 + h * 3 + p * 2, "failure"),
    ]


def trained_base(table, folder, steps=5, **settings):
    """A base policy after so many steps of behaviour cloning, in ``folder``; a Trained."""
    return trainer.train_bc(table, {**SMALL, "k": 4, "steps": steps, **settings}, folder / "base")


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
    draws = objective.draws(policy, resolved)
    kept = reference.compute(policy, table, objective.second(resolved), draws)
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


def muted(policy):
    """A pi0_fast whose answers are no actions: it says one token until there is no slot left."""
    with torch.no_grad():
        policy.network.head.bias[policy.tokenizer.end - 1] += 1e4
    return policy


def save_mute(folder, names, object_state):
    """A small untrained policy, ``muted``, that sees a state of so many numbers; its folder."""
    rng = np.random.default_rng(0)
    recorded = Recorded(
        images={},
        proprio=rng.normal(size=(9, 11)).astype(np.float32),
        object_state=rng.normal(size=(9, object_state)).astype(np.float32),
        actions=rng.uniform(-1, 1, (9, 5, len(names))).astype(np.float32),
        action_mask=np.ones((9, 5), bool),
        action_names=tuple(names),
        instructions={"lift the cube"},
    )
    settings = {"horizon": 5, "width": 32, "blocks": 1}
    checkpoint.save(muted(Pi0Fast.untrained(recorded, settings, seed=0)), folder, {})
    return folder
