"""What takes so long: a line on the terminal that comes after two seconds and goes again."""

import shutil
import sys
import threading
import time
from types import TracebackType

from torch import distributed

__all__ = ["Waiting"]

PATIENCE, EVERY = 2.0, 0.5  # seconds until the line comes, and until it is written anew


class Waiting:
    """Show what goes on, how far it is and for how long, where somebody may be waiting for it.

    That is on a terminal and in the first of several processes; in files, pipes and notebooks there
    is nothing to see.

    Args:
        what: What goes on, in a few words.

    Attributes:
        far: How far it is, in a few words; to be set from within.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.far = ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True)

    def __enter__(self) -> "Waiting":
        self._started = time.perf_counter()
        if _somebody_looks():
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _show(self) -> None:
        line, wait = "", PATIENCE
        while not self._over.wait(wait):
            seconds = time.perf_counter() - self._started
            width = shutil.get_terminal_size().columns - 1
            line = f"{self.what} … {self.far} ({seconds:.0f} s)"[:width].ljust(width)
            _write(f"\r{line}")
            wait = EVERY
        if line:
            _write(f"\r{' ' * len(line)}\r")


def _write(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _somebody_looks() -> bool:
    first = not (distributed.is_available() and distributed.is_initialized()) or (
        distributed.get_rank() == 0
    )
    return first and sys.stderr is not None and sys.stderr.isatty()
