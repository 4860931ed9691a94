"""Several processes on one job, started by `torchrun`: each takes every n-th prompt. Alone, this does nothing."""

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def join() -> None:
    """Meet the other processes, if `torchrun` started any."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(device())
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")


def device() -> str:
    """Where this worker computes if it is not told: a GPU of its own, if there is one."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def number() -> int:
    """Which worker this is; 0 writes the results."""
    return dist.get_rank() if dist.is_initialized() else 0


def mine(n: int) -> list[int]:
    """Which of n prompts this worker takes."""
    return list(range(n))[number() :: dist.get_world_size()] if dist.is_initialized() else list(range(n))


def add_up(total: Tensor) -> None:
    """Replace a tensor by its sum over the workers."""
    if dist.is_initialized():
        dist.all_reduce(total)


def collect(found: dict[int, Any]) -> dict[int, Any]:
    """Everybody's results, by prompt."""
    if not dist.is_initialized():
        return found
    parts: list[dict[int, Any]] = [{}] * dist.get_world_size()
    dist.all_gather_object(parts, found)
    return {key: value for part in parts for key, value in part.items()}
