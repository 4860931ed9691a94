"""Several processes on one job, started by `torchrun`. Alone, everything here does nothing.

Scoring gives each worker a record to make as long as there is one for everybody; those that are left are shared by
prompts, of which each takes every n-th. Training gives each a part of every batch (docs/training.md): what a method
takes from the whole batch goes through `mean`, `smallest`, `anywhere` or `gather`, and gradients through `average`.
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


def join() -> None:
    """Meet the other processes, if `torchrun` started any."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(device())
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=timedelta(days=1))  # what one does alone, the others wait for
        watch.start()


def device(wanted: str | None = None) -> str:
    """Where this worker computes: where it is told, else on a GPU of its own, if there is one.

    Raises:
        UserError: nothing can be computed there.
    """
    own = f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % max(1, torch.cuda.device_count())}"
    place = wanted if wanted is not None else own if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros((), device=place).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device {place or repr(place)}: {reason(error)}; give cpu, cuda or cuda:N") from error
    return place


def number() -> int:
    """Which worker this is; 0 writes the results."""
    return dist.get_rank() if _together() else 0


def count() -> int:
    """How many workers there are."""
    return dist.get_world_size() if _together() else 1


def mine(n: int) -> list[int]:
    """Which of n pieces of work this worker takes."""
    return list(range(n))[number() :: count()]


def share(batch: Tensor) -> Tensor:
    """This worker's rows of a batch, whose size is a multiple of the number of workers: every n-th row, so that the
    first rows of all are the first of the batch.
    """
    return batch[number() :: count()].contiguous()


def add_up(total: Tensor) -> None:
    """Replace a tensor by its sum over the workers."""
    if _together():
        with waiting("a sum"):
            dist.all_reduce(total)


def average(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by their means over the workers."""
    if _together():
        with waiting("a mean"):
            started = [(tensor, dist.all_reduce(tensor, async_op=True)) for tensor in tensors]
            for tensor, work in started:
                assert work is not None
                work.wait()
                tensor.div_(count())


def mean(x: Tensor) -> Tensor:
    """The mean over the workers of each entry; its gradient is x's own, which `average` makes that of the mean."""
    if not _together():
        return x
    found = x.detach().clone()
    average([found])
    return x + (found - x).detach() if x.requires_grad else found


def smallest(x: Tensor) -> Tensor:
    """The smallest value that any worker has, of each entry."""
    return _reduced(x, dist.ReduceOp.MIN) if _together() else x


def anywhere(mask: Bool[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
    """Where any worker's mask is true."""
    return _reduced(mask.to(torch.uint8), dist.ReduceOp.MAX).bool() if _together() else mask


def gather(rows: Tensor) -> Tensor:
    """Everybody's rows, in the order of the workers; as many from each. No gradient."""
    if not _together():
        return rows.detach()
    parts = [torch.empty_like(rows) for _ in range(count())]
    with waiting("rows of all"):
        dist.all_gather(parts, rows.detach().contiguous())
    return torch.cat(parts)


def most(values: list[int]) -> list[int]:
    """The largest of everybody's values, for decisions that all must take alike."""
    return _reduced(torch.tensor(values, device="cpu"), dist.ReduceOp.MAX).tolist() if _together() else values


def collect(found: dict[int, Any]) -> dict[int, Any]:
    """Everybody's results, each under a number of its own."""
    if not _together():
        return found
    parts: list[dict[int, Any]] = [{}] * count()
    with waiting("results of all"):
        dist.all_gather_object(parts, found)
    return {key: value for part in parts for key, value in part.items()}


def from_first(make: Callable[[], Job]) -> Job:
    """What the first worker makes, for everybody: a file that it reads is the same for all."""
    if not _together():
        return make()
    found = [make() if number() == 0 else None]
    with waiting("what the first worker reads"):
        dist.broadcast_object_list(found)
    return found[0]  # pyright: ignore[reportReturnType]


def agree(what: str, value: Any) -> None:
    """Raise a UserError, in every worker, if not all have the same value: they do not see the same files.

    Args:
        what: named in the message.
        value: plain values, compared by their repr.
    """
    if not _together():
        return
    mine = (hashlib.sha256(repr(value).encode()).hexdigest(), socket.gethostname())
    everybody: list[tuple[str, str]] = [mine] * count()
    with waiting(f"a comparison of {what}"):
        dist.all_gather_object(everybody, mine)
    for other, (digest, host) in enumerate(everybody):
        if digest != everybody[0][0]:
            raise UserError(
                f"{what}: worker {other} on {host} sees others than worker 0 on {everybody[0][1]}; "
                "give all workers one folder that they share, and the same files"
            )


def meet() -> None:
    """Wait for the others."""
    if _together():
        with waiting("a meeting"):
            dist.barrier()


@contextmanager
def one_first() -> Generator[None]:
    """The block that writes a file if it is not there: the first worker runs it before the others do."""
    if number() != 0:
        meet()
    yield
    if number() == 0:
        meet()


def deal(jobs: Sequence[Job], do: Callable[[Job], Any]) -> Generator[list[Any]]:
    """Do all jobs; yields what is finished, in the order of the jobs, to everybody alike.

    Each worker does a job by itself as long as there is one for everybody; the others they do together.
    """
    for start in range(0, len(jobs), count()):
        turn = jobs[start : start + count()]
        if len(turn) < count():
            yield from ([do(job)] for job in turn)
        else:
            mine = number()
            with apart():
                found = {mine: do(turn[mine])}
            yield list(dict(sorted(collect(found).items())).values())


def shares(n_jobs: int) -> list[float]:
    """The share of each job that `deal` gives this worker."""
    n_whole = n_jobs // count() * count()
    return [float(job % count() == number()) if job < n_whole else 1 / count() for job in range(n_jobs)]


_apart = False


@contextmanager
def apart() -> Generator[None]:
    """Every worker does the block by itself, as if there were no others: on the same data, with the same result."""
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
