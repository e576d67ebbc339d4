"""One training in several processes, *ranks*, one a GPU: what they add up, tell and agree on.

``torchrun`` starts them (:func:`started`). Every rank draws the same effective batch, computes its
part of it, and adds up with the others what method.md takes over the effective batch: sums for z0
and for the weights (1.2, 1.3), and gradients. So the number of ranks changes nothing but rounding.

Plain collectives, not DistributedDataParallel: these sums are needed between forward and backward,
and losses are divided by the effective batch's size before they are added up, over micro-batches
and ranks alike, so all that is left is one sum of the gradients; for the few parameters of an
adapter there is little to overlap it with. Every rank holds all steps of the bags, and all weights
unless they are divided, see ``sharding``.
"""

import hashlib
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

from hapo_ros.learning.loop import NotTrained
from hapo_ros.learning.sharding import divided

DEADLINE_S = 600.0
"""How long a rank waits for the others; one may write a checkpoint, or read from a slower disk."""

STARTED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # set by torchrun


class RankLost(NotTrained):
    """A rank ended without a word, or does not answer any more."""


class Ranks:
    """This process alone, rank 0 of 1: everything below is done already.

    Of several ranks, all have to call the same methods in the same order.
    """

    rank, size = 0, 1

    @property
    def first(self) -> bool:
        """It is the one that prints, logs and writes."""
        return self.rank == 0

    def part(self, batch):
        """This rank's part of an effective batch's rows or values, as BalancedSampler divides it.

        ValueError where the ranks would not get equally many.
        """
        if len(batch) % self.size:
            raise ValueError(f"{len(batch)} samples cannot be divided among {self.size} ranks.")
        return batch[self.rank :: self.size]

    def join(self, own):
        """(..., n) tensor of values of this rank's part -> (..., n * size) of the whole batch."""
        return own

    def sum(self, own):
        """A tensor's sum over the ranks."""
        return own

    def sum_gradients(self, parameters) -> None:
        """Add up gradients, in place; one that no rank has stays None. Those of parameters that are
        divided among the ranks are sums already."""

    def gathered(self, own) -> list:
        """What every rank gave, by rank."""
        return [own]

    def any(self, flag: bool) -> bool:
        """Whether it is true on any rank."""
        return flag

    def from_first(self, make: Callable):
        """What ``make`` returns on rank 0, on every rank."""
        return make()

    def whole(self, tensor):
        """A tensor, as it is unless it is divided among the ranks (``sharding``): then whole and
        on the CPU, on rank 0; None on the others."""
        return tensor

    @contextmanager
    def together(self) -> Iterator[None]:
        """Whatever ends one rank in this block ends all of them with the same error."""
        yield

    def require_same(self, given: dict[str, object]) -> None:
        """ValueError unless all ranks were given the same, by what it is called in a sentence."""
        digests = {name: hashlib.sha256(repr(it).encode()).digest() for name, it in given.items()}
        by_rank = self.gathered(digests)
        for rank, other in enumerate(by_rank):
            different = [name for name in given if other[name] != by_rank[0][name]]
            if different:
                raise ValueError(
                    f"Rank {rank} has other {', other '.join(different)} than rank 0, so nothing "
                    "was trained. Start every rank by the same command, on the same files and with "
                    "the same software."
                )


class Group(Ranks):
    """Several ranks. group: of torch.distributed; None: all there are.

    Before each collective the ranks tell each other, on the CPU, that they are there and well. One
    that has failed says so at that point, whatever the others had come for, and they raise its
    error; one that is gone is noticed there too, or when ``deadline_s`` of the group is over.
    """

    def __init__(self, group=None, deadline_s: float = DEADLINE_S):
        import torch.distributed as dist

        self._dist, self._group, self._deadline_s = dist, group, deadline_s
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self._told: BaseException | None = None  # what has ended all ranks
        self.lost = False

    def join(self, own):
        import torch

        own = own.contiguous()
        parts = [torch.empty_like(own) for _ in range(self.size)]
        self.collect(self._dist.all_gather, parts, own)
        return torch.stack(parts, -1).flatten(-2)

    def sum(self, own):
        total = own.clone()
        self.collect(self._dist.all_reduce, total)
        return total

    def sum_gradients(self, parameters) -> None:
        import torch

        parameters = [p for p in parameters if not divided(p)]
        if not parameters:
            return
        there = parameters[0].new_tensor([p.grad is not None for p in parameters])
        own = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        total = torch.cat([*(grad.flatten() for grad in own), there])
        self.collect(self._dist.all_reduce, total)
        *grads, there = total.split([*(p.numel() for p in parameters), len(parameters)])
        for parameter, grad, ranks in zip(parameters, grads, there.tolist(), strict=True):
            parameter.grad = grad.view_as(parameter) if ranks else None

    def gathered(self, own) -> list:
        found = [None] * self.size
        self.collect(self._dist.all_gather_object, found, own)
        return found

    def any(self, flag: bool) -> bool:
        import torch

        return bool(self.sum(torch.tensor(int(flag))))

    def from_first(self, make: Callable):
        box = [make() if self.first else None]
        self.collect(self._dist.broadcast_object_list, box, group_src=0)
        return box[0]

    def whole(self, tensor):
        if not divided(tensor):
            return tensor
        found = []
        self.collect(lambda group: found.append(tensor.full_tensor()))
        return found[0].cpu() if self.first else None

    def mesh(self, device: str):
        """The ranks as torch's DeviceMesh, on devices of this type."""
        from torch.distributed.device_mesh import DeviceMesh

        return DeviceMesh.from_group(self._group or self._dist.group.WORLD, device)

    def collect(self, collective: Callable, *arguments, **options) -> None:
        """Run a collective of torch.distributed, by the rules above."""
        self._meet(None)
        self._reached(collective, *arguments, **options)

    @contextmanager
    def together(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if self._told is not error and not self.lost:
                with suppress(RankLost):
                    self._meet(error)  # raises what has ended all ranks
            raise

    def close(self) -> None:
        """Leave together: whoever leaves early is taken for lost, and torchrun ends the others."""
        with suppress(RankLost):  # then there is nobody left to wait for
            if not self.lost:
                self._meet(None)

    def _meet(self, error: Exception | None) -> None:
        """Return where all ranks are well; else raise, on each of them, what has ended one."""
        import torch

        failed = torch.tensor(int(error is not None))
        self._reached(self._dist.all_reduce, failed)
        if not failed:
            return
        told = [None] * self.size
        self._reached(self._dist.all_gather_object, told, _packed(error))
        rank = next(rank for rank, packed in enumerate(told) if packed)
        self._told = _unpacked(told[rank], "" if len(set(told)) == 1 else f"On rank {rank}: ")
        raise self._told from error

    def _reached(self, collective: Callable, *arguments, **options) -> None:
        """Run a collective; RankLost where it cannot end."""
        try:
            collective(*arguments, group=self._group, **options)
        except RuntimeError as error:
            self.lost = True
            raise RankLost(
                f"Another rank than {self.rank} is gone, or did not answer for "
                f"{self._deadline_s:g} s. Training stopped and no checkpoint was written. Look at "
                "what that rank said, and whether its machine ran out of memory; --resume goes on "
                "from what was kept last."
            ) from error


def _packed(error: Exception | None) -> bytes:
    """An error's class and text; empty for none."""
    if error is None:
        return b""
    try:
        return pickle.dumps((type(error), str(error)))
    except (pickle.PicklingError, AttributeError, TypeError):  # its class has no name to go by
        return pickle.dumps((NotTrained, f"{type(error).__name__}: {error}"))


def _unpacked(packed: bytes, prefix: str) -> Exception:
    kind, text = pickle.loads(packed)
    try:
        return kind(prefix + text)
    except TypeError:  # it is not made of a sentence
        return NotTrained(f"{prefix}{kind.__name__}: {text}")


@contextmanager
def started(deadline_s: float = DEADLINE_S) -> Iterator[Ranks]:
    """The ranks that torchrun has started this process as one of; this one alone without torchrun.

    Each takes the GPU of its number on its machine, if torch sees any. They leave together.
    ValueError where there are fewer GPUs than ranks.
    """
    if not all(name in os.environ for name in STARTED) or os.environ["WORLD_SIZE"] == "1":
        yield Ranks()
        return
    import torch
    import torch.distributed as dist

    backend = "gloo"
    if torch.cuda.is_available():
        place, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if place >= count:
            raise ValueError(
                f"This machine has {count} GPUs and more ranks than that, so nothing was trained. "
                f"Start it with --nproc-per-node {count}, or with CUDA_VISIBLE_DEVICES= on CPUs."
            )
        torch.cuda.set_device(place)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=timedelta(seconds=deadline_s))
    try:
        group = Group(deadline_s=deadline_s)
        yield group
    finally:
        group.close()
        dist.destroy_process_group()
