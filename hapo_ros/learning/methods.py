"""The methods and their settings, as data (method.md 1.4 and 1.6).

A method is an objective, the groups its batches are drawn from, and defaults that differ from the
common ones. The next method is one more entry of :data:`METHODS`; a new objective is one more class
in ``updates.py`` or ``cloning.py``.
"""

import math
from dataclasses import dataclass, field

from hapo_ros.learning.table import GROUPS, TAKEOVER, UNIONS
from hapo_ros.policies import FAMILIES

EXPERT_ONLY = {"expert": 1.0}
PAPER_FRACTIONS = {"expert": 0.5, "human": 0.25, "undesirable": 0.25}


@dataclass(frozen=True)
class Setting:
    """default; kind: type of the value; choices or low (inclusive, or exclusive where ``above``)
    bound it; none: whether None is allowed; text: what it is, with its unit."""

    default: object
    kind: type
    text: str
    choices: tuple = ()
    low: float | None = None
    above: bool = False
    high: float = math.inf
    none: bool = False

    def checked(self, name: str, value):
        """The value in its type; ValueError with a sentence otherwise."""
        if value is None and self.none:
            return None
        number = isinstance(value, int | float) and not isinstance(value, bool)
        good = isinstance(value, self.kind) and (self.kind is bool or not isinstance(value, bool))
        if self.kind is float and number:
            value, good = float(value), math.isfinite(value)
        if good and self.choices:
            good = value in self.choices
        if good and self.low is not None:
            good = (value > self.low if self.above else value >= self.low) and value <= self.high
        if not good:
            raise ValueError(f"Setting {name} must be {self._wanted()}, not {value!r}. {self.text}")
        return value

    def _wanted(self) -> str:
        if self.choices:
            return "one of " + ", ".join(map(str, self.choices))
        kinds = {
            int: "a whole number",
            float: "a number",
            bool: "true or false",
            dict: "a table of group: share",
        }
        text = kinds.get(self.kind, self.kind.__name__)
        if self.low is not None:
            text += f" {'>' if self.above else '>='} {self.low:g}"
        if self.high < math.inf:
            text += f" and <= {self.high:g}"
        return text + (" or none" if self.none else "")


COMMON = {
    "steps": Setting(1000, int, "Optimizer steps.", low=1),
    "batch_size": Setting(
        32, int, "Samples of an effective batch, over all ranks; of tpo takeovers.", low=1
    ),
    "micro_batch": Setting(
        None, int, "Samples of one pass of a rank; none: all.", low=1, none=True
    ),
    "lr": Setting(5e-5, float, "Highest learning rate.", low=0, above=True),
    "warmup": Setting(10, int, "Steps to the highest learning rate; cosine after.", low=0),
    "weight_decay": Setting(0.0, float, "Of AdamW.", low=0),
    "max_grad_norm": Setting(1.0, float, "Gradients are scaled down to it.", low=0, above=True),
    "parameters": Setting("lora", str, "What is trained.", choices=("lora", "full")),
    "lora_rank": Setting(32, int, "Rank of the adapter.", low=1),
    "lora_alpha": Setting(16, int, "Scale of the adapter, over its rank.", low=1),
    "precision": Setting(
        "float32",
        str,
        "Of the network's arithmetic; weights and losses are float32.",
        choices=("float32", "bfloat16"),
    ),
    "activation_checkpointing": Setting(
        False, bool, "Compute activations twice instead of keeping them: less memory, more time."
    ),
    "shard_weights": Setting(
        False,
        bool,
        "Divide the blocks' weights, gradients and moments among ranks: less memory, more traffic.",
    ),
    "save_every": Setting(
        200, int, "Steps between states that a killed run is resumed from; 0: none.", low=0
    ),
    "seed": Setting(0, int, "Of batches, partners, noise and initial weights.", low=0),
    "k": Setting(10, int, "Control steps before a takeover that are undesirable.", low=0),
    "accept_recovered": Setting(
        False, bool, "Use episodes that were cut short, recovered or are lossy too."
    ),
    "drop_unresolved": Setting(True, bool, "Leave out corrections that never resolved."),
}
SAMPLING = {
    "fractions": Setting(None, dict, "Share of each group; none: the method's.", none=True),
    "no_balanced_sampling": Setting(False, bool, "Draw from all groups alike (ablation)."),
    "allow_missing_group": Setting(False, bool, "Give the share of an empty group to others."),
}
CLONING = {
    "image_shift": Setting(0, int, "Random shift of training images, pixels.", low=0),
}
DAGGER = {
    "no_undesirable": Setting(False, bool, "Leave out the steps before a takeover."),
}
PREFERENCE = {
    "beta": Setting(0.1, float, "Temperature of the log-ratios.", low=0, above=True),
    "bc_weight": Setting(0.0, float, "Of the desirable samples' negative log-likelihood.", low=0),
    "undesirable_floor": Setting(
        None, float, "Log-ratio below which an undesirable action gives no gradient.", none=True
    ),
    "flow_samples": Setting(
        4, int, "Of a flow policy: draws of noise and time that a chunk is scored at.", low=1
    ),
    "flow_sets": Setting(
        4, int, "Of a flow policy: sets of such draws that each chunk has; a step takes one.", low=1
    ),
}
PERTURBED = {
    "sigma": Setting(0.1, float, "Noise of the rejected action, in normalised units.", low=0),
}
UTILITY = {
    "z0_max": Setting(None, float, "Upper bound of z0.", low=0, none=True),
    "no_z0": Setting(False, bool, "z0 = 0 (ablation)."),
    "no_gripper_rule": Setting(False, bool, "Undesirable samples count the gripper (ablation)."),
}
REWEIGHTING = {
    "beta_d": Setting(1.0, float, "Of eq. (5).", low=0),
    "beta_u": Setting(1.0, float, "Of eq. (6).", low=0),
    "scope": Setting("batch", str, "Over what the errors are summed.", choices=("batch", "group")),
    "scale": Setting("none", str, "Of the weights.", choices=("none", "unit_mean")),
    "l1_prediction": Setting(
        "teacher_forced",
        str,
        "How the predicted action is made.",
        choices=("teacher_forced", "generate"),
    ),
    "no_reweighting": Setting(False, bool, "lambda = 1 (ablation; this is kto)."),
}
WINDOWS = {
    "window": Setting(50, int, "Steps in which the operator's of a correction are counted.", low=1),
    "min_human": Setting(10, int, "Least operator's steps in the window of one learned.", low=1),
}
CRITIC = {
    "critic_warmup": Setting(
        500, int, "Steps in which only the critic learns what the policy's steps are worth.", low=0
    ),
    "critic_backbone": Setting(
        False, bool, "The critic's loss trains the policy's features, not its own heads alone."
    ),
    "stale_after": Setting(
        10000,
        int,
        "Optimizer steps after which what a policy did is not learned from; none: never.",
        low=0,
        none=True,
    ),
}
ADVANTAGE = {
    "t_max": Setting(
        None, int, "Steps an episode may take; none: the longest recorded.", low=1, none=True
    ),
    "huber_delta": Setting(
        1.0, float, "Error of the efficiency head, in steps, from which its loss is linear.",
        low=0, above=True,
    ),
    "eps": Setting(1e-6, float, "Least mean that weights are divided by.", low=0, above=True),
    "demonstrations_in_mean": Setting(
        True, bool, "Demonstrations enter the mean of eq. (8); else they weigh 1."
    ),
    "reweight_interventions": Setting(False, bool, "The gate weights corrections too (IR)."),
    "no_efficiency": Setting(False, bool, "Viability alone (ablation; this is habc_v)."),
}  # fmt: skip
RECAP = {
    "gamma": Setting(0.99, float, "Discount of a step's rewards.", low=0, above=True, high=1),
    "failure_penalty": Setting(100.0, float, "Taken at the end of a failure.", low=0),
    "value_bins": Setting(101, int, "Returns that the value is a distribution over.", low=2),
    "held_out": Setting(
        0.2, float, "Share of deployment episodes that the threshold is chosen on.",
        low=0, above=True, high=0.9,
    ),
    "keep": Setting(
        0.25, float, "Share of their steps above the threshold.", low=0, above=True, high=1
    ),
}  # fmt: skip
HABC_FRACTIONS = {"expert": 0.5, "human": 0.25, "policy": 0.25}
HABC_SETTINGS = COMMON | SAMPLING | CLONING | WINDOWS | CRITIC | ADVANTAGE
HABC_BATCH = {"batch_size": 256}
BASE = {
    "family": Setting("tiny_vla", str, "Of the new policy.", choices=tuple(FAMILIES)),
    "inputs": Setting(
        "auto",
        str,
        "What the policy sees; auto: images where recorded, else state.",
        choices=("auto", "images", "state", "both"),
    ),
    "horizon": Setting(None, int, "Actions of a chunk; none: the family's.", low=1, none=True),
    "width": Setting(128, int, "Width of the transformer.", low=16),
    "blocks": Setting(4, int, "Blocks of the transformer.", low=1),
}
FLOW = {
    "executed": Setting(
        None, int, "Actions of a flow policy's chunk that are executed; none: half.",
        low=1, none=True,
    ),
    "integration_steps": Setting(
        None, int, "From noise to a flow policy's actions; none: 10.", low=1, none=True
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Method:
    """objective: class by name, see ``updates.OBJECTIVES``. fractions: groups of a batch. settings:
    all it knows. defaults: where they differ. text: one sentence for users. after: methods of which
    one has to have made the base, or a policy that the base comes from; empty: any."""

    name: str
    objective: str
    text: str
    settings: dict[str, Setting]
    fractions: dict[str, float]
    defaults: dict = field(default_factory=dict)
    after: tuple[str, ...] = ()


METHODS = {
    m.name: m
    for m in (
        Method(
            "bc",
            "cloning",
            "Behaviour cloning of demonstrations: trains a base policy.",
            COMMON | SAMPLING | CLONING | BASE | FLOW,
            EXPERT_ONLY,
            {"parameters": "full", "lr": 5e-4, "batch_size": 64, "steps": 2500},
        ),
        Method(
            "bc_continue",
            "cloning",
            "The control: more behaviour cloning of demonstrations.",
            COMMON | SAMPLING | CLONING,
            EXPERT_ONLY,
        ),
        Method(
            "dagger",
            "cloning",
            "Behaviour cloning of demonstrations and of all that was done in deployments.",
            COMMON | SAMPLING | CLONING | DAGGER,
            {"expert": 0.5, "interaction": 0.5},
        ),
        Method(
            "sirius",
            "sirius",
            "Behaviour cloning of all steps, weighted by who acted and what came of it.",
            COMMON | CLONING,
            {"all": 1.0},
        ),
        Method(
            "dpo",
            "dpo",
            "Direct preference optimization: what was recorded rather than a disturbed prediction.",
            COMMON | SAMPLING | PREFERENCE | PERTURBED,
            {"expert": 0.5, "human": 0.5},
        ),
        Method(
            "tpo",
            "tpo",
            "Preference optimization of segments: the correction rather than what came before it.",
            COMMON | PREFERENCE,
            {TAKEOVER: 1.0},
            {"batch_size": 8},
        ),
        Method(
            "kto",
            "kto",
            "hapo without its weights: every sample counts alike.",
            COMMON | SAMPLING | PREFERENCE | UTILITY,
            PAPER_FRACTIONS,
        ),
        Method(
            "hapo",
            "hapo",
            "Action preference optimization as published.",
            COMMON | SAMPLING | PREFERENCE | UTILITY | REWEIGHTING,
            PAPER_FRACTIONS,
        ),
        Method(
            "hapo_anchored",
            "hapo",
            "hapo with a cloning term and a floor: ours.",
            COMMON | SAMPLING | PREFERENCE | UTILITY | REWEIGHTING,
            PAPER_FRACTIONS,
            {"bc_weight": 1.0, "undesirable_floor": -5.0},
        ),
        Method(
            "imit_dagger",
            "imit_dagger",
            "Behaviour cloning of demonstrations and corrections, half and half.",
            COMMON | SAMPLING | CLONING | WINDOWS,
            {"expert": 0.5, "human": 0.5},
            HABC_BATCH,
        ),
        Method(
            "imit_recap",
            "imit_recap",
            "Behaviour cloning of demonstrations and of steps that a value thinks good.",
            COMMON | SAMPLING | CLONING | CRITIC | RECAP,
            {"expert": 0.5, "interaction": 0.5},
            HABC_BATCH,
        ),
        Method(
            "habc_v",
            "habc",
            "habc without its efficiency head.",
            HABC_SETTINGS,
            HABC_FRACTIONS,
            HABC_BATCH | {"no_efficiency": True},
        ),
        Method(
            "habc",
            "habc",
            "Behaviour cloning weighted by a critic of viability and efficiency.",
            HABC_SETTINGS,
            HABC_FRACTIONS,
            HABC_BATCH,
        ),
        Method(
            "habc_ir",
            "habc",
            "habc that weights corrections too, for a policy that habc has trained.",
            HABC_SETTINGS,
            HABC_FRACTIONS,
            HABC_BATCH | {"reweight_interventions": True},
            after=("habc", "habc_v", "habc_ir"),
        ),
    )
}


def method(name: str) -> Method:
    """A method by name; ValueError names the methods there are."""
    if name not in METHODS:
        raise ValueError(f"There is no method {name!r}. Use one of: {', '.join(METHODS)}.")
    return METHODS[name]


def resolve(name: str, overrides: dict | None = None) -> dict:
    """Every setting of a method, defaults and overrides together.

    Raises ValueError for an unknown setting (naming those there are) or a bad value.
    ``fractions`` is filled in, also for a method that leaves no choice of them; ``micro_batch`` is
    the batch size where not given.
    """
    chosen = method(name)
    overrides = dict(overrides or {})
    unknown = sorted(set(overrides) - set(chosen.settings))
    if unknown:
        raise ValueError(
            f"Method {name} has no setting {', '.join(map(repr, unknown))}. "
            f"It has: {', '.join(sorted(chosen.settings))}."
        )
    given = {key: s.default for key, s in chosen.settings.items()} | chosen.defaults | overrides
    settings = {key: chosen.settings[key].checked(key, value) for key, value in given.items()}
    settings["fractions"] = _fractions(settings.get("fractions")) or chosen.fractions
    settings["micro_batch"] = settings["micro_batch"] or settings["batch_size"]
    return settings


def _fractions(fractions: dict | None) -> dict[str, float] | None:
    if not fractions:
        return None
    share = Setting(0.0, float, "Share of a group.", low=0, high=1)
    known = (*GROUPS, *UNIONS)
    unknown = sorted(set(fractions) - set(known))
    if unknown:
        raise ValueError(
            f"Setting fractions names {', '.join(unknown)}; "
            f"there are the groups {', '.join(known)}."
        )
    checked = {name: share.checked(f"fractions.{name}", f) for name, f in fractions.items()}
    if abs(sum(checked.values()) - 1.0) > 1e-6:
        raise ValueError(f"Setting fractions must sum to 1, not {sum(checked.values()):g}.")
    return {name: f for name, f in checked.items() if f > 0}
