"""LoRA on a policy's network, through peft (method.md 1.4: rank 32, alpha 16, no dropout).

The adapter is added in place: the base weights exist once, frozen, and the policy with its
adapter switched off *is* the reference (method.md 1.2).
"""

from contextlib import contextmanager

RANK, ALPHA = 32, 16
ADAPTER = "default"


def add_lora(policy, rank: int = RANK, alpha: int = ALPHA, seed: int = 0) -> None:
    """Freeze the policy's network and add an adapter to all its linear layers, in place.

    The adapter starts as no change at all. It is float32 whatever the base is: the small steps of a
    training would be rounded away in bfloat16. Raises ValueError where there already is one.
    """
    import torch
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.tuners_utils import cast_adapter_dtype

    if has_lora(policy):
        raise ValueError("The policy already has a LoRA adapter; save it merged and load that.")
    linear = [n for n, m in policy.network.named_modules() if isinstance(m, torch.nn.Linear)]
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=linear)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, policy.network, ADAPTER)
    cast_adapter_dtype(policy.network, ADAPTER)


def layers(policy) -> dict:
    """Adapted layers of the policy's network by name; empty without an adapter."""
    return {n: m for n, m in policy.network.named_modules() if hasattr(m, "lora_A")}


def has_lora(policy) -> bool:
    return bool(layers(policy))


@contextmanager
def adapter_off(policy):
    """The base policy within this block."""
    adapted = layers(policy).values()
    for layer in adapted:
        layer.enable_adapters(False)
    try:
        yield policy
    finally:
        for layer in adapted:
            layer.enable_adapters(True)


def merged_state(policy, weights: dict | None = None) -> dict:
    """State dict of the plain network that computes what this one does; changes nothing.

    weights: its state dict, on any device, where the network holds a part alone (``sharding``).
    """
    state = {}
    adapted = layers(policy)
    for name, tensor in (weights or policy.network.state_dict()).items():
        owner, found, rest = name.partition(".base_layer.")
        if found:
            if rest == "weight":
                delta = adapted[owner].get_delta_weight(ADAPTER).to(tensor.device)
                tensor = (tensor + delta).to(tensor.dtype)
            state[f"{owner}.{rest}"] = tensor
        elif ".lora_" not in name:
            state[name] = tensor
    return state


def adapter_state(policy) -> dict:
    """The adapter's own weights, by name."""
    return {k: v for k, v in policy.network.state_dict().items() if ".lora_" in k}
