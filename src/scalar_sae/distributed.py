"""Several processes working on one job, started by `torchrun`. In a single process everything here does nothing.

In scoring, each worker makes whole records while at least one record per worker is left. The remaining records are made
by all workers together, which split the prompts. In training, each worker processes a part of every batch
(docs/training.md). Quantities that a method computes over the whole batch go through `all_mean`, `all_min`, `all_any`
or `all_gather`, and gradients through `average_gradients`.
"""

import hashlib
import os
import socket
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Bool
from torch import Tensor

from scalar_sae import watch
from scalar_sae.errors import UserError, reason
from scalar_sae.watch import waiting

Job = TypeVar("Job")


def init() -> None:
    """Join the other processes, if `torchrun` started any."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(device())
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=timedelta(days=1))  # others wait while one worker works alone
        watch.start()


def device(wanted: str | None = None) -> str:
    """The device of this worker: the wanted one, else a GPU of its own if there is one.

    Raises:
        UserError: the device cannot be used.
    """
    own = f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % max(1, torch.cuda.device_count())}"
    place = wanted if wanted is not None else own if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros((), device=place).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device {place or repr(place)}: {reason(error)}; give cpu, cuda or cuda:N") from error
    return place


def rank() -> int:
    """Index of this worker. Worker 0 writes the results."""
    return dist.get_rank() if _together() else 0


def world_size() -> int:
    """Number of workers."""
    return dist.get_world_size() if _together() else 1


def shard(n: int) -> list[int]:
    """Indices of this worker's share of n pieces of work."""
    return list(range(n))[rank() :: world_size()]


def shard_batch(batch: Tensor) -> Tensor:
    """This worker's rows of a batch: every n-th row of n workers, so that the first rows of all workers are the first
    rows of the batch.

    The batch size must be a multiple of n.
    """
    return batch[rank() :: world_size()].contiguous()


def all_sum(total: Tensor) -> None:
    """Replace a tensor by its sum over the workers, in place."""
    if _together():
        with waiting("a sum"):
            dist.all_reduce(total)


def average_gradients(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by their means over the workers, in place."""
    if _together():
        with waiting("a mean"):
            started = [(tensor, dist.all_reduce(tensor, async_op=True)) for tensor in tensors]
            for tensor, work in started:
                assert work is not None
                work.wait()
                tensor.div_(world_size())


def all_mean(x: Tensor) -> Tensor:
    """The mean over the workers of each entry.

    Its gradient is that of the worker's own x, which `average_gradients` turns into the gradient of the mean.
    """
    if not _together():
        return x
    found = x.detach().clone()
    average_gradients([found])
    return x + (found - x).detach() if x.requires_grad else found


def all_min(x: Tensor) -> Tensor:
    """The minimum over the workers of each entry."""
    return _reduced(x, dist.ReduceOp.MIN) if _together() else x


def all_any(mask: Bool[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
    """True where the mask of any worker is true."""
    return _reduced(mask.to(torch.uint8), dist.ReduceOp.MAX).bool() if _together() else mask


def all_gather(rows: Tensor) -> Tensor:
    """The rows of all workers, in the order of the workers, without gradients. Every worker must have the same number
    of rows.
    """
    if not _together():
        return rows.detach()
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    with waiting("rows of all"):
        dist.all_gather(parts, rows.detach().contiguous())
    return torch.cat(parts)


def all_max(values: list[int]) -> list[int]:
    """The maximum over the workers of each value, for decisions that all workers must take together."""
    return _reduced(torch.tensor(values, device="cpu"), dist.ReduceOp.MAX).tolist() if _together() else values


def all_gather_dict(found: dict[int, Any]) -> dict[int, Any]:
    """The results of all workers, each under a unique number."""
    if not _together():
        return found
    parts: list[dict[int, Any]] = [{}] * world_size()
    with waiting("results of all"):
        dist.all_gather_object(parts, found)
    return {key: value for part in parts for key, value in part.items()}


def broadcast_from_first(make: Callable[[], Job]) -> Job:
    """Give every worker what the first worker makes, so that a file read by the first is the same for all."""
    if not _together():
        return make()
    found = [make() if rank() == 0 else None]
    with waiting("what the first worker reads"):
        dist.broadcast_object_list(found)
    return found[0]  # pyright: ignore[reportReturnType]


def check_agreement(what: str, value: Any) -> None:
    """Raise a UserError in every worker unless all have the same value, which means that they see the same files.

    Args:
        what: description of the value, for the message.
        value: plain values, compared by their repr.
    """
    if not _together():
        return
    mine = (hashlib.sha256(repr(value).encode()).hexdigest(), socket.gethostname())
    everybody: list[tuple[str, str]] = [mine] * world_size()
    with waiting(f"a comparison of {what}"):
        dist.all_gather_object(everybody, mine)
    for other, (digest, host) in enumerate(everybody):
        if digest != everybody[0][0]:
            raise UserError(
                f"{what}: worker {other} on {host} sees others than worker 0 on {everybody[0][1]}; "
                "give all workers one folder that they share, and the same files"
            )


def barrier() -> None:
    """Wait for the other workers."""
    if _together():
        with waiting("a meeting"):
            dist.barrier()


@contextmanager
def first_rank_first() -> Generator[None]:
    """Run a block that writes a missing file in the first worker before the others run it."""
    if rank() != 0:
        barrier()
    yield
    if rank() == 0:
        barrier()


def run_jobs(jobs: Sequence[Job], do: Callable[[Job], Any]) -> Generator[list[Any]]:
    """Do all jobs. Yields the finished results, in the order of the jobs and the same in every worker.

    Each worker does whole jobs while at least one per worker is left. All workers do the remaining jobs together.
    """
    for start in range(0, len(jobs), world_size()):
        turn = jobs[start : start + world_size()]
        if len(turn) < world_size():
            yield from ([do(job)] for job in turn)
        else:
            mine = rank()
            with no_sync():
                found = {mine: do(turn[mine])}
            yield list(dict(sorted(all_gather_dict(found).items())).values())


def shares(n_jobs: int) -> list[float]:
    """The share of each job that `run_jobs` gives to this worker."""
    n_whole = n_jobs // world_size() * world_size()
    return [float(job % world_size() == rank()) if job < n_whole else 1 / world_size() for job in range(n_jobs)]


_apart = False


@contextmanager
def no_sync() -> Generator[None]:
    """Within the block every worker computes alone, on the same data and with the same result."""
    global _apart
    before, _apart = _apart, True
    try:
        yield
    finally:
        _apart = before


def _together() -> bool:
    return dist.is_initialized() and not _apart


def _reduced(x: Tensor, op: dist.ReduceOp.RedOpType) -> Tensor:
    found = x.detach().clone()
    with waiting("an extreme"):
        dist.all_reduce(found, op)
    return found
