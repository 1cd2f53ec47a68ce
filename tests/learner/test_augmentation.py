"""Shifted images, written out pixel by pixel."""

from __future__ import annotations

import pytest
import torch

from learner.augmentation import draw_shifts, shift_images

IMAGE = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


def images(*planes: list[list[int]]) -> torch.Tensor:
    """Return [B, 1, H, W, 3] of the planes, whose channels are v, v + 10 and v + 20."""
    plane = torch.tensor(planes, dtype=torch.uint8)[:, None, :, :, None]
    return plane + torch.tensor([0, 10, 20], dtype=torch.uint8)


@pytest.mark.parametrize(
    ("shift", "shifted"),
    [
        ((0, 0), [[1, 2, 3], [4, 5, 6], [7, 8, 9]]),
        ((1, 0), [[4, 5, 6], [7, 8, 9], [7, 8, 9]]),
        ((0, -1), [[1, 1, 2], [4, 4, 5], [7, 7, 8]]),
        ((-1, 1), [[2, 3, 3], [2, 3, 3], [5, 6, 6]]),
        ((2, -2), [[7, 7, 7], [7, 7, 7], [7, 7, 7]]),
        ((-5, 5), [[3, 3, 3], [3, 3, 3], [3, 3, 3]]),
    ],
)
def test_an_image_moves_and_its_border_is_repeated(
    shift: tuple[int, int], shifted: list[list[int]]
) -> None:
    found = shift_images(images(IMAGE), torch.tensor([shift]))
    assert found.dtype == torch.uint8
    assert torch.equal(found, images(shifted))


def test_each_image_of_a_batch_has_its_own_shift() -> None:
    other = [[10, 20, 30], [40, 50, 60], [70, 80, 90]]
    found = shift_images(images(IMAGE, other), torch.tensor([[0, 1], [-1, 0]]))
    assert torch.equal(
        found,
        images(
            [[2, 3, 3], [5, 6, 6], [8, 9, 9]],
            [[10, 20, 30], [10, 20, 30], [40, 50, 60]],
        ),
    )


def test_the_frames_of_a_stack_move_together() -> None:
    first, second = [[1, 2], [3, 4]], [[5, 6], [7, 8]]
    stack = torch.cat([images(first), images(second)], dim=1)
    found = shift_images(stack, torch.tensor([[1, -1]]))
    moved = torch.cat([images([[3, 3], [3, 3]]), images([[7, 7], [7, 7]])], dim=1)
    assert torch.equal(found, moved)


def test_wide_images_keep_rows_and_columns_apart() -> None:
    found = shift_images(images([[1, 2, 3, 4], [5, 6, 7, 8]]), torch.tensor([[1, 2]]))
    assert torch.equal(found, images([[7, 8, 8, 8], [7, 8, 8, 8]]))


def test_shifts_are_uniform_over_both_ends_and_repeat_with_the_seed() -> None:
    def draw(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return draw_shifts(7000, 3, generator, torch.device("cpu"))

    shifts = draw(0)
    assert shifts.shape == (7000, 2)
    for axis in (0, 1):
        values, counts = shifts[:, axis].unique(return_counts=True)
        assert values.tolist() == [-3, -2, -1, 0, 1, 2, 3]
        # A thousand each; the standard deviation is √(7000 · 1/7 · 6/7) = 29.
        assert counts.min() > 850 and counts.max() < 1150
    assert (shifts[:, 0] != shifts[:, 1]).any()
    assert torch.equal(draw(0), shifts)
    assert not torch.equal(draw(1), shifts)
