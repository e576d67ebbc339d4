"""Weights divided among ranks, for a policy that is too large for one GPU.

Of every weight of the network's blocks, of its gradient and of what the optimizer keeps of it, each
rank holds a part (ZeRO stage 3, arXiv:1910.02054, by torch's FSDP2). A block's weights are gathered
where it is passed, forward and backward, and let go; where a backward pass leaves it, each rank
gets its part of the summed gradients. So all ranks have to pass the blocks equally often.

What is outside the blocks is small and stays whole on every rank. So does a LoRA adapter: of a
large policy it is about a hundredth, and dividing it would cost a collective a block and
micro-batch where one a step does.
"""

import warnings
from collections.abc import Callable, Iterable


def divide(policy, ranks, device: str) -> None:
    """Divide the weights of the policy's blocks among ranks, on ``device``, one after the other: a
    GPU never holds all of them. What is outside the blocks stays where it is. To be called before
    there is an adapter.

    ValueError where there is one rank, or the policy's family has no such blocks.
    """
    import torch
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    from hapo_ros.policies.network import Blocks

    if ranks.size == 1:
        raise ValueError(
            "With shard_weights every process holds a part of the weights, and this one is alone, "
            "so nothing was trained. Start several by torchrun, or use shard_weights=false."
        )
    blocks = getattr(policy.network, "blocks", None)
    if not isinstance(blocks, Blocks):
        raise ValueError(
            f"Policies of family {policy.family} have no blocks whose weights can be divided, so "
            "nothing was trained. Use shard_weights=false."
        )
    # keys and values are views, which would go wrong if something wrote to them; nothing does
    warnings.filterwarnings("ignore", r"FSDP2-wrapped module .* returned a view", UserWarning)
    mesh = ranks.mesh(torch.device(device).type)
    for block in blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
        block.set_custom_all_gather(_Collective(ranks, dist.all_gather_single))
        block.set_custom_reduce_scatter(_Collective(ranks, dist.reduce_scatter_single))
        # losses are divided by the effective batch's size already: gradients are sums
        block.set_gradient_divide_factor(1.0)
        block.set_force_sum_reduction_for_comms(True)
    fully_shard(blocks, mesh=mesh)  # no weights of its own; so each knows which comes next
    blocks.in_step = True


class _Collective:
    """What FSDP2 gathers weights or sums gradients with, so that the ranks tell each other before
    that they are well, as in all that they do together (``parallel.Group``)."""

    def __init__(self, ranks, collective: Callable):
        self._ranks, self._collective = ranks, collective

    def allocate(self, size, *, dtype, device):
        import torch

        return torch.empty(size, dtype=dtype, device=device)

    def __call__(self, output_tensor, input_tensor, group, op=None, async_op=False) -> None:
        """group: that of the ranks. op: a sum, which it is anyway."""
        self._ranks.collect(self._collective, output_tensor, input_tensor)


def divided(tensor) -> bool:
    """Whether this rank holds a part of it alone (it is a DTensor)."""
    return hasattr(tensor, "full_tensor")


def kinds(parameters: Iterable) -> list[list]:
    """Parameters that are whole, then those that are divided, without an empty list: torch's
    operations on many tensors take one kind alone."""
    parameters = list(parameters)
    groups = [[p for p in parameters if divided(p) == kind] for kind in (False, True)]
    return [group for group in groups if group]


def clip_gradients(parameters: Iterable, limit: float, ranks) -> float:
    """torch's ``clip_grad_norm_``, by the norm of all gradients, those that are divided too; that
    norm."""
    import torch
    from torch.nn.utils import clip_grads_with_norm_, get_total_norm

    groups = kinds(parameters)
    norms = []
    for group in groups:
        grads = [p.grad for p in group if p.grad is not None]
        if divided(group[0]):
            own = get_total_norm([grad.to_local() for grad in grads])
            norms.append(ranks.sum(own.square()).sqrt())
        else:
            norms.append(get_total_norm(grads))
    norm = norms[0] if len(norms) == 1 else torch.stack(norms).norm()
    for group in groups:
        clip_grads_with_norm_(group, limit, norm)
    return float(norm)


def held(tensor, parameter):
    """What this rank holds of a whole tensor on any device that belongs to ``parameter``: its part
    where that is divided and of the same shape, a copy; else all of it."""
    if not divided(parameter) or tensor.shape != parameter.shape:
        return tensor.to(parameter.device)
    from torch.distributed.tensor import distribute_tensor

    layout = parameter.device_mesh, parameter.placements
    return distribute_tensor(tensor, *layout, src_data_rank=None).clone()
