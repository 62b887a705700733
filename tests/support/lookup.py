"""Harvests from a lookup table in place of a language model, in real processes.

Quick to start, and each output depends on the whole batch: a batch cut differently would show.
"""

import hashlib
import multiprocessing
import time

import numpy as np
import torch

from streamgauge.artifacts import manifest
from streamgauge.passes import gather, harvest
from streamgauge.stores import layer_stores

N, T, D = 600, 128, 32  # five shards of 128 sequences, the last one short; 1 MiB each
VOCABULARY = 500
BATCH = 24
SPEC = '{"stage": "lookup"}'
WORK = manifest.identity(SPEC, [])  # what the scratch directory is named after


class Lookup:
    """Stands in for a subject: a table of vectors, plus the mean of the batch."""

    n_layers, vocab_size, device = 1, VOCABULARY, "cpu"

    def __init__(self, d_model=D, seconds=0.0):
        generator = torch.Generator().manual_seed(0)
        self.d_model, self.seconds, self.calls = d_model, seconds, 0
        self._table = torch.randn(VOCABULARY, d_model, generator=generator)

    def residuals(self, ids, layers):
        self.calls += 1
        time.sleep(self.seconds)
        h = self._table[ids]
        return {layer: h + 0.1 * h.mean((0, 1)) for layer in layers}


def rows(n=N):
    return np.random.default_rng(0).integers(0, VOCABULARY, (n, T), dtype=np.int32)


def scratch_of(final):
    """Where `run` works; looking does not make it."""
    digest = hashlib.sha256(WORK.encode()).hexdigest()[:8]
    return final.with_name(f".{final.name}.{digest}.partial")


def run(final, part=(0, 1), seconds=0.0, subject=None):
    work = layer_stores.scratch(final, WORK)
    subject = subject or Lookup(seconds=seconds)
    harvest.harvest(subject, rows(), 0, work, batch_size=BATCH, part=part, progress=False)


def run_whole(final, seconds=0.0):
    run(final, seconds=seconds)
    close(final)


def close(final):
    work = layer_stores.scratch(final, WORK)
    gather.activations(work, progress=False)
    layer_stores.commit(work, final)


def processes():
    """Starts real processes quickly, from a server that has the imports done."""
    context = multiprocessing.get_context("forkserver")
    passes = [f"streamgauge.passes.{name}" for name in ("gather", "harvest")]
    context.set_forkserver_preload(["torch", *passes])
    return context
