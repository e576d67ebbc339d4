"""How the episodes of a deployment are made: what their bags say under ``settings``.

The form is that of ``hapo_ros.sim.rollout``: robot, arbiter, operator, disturbance.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path

from hapo_ros.arbitration import ArbiterConfig
from hapo_ros.sim.operator import OperatorConfig


def of_deployment(
    robot: str, operator: str, file: Path, arbiter: Mapping, hand: tuple[str, Mapping] | None
) -> dict:
    """``EpisodeInfo.settings``.

    robot, operator: arguments of the deployment. file: its YAML file of node parameters. arbiter:
    the parameters that the deployment decides; they win. hand: the same of the operator's node,
    after its name; None where there is no operator. Raises ValueError where the file is none or
    its values cannot be used.
    """
    try:
        in_file = _parameters(file)
        how = None
        if hand is not None:
            how = in_file(hand[0]) | hand[1]
            if operator == "simulated":
                how = _configured(OperatorConfig, how)
            how = {"kind": operator} | how
        return {
            "robot": robot,
            "arbiter": _configured(ArbiterConfig, in_file("arbiter") | arbiter),
            "operator": how,
            "disturbance": None,
        }
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file} cannot be used: {error}. Nothing is started. Mend it, or leave config:= out."
        ) from error


def _parameters(file: Path):
    """Function of a node's name: its parameters in a YAML file of node parameters."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        sections = YAML(typ="safe").load(file) or {}
    except YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error

    def of(node: str) -> dict:
        found = {}
        for name in ("/**", node, f"/{node}"):
            found |= (sections.get(name) or {}).get("ros__parameters") or {}
        return found

    return of


def _configured(config: type, parameters: Mapping) -> dict:
    """Every field of a configuration that is made from a node's parameters."""
    names = {each.name for each in fields(config)} & set(parameters)
    return asdict(config(**{name: parameters[name] for name in names}))
