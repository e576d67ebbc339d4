"""Checkpoints: folders that hold a policy and where it came from (design.md section 5).

    config.json           family, its configuration; for an adapter also rank, alpha and the base
    normalisation.json    statistics of actions and of what is observed
    tokenizer.json        action tokens and words
    model.safetensors     all weights, or adapter.safetensors: a LoRA adapter alone
    provenance.json       version, method, parent, bags, settings, metrics
    README.md             the same for people, and how to use it; older ones have none

A policy with a LoRA adapter is saved *merged* unless asked otherwise: such a folder needs no other
one to be served, moved or used as the next round's base. An unmerged adapter names its base (path
and version) and is refused on any other.

The version is a hash of the first four files; provenance and README.md do not enter it, so the same
weights have the same version. Folders are written under a temporary name and renamed when complete.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

FORMAT = 1
WEIGHTS, ADAPTER = "model.safetensors", "adapter.safetensors"
PARTS = ("config", "normalisation", "tokenizer")


def save(policy, folder, provenance: dict, *, merge: bool = True, base=None, weights=None) -> str:
    """Write ``policy`` as the new checkpoint ``folder``; returns its version and sets it.

    merge: True: one self-contained set of weights. False: only the LoRA adapter of a policy whose
    ``base`` (folder of a full checkpoint) is given. weights: with merge, the network's state dict
    where that holds a part alone (``learning.sharding``). Raises FileExistsError where ``folder``
    exists, ValueError for weights that are not finite or an adapter without its base.
    """
    from safetensors.torch import save as serialised

    from hapo_ros.policies import card, lora

    folder = Path(folder)
    _refuse_existing(folder)
    if not merge and (base is None or not lora.has_lora(policy)):
        raise ValueError("An adapter is saved alone only for a policy with LoRA and its base.")
    config = {"format": FORMAT, "family": policy.family, **policy.parts()}
    state = lora.merged_state(policy, weights) if merge else lora.adapter_state(policy)
    if not merge:
        some = next(iter(lora.layers(policy).values()))
        config["adapter"] = {
            "rank": some.r[lora.ADAPTER],
            "alpha": some.lora_alpha[lora.ADAPTER],
            "base": os.path.relpath(Path(base).resolve(), folder.parent.resolve()),
            "base_version": version_of(base),
        }
    state = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    broken = [key for key, value in state.items() if not bool(value.isfinite().all())]
    if broken:
        raise ValueError(
            f"Weights are not finite ({', '.join(broken[:3])}), so no checkpoint was written. "
            "Train again with a lower learning rate."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.parent / f".{folder.name}.writing-{os.getpid()}"
    temporary.mkdir()
    try:
        for part in PARTS[1:]:
            _write_json(temporary / f"{part}.json", config.pop(part))
        _write_json(temporary / "config.json", config)
        (temporary / (WEIGHTS if merge else ADAPTER)).write_bytes(serialised(state))
        version = version_of(temporary)
        _write_json(temporary / "provenance.json", {**provenance, "version": version})
        text = card.card(policy, version, provenance)
        (temporary / card.NAME).write_text(text, encoding="utf-8")
        _refuse_existing(folder)
        os.rename(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    policy.version = version
    return version


def load(folder, *, base=None):
    """The policy of a checkpoint, on the CPU, with its version.

    base: folder of an adapter's base where it is not where it was. Raises FileNotFoundError where
    something is missing, ValueError where something is damaged or does not belong together.
    """
    folder = Path(folder)
    config, provenance = read_config(folder), read_provenance(folder)
    version = version_of(folder)
    if provenance.get("version") != version:
        raise ValueError(
            f"{folder} is not the checkpoint that was saved: its files hash to {version}, its "
            f"provenance says {provenance.get('version')}. It was not loaded. Copy it again."
        )
    policy = _load_adapter(folder, config, base) if "adapter" in config else _load(folder, config)
    policy.version = version
    policy.network.eval()
    return policy


def check(policy) -> None:
    """Raise ValueError unless the policy answers sensibly to made-up observations.

    Its actions are finite and in [-1, 1] whatever it sees (or none at all, where that may happen:
    ``Policy.whole_chunks``), and where it has cameras, black and white images make a difference to
    its response: a policy whose vision input is lost acts without an error.
    """
    import numpy as np
    import torch

    batches = []
    for brightness in (0, 255):
        observation = policy.example(brightness)
        action = np.asarray(policy.act(observation, "check"))
        if action.shape != (policy.executed, len(policy.action_names)):
            raise ValueError(f"The policy answers with shape {action.shape}. It is not served.")
        none = policy.whole_chunks and np.isnan(action).all()
        if not (none or np.abs(action).max() <= 1.0):
            raise ValueError(f"The policy answers with {action.tolist()}. It is not served.")
        batch = policy.batch_of(observation, "check")
        chunk = torch.zeros(1, policy.horizon, action.shape[1])
        there = torch.ones(1, policy.horizon, dtype=torch.bool)
        batches.append(batch.with_actions(chunk, there))
    with torch.no_grad():
        black, white = (policy.response(batch) for batch in batches)
    if not bool(black.isfinite().all() and white.isfinite().all()):
        raise ValueError("The policy's response is not finite. It is not served.")
    if policy.cameras and bool((black == white).all()):
        raise ValueError(
            "The policy responds alike to black and to white images, so it does not see. It is not "
            "served. Check its vision encoder's weights."
        )


def version_of(folder) -> str:
    """Content hash of a checkpoint: 16 hex digits over what decides how it acts."""
    folder = Path(folder)
    digest = hashlib.sha256()
    names = sorted([f"{part}.json" for part in PARTS] + [_weights_name(folder)])
    for name in names:
        content = _bytes(folder, name)
        digest.update(f"{name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def read_config(folder) -> dict:
    """config.json with ``normalisation`` and ``tokenizer`` put in."""
    folder = Path(folder)
    config = _read_json(folder, "config.json")
    if config.get("format") != FORMAT or "family" not in config or "config" not in config:
        raise ValueError(
            f"{folder / 'config.json'} is not of checkpoint format {FORMAT}, so it was not loaded. "
            "Use the hapo_ros that wrote it, or train again."
        )
    return config | {part: _read_json(folder, f"{part}.json") for part in PARTS[1:]}


def form_of(folder) -> str:
    """What a checkpoint sees and does, as ``base.form`` has it of a loaded policy."""
    from hapo_ros.policies.base import form

    return form(SimpleNamespace(**read_config(folder)["config"]))


def read_provenance(folder) -> dict:
    """provenance.json: version, method, parent, bags by hash, settings, metrics."""
    return _read_json(Path(folder), "provenance.json")


def lineage(folder) -> list[dict]:
    """Of a checkpoint and of those that it comes from, newest first: version, method and optimizer
    steps. Steps are None where they are not known; nothing is known of what came before those."""
    provenance = read_provenance(folder)
    steps = provenance.get("settings", {}).get("steps")
    own = {"version": provenance.get("version"), "method": provenance.get("method"), "steps": steps}
    return [own, *provenance.get("ancestors", [])]


def _load(folder: Path, config: dict):
    from hapo_ros.policies import family

    cls = family(config["family"])
    try:
        policy = cls.from_parts(*(config[part] for part in PARTS))
        policy.network.load_state_dict(_tensors(folder, WEIGHTS))
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"The files of {folder} do not belong together ({str(error).splitlines()[0]}), so it "
            "was not loaded. Copy the whole folder again."
        ) from error
    return policy


def _load_adapter(folder: Path, config: dict, base):
    from hapo_ros.policies import lora

    adapter = config["adapter"]
    base = Path(base) if base is not None else folder.parent / adapter["base"]
    if not base.is_dir():
        raise FileNotFoundError(
            f"{folder} is an adapter to {base}, which is not there, so it was not loaded. "
            f"Give the folder of base version {adapter['base_version']}."
        )
    policy = load(base)
    if policy.version != adapter["base_version"]:
        raise ValueError(
            f"{folder} is an adapter to base version {adapter['base_version']}, but {base} is "
            f"version {policy.version}, so it was not loaded. Give the right base."
        )
    lora.add_lora(policy, adapter["rank"], adapter["alpha"])
    tensors = _tensors(folder, ADAPTER)
    if set(tensors) != set(lora.adapter_state(policy)):
        raise ValueError(f"{folder / ADAPTER} does not fit {base}, so it was not loaded.")
    policy.network.load_state_dict(tensors, strict=False)
    return policy


def _weights_name(folder: Path) -> str:
    for name in (WEIGHTS, ADAPTER):
        if (folder / name).is_file():
            return name
    raise _missing(folder, WEIGHTS)


def _tensors(folder: Path, name: str) -> dict:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (folder / name).is_file():
        raise _missing(folder, name)
    try:
        return load_file(folder / name)
    except SafetensorError as error:
        raise ValueError(
            f"{folder / name} is damaged ({error}), so it was not loaded. Copy it again."
        ) from error


def _missing(folder: Path, name: str) -> FileNotFoundError:
    what = f"has no {name}" if folder.is_dir() else "does not exist"
    return FileNotFoundError(
        f"{folder} {what}, so no policy was loaded. Give the folder of a complete checkpoint."
    )


def _bytes(folder: Path, name: str) -> bytes:
    if not (folder / name).is_file():
        raise _missing(folder, name)
    return (folder / name).read_bytes()


def _read_json(folder: Path, name: str) -> dict:
    try:
        value = json.loads(_bytes(folder, name))
    except ValueError as error:
        raise ValueError(
            f"{folder / name} is damaged ({error}), so it was not loaded. Copy it again."
        ) from error
    if not isinstance(value, dict):
        raise ValueError(f"{folder / name} holds no object, so it was not loaded. Copy it again.")
    return value


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def _refuse_existing(folder: Path) -> None:
    if folder.exists():
        raise FileExistsError(
            f"{folder} exists already, so no checkpoint was written there. Checkpoints are never "
            "overwritten: give another folder."
        )
