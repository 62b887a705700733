"""What every pipeline job needs around its work: a log, a thread count, one clear error."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from streamgauge.base import ends


class _Tee:
    """A text stream that writes to the terminal and to the log."""

    def __init__(self, terminal, log):
        self._terminal, self._log = terminal, log

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):  # a full disk is said on the terminal at least
            self._log.write(text)
            self._log.flush()
        return self._terminal.write(text)

    def __getattr__(self, name):
        return getattr(self._terminal, name)


@contextlib.contextmanager
def job(log: str | Path, threads: int = 1) -> Iterator[None]:
    """Run a job's work: everything printed also goes to `log`, and every end is one line.

    What a user can put right, an interrupt, no memory, no space ends the job with that line (see
    `ends.line_of`); anything else is a fault of ours and shows its traceback first.

    Args:
        log: file to append to, so that a resumed job keeps what its earlier attempt said.
        threads: CPU threads for torch, where the job uses it.
    """
    ends.by_raising()
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    status = 0
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(log, "a", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(_Tee(sys.stdout, file)))
            stack.enter_context(contextlib.redirect_stderr(_Tee(sys.stderr, file)))
            if "torch" in sys.modules:
                import torch

                torch.set_num_threads(threads)
            yield
        except SystemExit:
            raise
        except BaseException as error:  # a panic in Rust is no Exception
            status = ends.tell(error, "error")
    if status:
        sys.exit(status)
