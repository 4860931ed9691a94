"""Seconds on a device."""

import time

import torch


def now(device: str | torch.device = "cpu") -> float:
    """Seconds, when all that was asked of the device is done."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
