"""What every pipeline job needs around its work: a log, a thread count, one clear error."""

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from streamgauge.base.errors import StreamgaugeError


class _Tee:
    """A text stream that writes to the terminal and to the log."""

    def __init__(self, terminal, log):
        self._terminal, self._log = terminal, log

    def write(self, text: str) -> int:
        self._log.write(text)
        self._log.flush()
        return self._terminal.write(text)

    def __getattr__(self, name):
        return getattr(self._terminal, name)


@contextlib.contextmanager
def job(log: str | Path, threads: int = 1) -> Iterator[None]:
    """Run a job's work: everything printed also goes to `log`, errors end it with exit status 1.

    A `StreamgaugeError`, a full disk or a missing permission is printed as one line; anything else
    is a fault of ours and shows its traceback.

    Args:
        log: file to append to, so that a resumed job keeps what its earlier attempt said.
        threads: CPU threads for torch, where the job uses it.
    """
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(threads)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with open(log, "a", encoding="utf-8") as file:
        out, err = _Tee(sys.stdout, file), _Tee(sys.stderr, file)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                yield
            except (StreamgaugeError, OSError) as error:
                print(f"error: {error}", file=sys.stderr, flush=True)
            except Exception:
                traceback.print_exc()
            else:
                return
    sys.exit(1)
