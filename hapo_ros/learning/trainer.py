"""Training, by any method: from recorded episodes to a new checkpoint.

``train_bc`` makes a base policy, ``optimize`` a better one from a base and interventions. Both
take bags or a ready :class:`StepTable`, say how far they are, stop where asked to, and write a
checkpoint only when everything went well. What is served is never changed from here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import wraps
from pathlib import Path

import numpy as np
import torch

from hapo_ros.learning import data, interrupted, methods, precision, reference, sharding
from hapo_ros.learning.cloning import Update
from hapo_ros.learning.loop import Cancelled, Hooks, OutOfMemory, Training
from hapo_ros.learning.parallel import Ranks
from hapo_ros.learning.runlog import (
    Notes,
    RunLog,
    jsonable,
    last_folder,
    new_folder,
    software,
)
from hapo_ros.learning.sampler import BalancedSampler
from hapo_ros.learning.table import GROUPS, TAKEOVER, StepTable
from hapo_ros.learning.updates import OBJECTIVES
from hapo_ros.policies import checkpoint, family, lora


@dataclass
class Trained:
    """A new checkpoint. metrics: means over the last steps. run: folder of the run's metrics.
    notes: sentences a user should read (shares given to other groups, log-ratios that ran away).
    skipped: one for every bag that was given and not used, which makes it a result with loss."""

    checkpoint: Path
    version: str
    metrics: dict
    run: Path
    notes: list[str]
    skipped: list[str]


@contextmanager
def _told_of_memory() -> Iterator[None]:
    """What numpy and torch raise where memory runs out, as OutOfMemory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # Of the CPU's memory torch says it in words only.
        known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not known and "can't allocate memory" not in str(error):
            raise
        what = str(error).partition("\n")[0] or type(error).__name__
        raise OutOfMemory(
            f"Memory ran out ({what}). Training stopped and no checkpoint was written. Use a "
            "smaller batch_size or micro_batch, a smaller policy, fewer bags, or another machine."
        ) from error


def _training(train):
    """``train`` on several ranks, which end with one error, if any, and are told of memory."""

    @wraps(train)
    def on_all(*arguments, ranks: Ranks | None = None, **options) -> Trained:
        ranks = ranks or Ranks()
        with ranks.together(), _told_of_memory():
            return train(*arguments, ranks=ranks, **options)

    return on_all


@_training
def train_bc(
    source,
    settings: dict | None,
    output,
    *,
    progress=None,
    cancelled=None,
    run_folder=None,
    device: str | None = None,
    resume: bool = False,
    command: str = "",
    ranks: Ranks,
) -> Trained:
    """Train a base policy by behaviour cloning of the demonstrations in ``source``.

    source: bag folders, or a StepTable. settings: overrides of method ``bc``. output: folder of
    the new checkpoint. run_folder: of the metrics, ``output`` with ".run" behind it by default.
    device: of torch; a GPU where there is one. resume: go on with the run of the same arguments
    that was cancelled or killed, from what is kept in its ``run_folder``; on the CPU the checkpoint
    is that of a run that was never interrupted, bit for bit. command: that this was asked for by,
    for the checkpoint's card. ranks: processes that make this same call, of ``parallel.started``;
    this one alone where not given. Rank 0 writes, the others return the same. Raises ValueError for
    bad settings or data or where there is no such run, FileExistsError where ``output`` exists,
    Cancelled, Diverged, OutOfMemory, RankLost; what ends one rank ends all by the same error.
    """
    resolved = methods.resolve("bc", settings)
    _refuse_existing(output)
    made = family(resolved["family"])
    foreign = [n for n in methods.FLOW if resolved[n] is not None and n not in made.SIZES]
    if foreign:
        raise ValueError(
            f"A policy of family {made.family} has no {' and no '.join(foreign)}, so nothing was "
            "trained. Leave them out, or use family flow."
        )
    resolved["horizon"] = resolved["horizon"] or made.Config.horizon
    options = _inputs(resolved["inputs"]) | {"horizon": resolved["horizon"]}
    table = _table(source, resolved, ("expert",), options)
    policy = _new_policy(table, resolved)
    table = _imitable("bc", table.seen_by(policy), policy)
    return _run(
        "bc",
        policy,
        table,
        resolved,
        output,
        device=device,
        run_folder=run_folder,
        resume=resume,
        command=command,
        ranks=ranks,
        hooks=_hooks(progress, cancelled),
    )


@_training
def optimize(
    source,
    base,
    method: str,
    settings: dict | None,
    output,
    *,
    progress=None,
    cancelled=None,
    run_folder=None,
    reference_cache=None,
    device: str | None = None,
    resume: bool = False,
    command: str = "",
    ranks: Ranks,
) -> Trained:
    """Optimize the policy of checkpoint ``base`` on ``source`` by a method (method.md 1).

    As ``train_bc``; method: a name in ``methods.METHODS`` other than bc. reference_cache: folder
    in which reference log-probabilities are kept for other runs on the same data.
    """
    resolved = methods.resolve(method, settings)
    if "inputs" in resolved:
        raise ValueError(f"Method {method} trains a new base policy: call train_bc.")
    _refuse_existing(output)
    policy = checkpoint.load(base)
    ancestors = checkpoint.lineage(base)
    _require_first_phase(method, ancestors)
    whole = resolved.get("no_balanced_sampling") or _objective(method).needs_following
    groups = GROUPS if whole else tuple(resolved["fractions"])
    options = {
        "cameras": tuple(policy.cameras),
        "object_state": policy.object_state > 0,
        "horizon": policy.horizon,
    }
    table = _imitable(method, _table(source, resolved, groups, options).seen_by(policy), policy)
    table = replace(table, ages=_ages(ancestors))
    return _run(
        method,
        policy,
        table,
        resolved,
        output,
        base=base,
        reference_cache=reference_cache,
        device=device,
        run_folder=run_folder,
        resume=resume,
        command=command,
        ranks=ranks,
        hooks=_hooks(progress, cancelled),
    )


def _run(
    method: str,
    policy,
    table: StepTable,
    settings: dict,
    output,
    *,
    base=None,
    reference_cache=None,
    device,
    run_folder,
    resume: bool,
    command: str,
    ranks: Ranks,
    hooks: Hooks,
) -> Trained:
    output = Path(output)
    parent = policy.version
    # whether weights are divided changes nothing but rounding: it is gone on with either way
    identity = {
        "method": method,
        "base": parent,
        "settings": {name: settings[name] for name in settings if name != "shard_weights"},
        "episodes": [table.fingerprint(), *table.episodes],
    }
    ranks.require_same({**identity, "settings": settings, "software": software()})
    folder = run_folder or output.with_name(output.name + ".run")
    state = None
    if resume:
        folder = last_folder(folder)
        state = ranks.from_first(lambda: interrupted.read(folder, identity))
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    # first, as a whole network may be too large for the device
    if settings["shard_weights"]:
        sharding.divide(policy, ranks, device)
    policy.to(device)
    precision.prepare(policy, settings)
    sampler = _sampler(method, table, settings, ranks)
    update = _update(method, policy, table, settings, reference_cache, ranks, hooks)
    if not resume:
        folder = ranks.from_first(lambda: new_folder(folder))
    with RunLog(folder, state["step"] if state else 0) if ranks.first else Notes() as log:
        training = Training(policy, update, sampler, settings, log)
        if state:
            training.load_state_dict(state)

        def keep() -> None:
            kept = training.state_dict()
            if ranks.first:
                interrupted.write(folder, identity, kept)

        try:
            metrics = training.run(hooks, keep)
        except Cancelled as error:
            keep()
            raise Cancelled(
                f"{error} It had done {training.step} of {settings['steps']} steps; the same "
                "command with --resume goes on from there."
            ) from error
    notes = [*sampler.notes, *update.notes, *log.notes]
    provenance = jsonable(
        {
            "method": method,
            "command": command,
            "settings": settings,
            "parent": parent,
            "parent_checkpoint": str(base or ""),
            "ancestors": checkpoint.lineage(base) if base else [],
            "k": table.k,
            "effective_batch": settings["batch_size"],
            "ranks": ranks.size,
            "batch_composition": sampler.counts,
            "bags": table.episodes,
            "counts": table.counts,
            "metrics": metrics,
            "notes": notes,
            "skipped": table.skipped,
            "software": software(),
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
    )
    weights = {name: ranks.whole(tensor) for name, tensor in policy.network.state_dict().items()}
    policy.version = ranks.from_first(
        lambda: checkpoint.save(policy, output, provenance, weights=weights)
    )
    if ranks.first:
        interrupted.forget(folder)
    return Trained(output, policy.version, metrics, folder, notes, table.skipped)


def _objective(method: str) -> type[Update]:
    return OBJECTIVES[methods.method(method).objective]


def _update(method: str, policy, table, settings, reference_cache, ranks, hooks):
    """The objective's update. Whatever the reference needs is computed before anything is trained,
    from these very weights, and LoRA is added to them in place: there is one set of weights."""
    objective = _objective(method)
    inputs = [policy, table, settings]
    if objective.needs_reference:
        kept = reference.cached(
            policy,
            table,
            objective.second(settings),
            objective.draws(policy, settings),
            reference_cache,
            ranks,
            settings["precision"],
            stop=hooks.stop_if_cancelled,
        )
        inputs.append(kept)
    if settings["parameters"] == "lora":
        lora.add_lora(policy, settings["lora_rank"], settings["lora_alpha"], settings["seed"])
    update = objective(*inputs)
    update.ranks = ranks
    return update


def _imitable(method: str, table: StepTable, policy) -> StepTable:
    """Without the steps whose chunk is cut, where the policy cannot imitate a part (method.md 1.4).

    A critic keeps them: it learns what comes after each step, and what it weights leaves them out.
    """
    if not policy.whole_chunks or _objective(method).needs_following:
        return table
    return table.of_whole_chunks()


def _require_first_phase(method: str, ancestors: list[dict]) -> None:
    """ValueError unless the base comes from what the method goes on from."""
    wanted = methods.method(method).after
    if wanted and not any(made["method"] in wanted for made in ancestors):
        raise ValueError(
            f"Method {method} goes on from a policy that {' or '.join(wanted)} has trained, and "
            f"the base was trained by {ancestors[0]['method'] or 'nothing that is known'}, so "
            f"nothing was trained. Run {wanted[0]} first, and give its checkpoint as the base."
        )


def _ages(ancestors: list[dict]) -> dict[str, int]:
    """Optimizer steps from each policy that is known to the newest, by version."""
    ages, steps = {}, 0
    for made in ancestors:
        ages[made["version"]] = steps
        if made["steps"] is None:
            break
        steps += made["steps"]
    return ages


def _sampler(method: str, table: StepTable, settings: dict, ranks: Ranks) -> BalancedSampler:
    drawn = _objective(method).drawn(table, settings)
    groups = {name: rows[drawn[rows]] for name, rows in table.groups.items()}
    fractions = settings["fractions"]
    if settings.get("no_balanced_sampling"):
        groups = {"all": np.concatenate([groups[name] for name in fractions])}
        fractions = {"all": 1.0}
    try:
        sampler = BalancedSampler(
            groups,
            settings["batch_size"],
            fractions,
            settings["seed"],
            ranks.rank,
            ranks.size,
            settings.get("allow_missing_group", False),
        )
    except ValueError as error:
        if not table.counts.get("cut_chunk"):
            raise
        raise ValueError(
            f"{error} (Not counted are {table.counts['cut_chunk']} steps whose chunk of "
            f"{table.actions.shape[1]} actions is cut by the end of the episode or a change of "
            "controller.)"
        ) from error
    if TAKEOVER in sampler.counts and table.unpaired:
        takeovers = len(table.pairs) + table.unpaired
        sampler.notes.append(
            f"Not used: {table.unpaired} of {takeovers} takeovers, for want of a correction or of "
            "a step of the policy before it."
        )
    return sampler


def _table(source, settings: dict, groups, options: dict) -> StepTable:
    if isinstance(source, StepTable):
        if source.k != settings["k"]:
            raise ValueError(f"The steps were labelled with K = {source.k}, not {settings['k']}.")
        return source
    from hapo_ros.episodes import open_episodes

    readers, skipped = open_episodes(source, accept_recovered=settings["accept_recovered"])
    if options.get("cameras") == "recorded":
        options = {**options, "cameras": None if any(r.info.cameras for r in readers) else ()}
        options["object_state"] = options["cameras"] == ()
    try:
        table = data.from_readers(
            readers,
            k=settings["k"],
            groups=groups,
            drop_unresolved=settings["drop_unresolved"],
            **options,
        )
    except ValueError as error:
        left_out = "".join(f"\nSkipped: {item.reason}" for item in skipped)
        raise ValueError(f"{error}{left_out}") from error
    table.skipped.extend(item.reason for item in skipped)
    return table


def _inputs(inputs: str) -> dict:
    """Options of ``data.build`` for what a new policy is to see."""
    return {
        "auto": {"cameras": "recorded"},
        "images": {"cameras": None, "object_state": False},
        "state": {"cameras": (), "object_state": True},
        "both": {"cameras": None, "object_state": True},
    }[inputs]


def _new_policy(table: StepTable, settings: dict):
    """An untrained policy for what the table holds; the same seed gives the same weights."""
    from hapo_ros.policies.small import Recorded

    inputs = settings["inputs"]
    use_images = inputs in ("images", "both") or (inputs == "auto" and bool(table.images))
    use_state = inputs in ("state", "both") or not use_images
    if (use_images and not table.images) or (use_state and table.object_state is None):
        raise ValueError(
            f"The episodes hold no {'images' if not table.images else 'object state'}, so a policy "
            f"with inputs {inputs!r} cannot be trained. Use other inputs, or record them."
        )
    recorded = Recorded(
        images=table.images if use_images else {},
        proprio=table.proprio,
        object_state=table.object_state if use_state else None,
        actions=table.actions,
        action_mask=table.action_mask,
        action_names=table.action_names,
        instructions={episode["instruction"] for episode in table.episodes},
    )
    return family(settings["family"]).untrained(recorded, settings, settings["seed"])


def _hooks(progress, cancelled) -> Hooks:
    given = {"progress": progress, "cancelled": cancelled}
    return Hooks(**{name: hook for name, hook in given.items() if hook is not None})


def _refuse_existing(output) -> None:
    if Path(output).exists():
        raise FileExistsError(
            f"{output} exists already, so nothing was trained. Checkpoints are never overwritten: "
            "give another folder."
        )
