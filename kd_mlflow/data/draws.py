"""Random numbers without a generator: each is a hash of what it is drawn for.

A generator's state would tie the numbers to the order of the draws, and with it to the batch size, the
number of workers and the step a run was resumed at.
"""

from __future__ import annotations

import numpy as np

_STEP = 0x9E3779B97F4A7C15
_MASK = 0xFFFFFFFFFFFFFFFF
_ORDER = 0x6F72646572


def mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea and Flood, 2014), elementwise on uint64."""
    values = values + np.uint64(_STEP)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def keyed(values: np.ndarray, *keys: int) -> np.ndarray:
    """A uint64 hash of each value together with all keys."""
    state = np.zeros(1, dtype=np.uint64)
    for key in keys:
        state = mix(state ^ mix(np.array([key & _MASK], dtype=np.uint64)))
    return mix(state ^ mix(values.astype(np.uint64, copy=False)))


def uniform(seed: int, epoch: int, index: np.ndarray, draw: int) -> np.ndarray:
    """One number in [0, 1) for each sample, a pure function of the four arguments.

    Parameters
    ----------
    seed, epoch:
        Of the run.
    index:
        ``[B]``, int64: the samples' places in the manifest.
    draw:
        Which of the sample's numbers this is.

    Returns
    -------
    np.ndarray
        ``[B]``, float64.
    """
    return (keyed(np.asarray(index), seed, epoch, draw) >> np.uint64(11)) * 2.0**-53


def permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """The numbers 0 to n - 1 in the order of this seed and epoch, ``[n]`` int64."""
    return np.argsort(keyed(np.arange(n), seed, epoch, _ORDER), kind="stable")
