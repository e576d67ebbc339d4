"""The card of a checkpoint: its README.md, for whoever finds the folder.

It is made from the policy and its provenance. No program reads it, and the version does not depend
on it.
"""

import json

NAME = "README.md"

_USE = """\
With hapo_ros installed, and FOLDER for this folder:

```sh
hapo evaluate FOLDER --first-seed 9000 --episodes 100   # in simulation
hapo deploy policy:=FOLDER   # or: ros2 launch hapo_ros deploy.launch.py policy:=FOLDER
hapo promote FOLDER   # a running policy node loads it
```

```python
from hapo_ros.policies import checkpoint

policy = checkpoint.load("FOLDER")
actions = policy.act(observation, "the instruction")  # of a hapo_ros.episodes.Observation
```"""


def card(policy, version: str, provenance: dict) -> str:
    """The text, Markdown. policy: of any family. provenance: as ``trainer`` writes it; what is not
    in it is left out."""
    method = provenance.get("method") or "unknown"
    tasks = sorted({bag["instruction"] for bag in provenance.get("bags", [])})
    what = f" for {_listed(map(json.dumps, tasks))}" if tasks else ""
    parts = [
        _front_matter(policy, method),
        f"# Policy {version}",
        f"A robot policy of family `{policy.family}`{what}, trained by hapo_ros with method "
        f"`{method}`. Its name is its version: the hash of this folder's files, without this one "
        "and `provenance.json`, which has all of the following for programs, and more.",
        _section("What it sees and does", _interface(policy)),
        _section("How it was made", _making(provenance)),
        _section("What it was made from", _data(provenance)),
        _section("Means over the last steps of training", _metrics(provenance)),
        _section("What to beware of", _limits(provenance)),
        _section("How to use it", _USE),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(policy, method: str) -> str:
    """What model hubs index."""
    tags = "\n".join(f"- {tag}" for tag in ("robotics", "hapo_ros", policy.family, method))
    return f"---\nlibrary_name: hapo_ros\npipeline_tag: robotics\ntags:\n{tags}\n---"


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}" if text else ""


def _interface(policy) -> str:
    rows = [f"camera `{name}`: {h} x {w}, RGB" for name, (h, w) in sorted(policy.cameras.items())]
    if policy.object_state:
        rows.append(f"object state: {policy.object_state} numbers")
    rows.append("proprioception: end-effector pose and fingers; an instruction in words")
    names = _listed(f"`{name}`" for name in policy.action_names)
    rows.append(f"actions: {names}, each in [-1, 1], in chunks of {policy.horizon}")
    return _bullets(rows)


def _making(provenance: dict) -> str:
    rows = []
    if provenance.get("parent"):
        rows.append(
            f"from version `{provenance['parent']}` (`{provenance.get('parent_checkpoint', '')}`)"
        )
    if provenance.get("command"):
        rows.append(f"by `{provenance['command']}`")
    if provenance.get("batch_composition"):
        counts = (f"{count} {name}" for name, count in provenance["batch_composition"].items())
        ranks = provenance.get("ranks", 1)
        among = f", divided among {ranks} processes" if ranks > 1 else ""
        rows.append(f"an effective batch: {_listed(counts)}{among}")
    if provenance.get("k") is not None:
        rows.append(f"K: the {provenance['k']} steps before a takeover are undesirable")
    if provenance.get("software"):
        rows.append(_listed(f"{name} {found}" for name, found in provenance["software"].items()))
    if provenance.get("created"):
        rows.append(f"finished {provenance['created']}")
    settings = json.dumps(provenance.get("settings", {}), indent=1, sort_keys=True)
    return f"{_bullets(rows)}\n\nSettings:\n\n```json\n{settings}\n```".lstrip()


def _data(provenance: dict) -> str:
    bags = provenance.get("bags", [])
    if not bags:
        return ""
    counts = provenance.get("counts", {})
    said = _listed(f"{count} {name.replace('_', ' ')}" for name, count in counts.items() if count)
    rows = [
        f"| {bag['episode_id']} | {bag['source']} | {bag['outcome']} | {bag['steps']} | "
        f"`{bag['bag_hash']}` |"
        for bag in bags
    ]
    head = (
        "| episode | source | outcome | steps used | bag's hash |",
        "| --- | --- | --- | --- | --- |",
    )
    return f"{len(bags)} episodes; steps: {said or 'not counted'}.\n\n" + "\n".join([*head, *rows])


def _metrics(provenance: dict) -> str:
    metrics = provenance.get("metrics", {})
    return _bullets(f"{k}: {v:.4g}" for k, v in sorted(metrics.items()) if v is not None)


def _limits(provenance: dict) -> str:
    rows = [
        "These are metrics of training. How often the policy succeeds is for an evaluation to say: "
        "`hapo evaluate`, on seeds that it was not trained on.",
        "It knows the robot, the cameras, the action space and the tasks of the episodes above, "
        "and nothing else. It is no safety function.",
        "It states no licence of its own: that of what it is part of holds, or ask whoever made "
        "it. None can be wider than those of the recordings and checkpoints that it comes from.",
    ]
    return _bullets([*rows, *provenance.get("notes", [])])


def _listed(words) -> str:
    return ", ".join(words)


def _bullets(rows) -> str:
    return "\n".join(f"- {row}" for row in rows)
