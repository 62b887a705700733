"""Texts to token ids by a tokenizer that may come from anybody: within time, memory and length.

A tokenizer's rules are programs of a kind: a regular expression may give up or take for ever, a
normaliser multiply the text. The library lets go of Python's lock while it works, so that a thread
can end the process where it would go on without end.
"""

import contextlib
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from streamgauge.base.errors import StreamgaugeError, first_line
from streamgauge.base.wording import bytes_in_words

# of a call: seconds, bytes of memory; and more of both for every character
SECONDS, MEMORY, SECONDS_EACH, MEMORY_EACH = 60.0, 1 << 30, 1e-4, 1 << 10
#: Tokens of a text: no honest tokenizer makes more of one character.
TOKENS_EACH, TOKENS = 64, 1024
_REMEDY = "Look at its normalizer and pre_tokenizer, or take another model."


def encode(tokenizer, texts: Sequence[str], **ceilings: float) -> list[list[int]]:
    """Token ids of every text, without special tokens.

    Args:
        tokenizer: a Hugging Face tokenizer.
        texts: any number.
        ceilings: ``seconds`` and ``memory`` (bytes) in place of the usual ones.

    Raises:
        StreamgaugeError: the tokenizer's rules panic, or make more tokens than any text has. Where
            time or memory run out the process ends, with the same line and exit status 1.
    """
    if not texts:
        return []
    n = sum(map(len, texts))
    limits = {"seconds": SECONDS + SECONDS_EACH * n, "memory": MEMORY + MEMORY_EACH * n, **ceilings}
    where = str(Path(tokenizer.name_or_path or "") / "tokenizer.json")
    try:
        with _panics_unsaid() as say, _within(where, say, **limits):
            found = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of Rust; no Exception
            raise
        raise StreamgaugeError(
            f"this tokenizer gave up on a text ({first_line(error)})", where=where, remedy=_REMEDY
        ) from None
    for text, ids in zip(texts, found, strict=True):
        if len(ids) > TOKENS + TOKENS_EACH * len(text):
            raise StreamgaugeError(
                f"this tokenizer makes {len(ids):,} tokens of {len(text):,} characters",
                where=where,
                remedy=_REMEDY,
            )
    return found


@contextlib.contextmanager
def _within(where: str, say, *, seconds: float, memory: float) -> Iterator[None]:
    """End the process, with one line, where what is done inside passes a ceiling."""
    over, start, before = threading.Event(), time.monotonic(), _resident()

    def watch() -> None:
        while not over.wait(0.05):
            if time.monotonic() - start > seconds:
                problem = f"this tokenizer needs more than {seconds:.0f} s for a few texts"
            elif _resident() - before > memory:
                most = bytes_in_words(memory)
                problem = f"this tokenizer needs more than {most} of memory for a few texts"
            else:
                continue
            say(f"error: {StreamgaugeError(problem, where=where, remedy=_REMEDY)}")
            os._exit(1)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def _panics_unsaid() -> Iterator:
    """Keep what a panic writes past Python, many lines, from the terminal; gives who may speak."""
    with tempfile.TemporaryFile() as unsaid:
        terminal = os.dup(2)
        os.dup2(unsaid.fileno(), 2)

        def say(line: str) -> None:
            os.dup2(terminal, 2)
            print(line, file=sys.stderr, flush=True)

        try:
            yield say
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


def _resident() -> int:
    """Bytes of memory in use; 0 where the system does not tell."""
    with contextlib.suppress(OSError):
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0
