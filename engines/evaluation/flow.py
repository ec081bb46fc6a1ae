"""Optical flow between two pictures: block matching, refined by gradients (Lucas and Kanade)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.data.lol import Picture

Flow = NDArray[np.float32]
"""(2, H, W): what is at (row, column) of one picture is at (row + flow[0], column + flow[1]) of the next."""
Luma = NDArray[np.float32]

BLOCK = 16
"""Pixels of a block's side; all pixels of a block move alike."""
REACH = 5
"""The largest motion that is found, to each side, in pixels of the halved picture."""
REFINEMENTS = 3
"""Steps of Lucas and Kanade after block matching; each moves a block by at most a pixel."""
FLATNESS = 16.0
"""Regularisation that keeps blocks without texture in place: squared code values, added to the sums over a block."""


def find_flow(before: Picture, after: Picture) -> Flow:
    """Flow between two (H, W, 3) uint8 pictures with sides of at least `BLOCK`."""
    here, there = _luma(before), _luma(after)
    blocks = 2 * _best_offsets(_halved(here), _halved(there))  # (2, rows, columns)
    for _ in range(REFINEMENTS):
        blocks = blocks + _refinement(here, there, blocks)
    flow = _of_pixels(blocks)
    (height, width), (known, wide) = before.shape[:2], here.shape
    return np.pad(flow, ((0, 0), (0, height - known), (0, width - wide)), mode="edge")


def warp(after: NDArray[Any], flow: Flow) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The next picture warped onto the one before, (H, W, C) float32, and a mask (H, W) of where it has a pixel."""
    height, width = after.shape[:2]
    rows = np.arange(height, dtype=np.float32)[:, None] + flow[0]
    columns = np.arange(width, dtype=np.float32) + flow[1]
    inside = (rows >= 0) & (rows <= height - 1) & (columns >= 0) & (columns <= width - 1)
    rows, columns = rows.clip(0, height - 1), columns.clip(0, width - 1)
    top = np.minimum(rows.astype(np.intp), height - 2)
    left = np.minimum(columns.astype(np.intp), width - 2)
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    upper = (1 - right) * after[top, left] + right * after[top, left + 1]
    lower = (1 - right) * after[top + 1, left] + right * after[top + 1, left + 1]
    return ((1 - down) * upper + down * lower).astype(np.float32), inside


def _luma(picture: Picture) -> Luma:
    """Luma (H, W) float32, cut to whole blocks."""
    height, width = (side - side % BLOCK for side in picture.shape[:2])
    return np.asarray(picture[:height, :width] @ np.array([0.299, 0.587, 0.114], np.float32))


def _halved(luma: Luma) -> Luma:
    height, width = luma.shape
    return np.asarray(luma.reshape(height // 2, 2, width // 2, 2).mean((1, 3)))


def _best_offsets(before: Luma, after: Luma) -> NDArray[np.float32]:
    """(2, rows, columns): the motion of each block, of half of `BLOCK`, in whole pixels."""
    height, width = before.shape
    padded = np.pad(after, REACH, mode="edge")
    side = 2 * REACH + 1
    costs = np.stack(
        [
            _block_sums((before - padded[dy : dy + height, dx : dx + width]) ** 2, BLOCK // 2)
            for dy in range(side)
            for dx in range(side)
        ]
    )
    return np.stack(np.unravel_index(costs.argmin(axis=0), (side, side))).astype(np.float32) - REACH


def _refinement(before: Luma, after: Luma, blocks: NDArray[np.float32]) -> NDArray[np.float32]:
    """(2, rows, columns) in pixels: the least-squares motion that explains the remaining difference by gradients."""
    warped = warp(after[..., None], _of_pixels(blocks))[0][..., 0]
    down, right = np.asarray(np.gradient(warped))
    left_over = before - warped
    yy, xx, xy, dy, dx = (
        _block_sums(product, BLOCK)
        for product in (down * down, right * right, down * right, down * left_over, right * left_over)
    )
    yy, xx = yy + FLATNESS, xx + FLATNESS
    divisor = yy * xx - xy * xy
    step = np.stack((xx * dy - xy * dx, yy * dx - xy * dy)) / divisor
    return np.asarray(step.clip(-1, 1))


def _block_sums(values: Luma, block: int) -> Luma:
    height, width = values.shape
    return np.asarray(values.reshape(height // block, block, width // block, block).sum((1, 3)))


def _of_pixels(blocks: NDArray[np.float32]) -> Flow:
    """Expand (2, rows, columns) to (2, H, W)."""
    return blocks.repeat(BLOCK, axis=1).repeat(BLOCK, axis=2)
