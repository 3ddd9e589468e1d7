"""Holding signals back while the store is written."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

HELD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Signals that arrive in the block are acted on when it is over.

    An exception that a signal handler raises in the middle of a database transaction can leave the
    connection with its lock, and the run then cannot even be marked as killed. Handlers are Python's
    affair (and the main thread's), so they are exchanged here; masking the signals would not do, since
    another thread may receive them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        arrived.append(number)

    before = {number: signal.signal(number, note) for number in HELD}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in arrived:
            signal.raise_signal(number)
