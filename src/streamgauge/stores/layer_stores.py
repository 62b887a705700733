"""The stores of the pipeline: activations, gradients and probes of a layer, token rows.

How a store is written and committed is in `zarr_store`, how it is cut in `shards`, where it is
made in `unfinished`; their names are found here too.
"""

from pathlib import Path

import numpy as np

from streamgauge.base.errors import StreamgaugeError
from streamgauge.numerics.arrays import decode
from streamgauge.numerics.token_sets import TOKEN_SETS, no_sink
from streamgauge.stores.shards import n_parts, rows_per_chunk_and_shard
from streamgauge.stores.token_store import TokenTable, open_tokens, read_tokens, store_tokens
from streamgauge.stores.unfinished import scratch, working, writing
from streamgauge.stores.zarr_store import Array, Store, commit, create, sweep

__all__ = [
    "ActivationStore",
    "Array",
    "GradientStore",
    "ProbeStore",
    "Store",
    "TokenTable",
    "commit",
    "create",
    "create_activations",
    "create_gradients",
    "create_probes",
    "n_parts",
    "open_tokens",
    "read_tokens",
    "rows_per_chunk_and_shard",
    "scratch",
    "store_tokens",
    "sweep",
    "working",
    "writing",
]

GRADIENT_UNITS = "nats per unit of activation"
PROBE_UNITS = "sqrt(nats) per unit of activation"


def create_activations(
    path: Path | str,
    *,
    n_sequences: int,
    n_positions: int,
    d_model: int,
    dtype: str,
    layer: int,
    hook_name: str,
) -> None:
    """Declare an activation store.

    Arrays: ``activations`` (sequence, position, d_model) of `dtype` (float16, bfloat16 or
    float32); ``norm`` (sequence, position) float32; ``mean`` (token_set, d_model) float64;
    scalars ``median_norm`` and ``sink_threshold`` float64.
    """
    chunk, shard = rows_per_chunk_and_shard(n_positions)
    rows = {"chunk": chunk, "shard": shard}
    tokens = ("sequence", "position")
    shape = (n_sequences, n_positions)
    where = f"after block {layer}"
    arrays = [
        Array(
            "activations",
            (*tokens, "d_model"),
            (*shape, d_model),
            dtype,
            "1",
            f"residual stream {where}",
            **rows,
        ),
        Array("norm", tokens, shape, "float32", "1", "Euclidean norm of the activation", **rows),
        Array("mean", ("token_set", "d_model"), (2, d_model), "float64", "1", "mean activation"),
        Array("median_norm", (), (), "float64", "1", "median norm of all tokens"),
        Array("sink_threshold", (), (), "float64", "1", "norm above which a token is a sink"),
    ]
    coordinates = {
        "sequence": range(n_sequences),
        "position": range(n_positions),
        "token_set": TOKEN_SETS,
    }
    create(path, arrays, coordinates, {"layer": layer, "hook_name": hook_name, "dtype": dtype})


def create_gradients(
    path: Path | str,
    *,
    n_sequences: int,
    n_positions: int,
    d_model: int,
    dtype: str,
    layer: int,
    hook_name: str,
    computed_in: str = "float32",
) -> None:
    """Declare a gradient store.

    Array: ``gradients`` (sequence, position, d_model) of `dtype` (float16, bfloat16 or float32),
    nats per unit of activation: of the summed next-token loss of the sequence. The type it was
    computed in is kept as an attribute.
    """
    chunk, shard = rows_per_chunk_and_shard(n_positions)
    array = Array(
        "gradients",
        ("sequence", "position", "d_model"),
        (n_sequences, n_positions, d_model),
        dtype,
        GRADIENT_UNITS,
        f"gradient of the sequence's summed loss by the residual stream after block {layer}",
        chunk,
        shard,
    )
    attributes = {
        "layer": layer,
        "hook_name": hook_name,
        "dtype": dtype,
        "computed_in": computed_in,
    }
    coordinates = {"sequence": range(n_sequences), "position": range(n_positions)}
    create(path, [array], coordinates, attributes)


def create_probes(
    path: Path | str,
    *,
    n_sequences: int,
    n_positions: int,
    d_model: int,
    n_probes: int,
    dtype: str,
    layer: int,
    hook_name: str,
    seed: int = 0,
    same_positions: int = 0,
    diagonal: int = 0,
    computed_in: str = "float32",
) -> None:
    """Declare a probe store.

    Arrays, of `dtype` (float16, bfloat16 or float32) in √nats per unit of activation, 1/√s
    included: ``probes`` (sequence, position, d_model, probe), whose last two axes flattened are
    the packed factors of `row_metric`; ``same_position`` (sequence, sample, d_model, probe) and
    int32 ``sampled_position`` (sequence, sample) if `same_positions` > 0; ``shift`` (sequence,
    position, d_model, shift_probe) if `diagonal` > 0.

    Args:
        n_probes: s, probes of a token.
        seed: of the draws, so that work begun with another seed is not continued.
        same_positions: sampled positions of a sequence.
        diagonal: shift probes of a token.
        computed_in: the type it was computed in, kept as an attribute.
    """
    per_token = n_probes + diagonal
    chunk, shard = rows_per_chunk_and_shard(n_positions, per_token)
    where, units = f"after block {layer}", PROBE_UNITS

    def array(name, dims, shape, what, dtype=dtype, units=units):
        dims, shape = ("sequence", *dims), (n_sequences, *shape)
        return Array(name, dims, shape, dtype, units, what, chunk, shard)

    vector = ("d_model", "probe")
    arrays = [
        array(
            "probes",
            ("position", *vector),
            (n_positions, d_model, n_probes),
            f"output-Fisher probes, all later logits, of the residual stream {where}",
        )
    ]
    if same_positions:
        arrays += [
            array(
                "same_position",
                ("sample", *vector),
                (same_positions, d_model, n_probes),
                f"output-Fisher probes, the token's own logits, of the residual stream {where}",
            ),
            array(
                "sampled_position",
                ("sample",),
                (same_positions,),
                "position of the sample",
                "int32",
                "token",
            ),
        ]
    if diagonal:
        arrays.append(
            array(
                "shift",
                ("position", "d_model", "shift_probe"),
                (n_positions, d_model, diagonal),
                f"what diag(p) adds to the output Fisher, of the residual stream {where}",
            )
        )
    attributes = {
        "layer": layer,
        "hook_name": hook_name,
        "dtype": dtype,
        "computed_in": computed_in,
        "n_probes": n_probes,
        "seed": seed,
    }
    coordinates = {"sequence": range(n_sequences), "position": range(n_positions)}
    create(path, arrays, coordinates, attributes)


_DESCRIBED = {"dtype", "layer", "hook_name"}


class _LayerStore:
    """What the stores of a layer have in common: sizes, attributes, reads of the main array."""

    _main: str

    def __init__(self, path: Path | str):
        self._store = Store(path)
        array = self._store.array(self._main)
        self.path = Path(path)
        found = self._store.attributes
        if array.ndim < 3 or not _DESCRIBED <= found.keys() or type(found["layer"]) is not int:
            raise StreamgaugeError(f"is no store of {self._main}", where=str(path))
        self.n_sequences, self.n_positions, self.d_model = array.shape[:3]
        self.chunk_sequences = array.chunks[0]
        self.dtype, self.layer = found["dtype"], found["layer"]
        self.hook_name = found["hook_name"]

    def read(self, start: int, stop: int) -> np.ndarray:
        """The vectors of sequences ``[start, stop)``, float32 (n, n_positions, d_model, ...)."""
        return decode(self._store.read(self._main, start, stop))


class ActivationStore(_LayerStore):
    """Read activations of one layer, decoded to float32: ``read`` gives (n, n_positions, d_model).

    Attributes:
        n_sequences, n_positions, d_model: sizes.
        chunk_sequences: sequences in a chunk, the unit that is read at once.
        dtype: as stored: float16, bfloat16 or float32.
        layer, hook_name: where in the model.
        median_norm, sink_threshold: median norm of all tokens, and 10 times it.

    Raises:
        StreamgaugeError: no readable store at `path`, or a shard of it is missing or damaged;
            the message names store, shard and remedy.
    """

    _main = "activations"

    def __init__(self, path: Path | str):
        super().__init__(path)
        self.median_norm = float(self._store.read("median_norm"))
        self.sink_threshold = float(self._store.read("sink_threshold"))

    def norm(self, start: int, stop: int) -> np.ndarray:
        """Norms of sequences ``[start, stop)``, float32 (n, n_positions)."""
        return self._store.read("norm", start, stop)

    def keep(self, start: int, stop: int) -> np.ndarray:
        """Which tokens of ``[start, stop)`` belong to ``no_sink``: bool (n, n_positions)."""
        return no_sink(self.norm(start, stop), self.sink_threshold)

    def mean(self, token_set: str) -> np.ndarray:
        """Mean activation over the token set ``"all"`` or ``"no_sink"``, float64 (d_model,)."""
        return self._store.read("mean")[TOKEN_SETS.index(token_set)]

    def means(self) -> dict[str, np.ndarray]:
        """`mean` of every token set."""
        return {token_set: self.mean(token_set) for token_set in TOKEN_SETS}


class GradientStore(_LayerStore):
    """Read gradients of the summed loss, decoded: ``read`` gives (n, n_positions, d_model) in nats.

    Attributes and errors as for `ActivationStore`, without the norms.
    """

    _main = "gradients"


class ProbeStore(_LayerStore):
    """Read output-Fisher probes: ``read`` gives (n, n_positions, d_model, n_probes), float32.

    Attributes and errors as for `ActivationStore`, without the norms, and

    Attributes:
        n_probes: s; the factor 1/√s is in the stored values.
    """

    _main = "probes"

    def __init__(self, path: Path | str):
        super().__init__(path)
        self.n_probes = self._store.attributes["n_probes"]

    def tensor(self, start: int, stop: int):
        """`read` as a torch tensor in the type it is stored in, without a copy."""
        import torch

        stored = torch.from_numpy(self._store.read(self._main, start, stop))
        return stored.view(torch.bfloat16) if stored.dtype == torch.uint16 else stored

    def same_position(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Sampled positions (n, m), int32, and their same-position probes (n, m, d_model, s).

        None where none were harvested.
        """
        if "same_position" not in self._store.names:
            return None
        positions = self._store.read("sampled_position", start, stop)
        return positions, decode(self._store.read("same_position", start, stop))

    def shift(self, start: int, stop: int) -> np.ndarray | None:
        """Shift probes (n, n_positions, d_model, R), float32; None where none were harvested."""
        if "shift" not in self._store.names:
            return None
        return decode(self._store.read("shift", start, stop))
