"""Counter-based random numbers: a word depends on seed and place alone, so masks need not be stored."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 7  # the fewest that pass BigCrush (Salmon et al. 2011, doi:10.1145/2063384.2063405, table 2)

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEYS = (0x9E3779B9, 0xBB67AE85)
_AT_ONCE = 1 << 14  # counters that stay in a core's cache through all rounds


def words(rows: int, columns: int, seed: int, device: torch.device | str = "cpu") -> Tensor:
    """Return random 32-bit words of a matrix, Philox4x32-7.

    The counter of place ``(i, c)`` is ``i * q + c mod q`` with ``q = ceil(columns / 4)``; which of its four
    words is taken is ``c // q``. So four columns share the rounds of one counter, and kernels read whole
    stretches of columns.

    Args:
        rows: Number of rows.
        columns: Number of columns.
        seed: At least 0, below 2^63.
        device: Where.

    Returns:
        int64 ``(rows, columns)`` in [0, 2^32), the same on every device.

    Example:
        >>> words(1, 4, seed=0).tolist()
        [[1601156873, 227098468, 1326587777, 1332939336]]
    """
    quarter = -(-columns // 4)
    out = torch.empty(rows, 4, quarter, dtype=torch.int64, device=device)
    step = max(1, _AT_ONCE // max(quarter, 1))
    for first in range(0, rows, step):
        last = min(first + step, rows)
        counter = torch.arange(first * quarter, last * quarter, device=device)
        for j, word in enumerate(_philox(counter, seed)):
            out[first:last, j] = word.view(-1, quarter)
    return out.view(rows, 4 * quarter)[:, :columns]


def keep_mask(rows: int, columns: int, dropout: float, seed: int, device: torch.device | str = "cpu") -> Tensor:
    """Return where dropout keeps, bool ``(rows, columns)``: :func:`thinning` says with which probability."""
    return words(rows, columns, seed, device) >> 1 >= thinning(dropout)[0]


def thinning(dropout: float) -> tuple[int, float]:
    """Return the least 31-bit word that is kept, and the factor ``1 / (1 - p)`` for the ``p`` that this makes.

    >>> thinning(0.25)
    (536870912, 1.3333333333333333)
    """
    threshold = round(dropout * 2**31)
    return threshold, 1.0 / (1.0 - threshold / 2**31)


def _philox(counter: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run the rounds; a product of two 32-bit numbers wraps into int64 with the right bits."""
    c0, c1 = counter & _MASK, counter >> 32
    c2, c3 = torch.zeros_like(c0), torch.zeros_like(c0)
    k0, k1 = seed & _MASK, seed >> 32 & _MASK
    for _ in range(ROUNDS):
        a, b = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = (b >> 32).bitwise_and_(_MASK).bitwise_xor_(c1).bitwise_xor_(k0)
        c2 = (a >> 32).bitwise_and_(_MASK).bitwise_xor_(c3).bitwise_xor_(k1)
        c1, c3 = b.bitwise_and_(_MASK), a.bitwise_and_(_MASK)
        k0, k1 = k0 + _KEYS[0] & _MASK, k1 + _KEYS[1] & _MASK
    return c0, c1, c2, c3
