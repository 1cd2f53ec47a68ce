"""Random shift of images (DrQ-v2, arXiv 2107.09645, section 3.1), by whole pixels."""

from __future__ import annotations

import torch


def draw_shifts(
    batch_size: int, maximum: int, generator: torch.Generator, device: torch.device
) -> torch.Tensor:
    """Draw vertical and horizontal shifts [B, 2], uniform over -maximum..maximum."""
    return torch.randint(-maximum, maximum + 1, (batch_size, 2), generator=generator, device=device)


def shift_images(pixels: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
    """Move each stack of frames [B, S, H, W, 3] by its shift [B, 2]; border pixels are repeated.

    All frames of a stack move together, so that motion between them stays what it was.
    """
    batch, stack, height, width, _ = pixels.shape
    rows = (torch.arange(height, device=pixels.device) + shifts[:, :1]).clamp(0, height - 1)
    columns = (torch.arange(width, device=pixels.device) + shifts[:, 1:]).clamp(0, width - 1)
    sample = torch.arange(batch, device=pixels.device)[:, None, None, None]
    frame = torch.arange(stack, device=pixels.device)[None, :, None, None]
    return pixels[sample, frame, rows[:, None, :, None], columns[:, None, None, :]]
