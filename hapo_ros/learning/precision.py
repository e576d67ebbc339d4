"""How a network computes in training, to save time and memory: arithmetic, activations."""


def prepare(policy, settings: dict) -> None:
    """Make the policy's network compute as ``precision`` and ``activation_checkpointing`` ask for.

    ValueError where its device or its family cannot.
    """
    import torch

    device = next(policy.network.parameters()).device
    wanted = settings["precision"] == "bfloat16"
    if wanted and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
        raise ValueError(
            f"{torch.cuda.get_device_name(device)} has no bfloat16, so nothing was trained. Use "
            "precision=float32."
        )
    if settings["activation_checkpointing"] and not hasattr(policy.network, "recompute"):
        raise ValueError(
            f"Policies of family {policy.family} keep their activations whatever is asked for, so "
            "nothing was trained. Use activation_checkpointing=false, and a smaller micro_batch."
        )
    if settings["activation_checkpointing"]:
        policy.network.recompute = True


def autocast(policy, precision: str):
    """A context in which the policy's network computes in ``precision``.

    Weights, log-probabilities and losses stay float32. Casts are not kept, as one that was made
    without gradient would be taken for another that needs one.
    """
    import torch

    device = next(policy.network.parameters()).device
    return torch.autocast(
        device.type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False
    )
