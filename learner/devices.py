"""The device an update runs on, and the number format of its matrix products."""

from __future__ import annotations

import structlog
import torch

from apprentice.config import LearnerSettings

log = structlog.get_logger()


class NoSuchDevice(Exception):
    """The device asked for is not there."""


def select_device(settings: LearnerSettings) -> torch.device:
    """Return the device `learner.device` names; `auto` takes a GPU that answers, else the CPU.

    Raises NoSuchDevice where `cuda` was asked for and cannot be used.
    """
    if settings.device == "cpu":
        return _prepare_cpu(settings)
    try:
        available = torch.cuda.is_available()
        if available:
            torch.zeros(1, device="cuda").add_(1).item()
    except RuntimeError as error:
        available, reason = False, str(error)
    else:
        reason = "torch.cuda.is_available() is false"
    if available:
        # The fastest convolutions add up in an order that differs from call to call.
        torch.backends.cudnn.deterministic = True
        return torch.device("cuda")
    if settings.device == "cuda":
        raise NoSuchDevice(
            f"learner.device: expected a working CUDA device, found none ({reason}); "
            "set learner.device to auto or cpu, or install a CUDA build of torch and a driver"
        )
    if torch.version.cuda is not None:
        log.warning("no GPU can be used; the update runs on the CPU", reason=reason)
    return _prepare_cpu(settings)


def _prepare_cpu(settings: LearnerSettings) -> torch.device:
    torch.set_num_threads(settings.num_threads)
    return torch.device("cpu")
