"""How the episodes of a deployment are made: what their bags say under ``settings``.

The form is that of ``hapo_ros.sim.rollout``: robot, arbiter, operator, disturbance.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields

from hapo_ros.arbitration import ArbiterConfig
from hapo_ros.sim.operator import OperatorConfig


def of_deployment(
    robot: str,
    operator: str,
    in_file: Mapping[str, Mapping],
    arbiter: Mapping,
    hand: tuple[str, Mapping] | None,
) -> dict:
    """``EpisodeInfo.settings``.

    robot, operator: arguments of the deployment. in_file: node -> parameters of its YAML file.
    arbiter: the parameters that the deployment decides; they win. hand: the same of the operator's
    node, after its name; None where there is no operator. Raises ValueError where the parameters do
    not go together.
    """
    how = None
    if hand is not None:
        how = dict(in_file[hand[0]]) | hand[1]
        if operator == "simulated":
            how = _configured(OperatorConfig, how)
        how = {"kind": operator} | how
    return {
        "robot": robot,
        "arbiter": _configured(ArbiterConfig, dict(in_file["arbiter"]) | arbiter),
        "operator": how,
        "disturbance": None,
    }


def _configured(config: type, parameters: Mapping) -> dict:
    """Every field of a configuration that is made from a node's parameters."""
    names = {each.name for each in fields(config)} & set(parameters)
    return asdict(config(**{name: parameters[name] for name in names}))
