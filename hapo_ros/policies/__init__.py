"""Policy families, action tokenizers, and checkpoints.

A family is one entry of :data:`FAMILIES`, named in a checkpoint's config.json; its class offers
what :class:`hapo_ros.policies.base.Policy` lists. Nothing is imported until it is asked for.
"""

from importlib import import_module

FAMILIES = {
    "tiny_vla": "hapo_ros.policies.tiny_vla:TinyVla",
    "pi0_fast": "hapo_ros.policies.pi0_fast:Pi0Fast",
    "flow": "hapo_ros.policies.flow:Flow",
}


def family(name: str) -> type:
    """Class of a policy family; ValueError names the families there are."""
    if name not in FAMILIES:
        raise ValueError(
            f"There is no policy family {name!r}, so the policy cannot be built. "
            f"Use one of: {', '.join(sorted(FAMILIES))}."
        )
    module, _, attribute = FAMILIES[name].partition(":")
    return getattr(import_module(module), attribute)
