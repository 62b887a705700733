"""SAEs that others trained: read from the layouts in use, and written down as one of a study.

Three layouts are known by the file that holds the weights:

- ``saelens``: ``cfg.json``, ``sae_weights.safetensors`` (see `files`);
- ``sparsify``: ``cfg.json``, ``sae.safetensors`` with ``encoder.weight`` (m, d), ``encoder.bias``,
  ``W_dec`` (m, d), ``b_dec``;
- ``dictionary_learning``: ``config.json``, ``ae.safetensors`` with ``encoder.weight`` (m, d),
  ``encoder.bias``, ``decoder.weight`` (d, m) and ``b_dec`` or ``bias``. The library itself writes
  the pickle ``ae.pt``, which is never opened.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from streamgauge.base import json_file
from streamgauge.base.errors import StreamgaugeError
from streamgauge.base.progress import Progress
from streamgauge.base.wording import shown
from streamgauge.sae import files
from streamgauge.sae.codec import SparseAutoencoder

#: names of the residual stream after block N (of `resid_pre`: after block N - 1)
_AFTER_BLOCK = re.compile(
    r"(blocks\.(\d+)\.hook_resid_(post|pre)|layers\.(\d+)|resid_post_layer_(\d+))"
)
#: what a layout may say of the data an SAE was trained on
KNOWN = ("model", "hook_name", "corpus", "context_length")
_SPARSIFY_EXTRAS = ("transcode", "skip_connection", "embed_skip", "gram_lookup", "signed")


def read(path: Path | str, format: str = "auto") -> tuple[SparseAutoencoder, dict[str, Any]]:
    """Read an SAE in any of the layouts.

    Args:
        path: its directory.
        format: ``saelens``, ``sparsify``, ``dictionary_learning``, or ``auto``: the one whose
            weights file is there.

    Returns:
        The SAE, of unscaled activations, in float32 on the CPU; and what is known of it:
        ``format``, ``activation`` (``topk``, ``standard``, ``jumprelu``), and ``model``,
        ``hook_name``, ``corpus`` (text) and ``context_length`` (tokens), each None where the
        layout does not say.

    Raises:
        StreamgaugeError: no such directory; no weights in safetensors, or more than one layout's;
            a configuration that is missing or not to be believed; another architecture than TopK,
            ReLU and JumpReLU; shapes that do not fit; values that are not finite.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise StreamgaugeError(
            "no such directory",
            where=str(directory),
            remedy="Give the directory that holds the SAE's configuration and weights.",
        )
    format = _detect(directory) if format == "auto" else format
    if format not in LAYOUTS:
        raise StreamgaugeError(
            f"no SAE format {shown(format)}", remedy=f"Use auto, {', '.join(LAYOUTS)}."
        )
    sae, found = LAYOUTS[format][1](directory)
    known = {name: _text(found.get(name)) for name in ("model", "hook_name", "corpus")}
    length = found.get("context_length")
    known["context_length"] = length if type(length) is int and 1 < length < files.LARGEST else None
    return sae, {"format": format, "activation": sae.architecture, **known}


def layer_of(hook_name: str) -> int:
    """The block after which the residual stream `hook_name` is read, from 0.

    Args:
        hook_name: ``blocks.N.hook_resid_post``, ``blocks.N.hook_resid_pre`` (which is the residual
            after block N - 1), ``layers.N`` or ``resid_post_layer_N``.

    Raises:
        StreamgaugeError: it is no residual stream after a block.
    """
    match = _AFTER_BLOCK.fullmatch(hook_name)
    layer = int(next(filter(None, match.group(2, 4, 5)))) if match else -1
    layer -= bool(match) and match[3] == "pre"
    if layer < 0:
        raise StreamgaugeError(
            f"the SAE belongs to {shown(hook_name)}, not to the residual stream after a block",
            remedy="Only SAEs of the residual stream after a block can be audited.",
        )
    return layer


def check_layer(known: Mapping[str, Any], layer: int, where: str) -> None:
    """Refuse an SAE that is known to belong to another layer than `layer`.

    Args:
        known: what `read` knows of it.
        where: its directory, for the message.
    """
    if known["hook_name"] and layer_of(known["hook_name"]) != layer:
        raise StreamgaugeError(
            f"the SAE belongs to {known['hook_name']}, not to layer {layer}",
            where=where,
            remedy=f"Use layer {layer_of(known['hook_name'])}.",
        )


def convert(
    block: Mapping[str, Any], directory: Path | str, activations, subject: str
) -> dict[str, Any]:
    """Write a foreign SAE as one of a study: SAELens' layout, for plain activations.

    Args:
        block: one entry of ``imports`` in the configuration: ``path`` and ``format``.
        directory: where ``cfg.json`` and ``sae_weights.safetensors`` go.
        activations: `layer_stores.ActivationStore` of the evaluation split of the layer it is used
            at.
        subject: the model it is used with; named in ``cfg.json`` where the SAE names none.

    Returns:
        Facts for the manifest, as `from_store.fit` gives them: ``d_model``, ``d_sae``, ``k`` (None
        where latents have thresholds), ``seed`` 0, ``b_dec_init`` (the SAE's own ``b_dec``),
        ``objective`` "imported"; ``source``, ``format``, ``activation``, ``trained_on`` (what
        `read` knows); ``mean_l0`` (latents a token, mean over the evaluation tokens) and
        ``control_k``, the sparsity of the untrained control: k, else the mean rounded, at least 1.

    Raises:
        StreamgaugeError: see `read`; the SAE is of another width or another layer.
    """
    where = str(block["path"])
    sae, known = read(where, block["format"])
    if sae.d_model != activations.d_model:
        raise StreamgaugeError(
            f"the SAE is {sae.d_model} wide, the residual stream of {subject} "
            f"{activations.d_model}",
            where=where,
            remedy="Name the model it was trained on.",
        )
    check_layer(known, activations.layer, where)
    mean_l0 = _mean_l0(sae, activations)
    metadata = {
        "model_name": known["model"] or subject,
        "dataset_path": known["corpus"],
        "hook_name": activations.hook_name,
        "context_size": known["context_length"],
        "objective": "imported",
    }
    files.save(sae, directory, metadata)
    return {
        "d_model": sae.d_model,
        "d_sae": sae.d_sae,
        "k": sae.k,
        "seed": 0,
        "b_dec_init": sae.b_dec.tolist(),
        "objective": "imported",
        "source": where,
        "format": known["format"],
        "activation": known["activation"],
        "trained_on": {name: known[name] for name in KNOWN},
        "mean_l0": mean_l0,
        "control_k": sae.k or min(max(1, round(mean_l0)), sae.d_sae),
    }


def _mean_l0(sae: SparseAutoencoder, activations) -> float:
    """Latents that fire on a token, mean over all tokens of the store."""
    n, step = activations.n_sequences, activations.chunk_sequences
    progress = Progress(n * activations.n_positions, "tokens", "count latents")
    fired = 0
    for start in range(0, n, step):
        stop = min(start + step, n)
        for x in torch.as_tensor(activations.read(start, stop)):  # one sequence: latents are wide
            fired += int((sae.encode(x) != 0).sum())
        progress.update((stop - start) * activations.n_positions)
    progress.close()
    return fired / (n * activations.n_positions)


def _detect(directory: Path) -> str:
    found = [name for name, (weights, _) in LAYOUTS.items() if (directory / weights).is_file()]
    if len(found) == 1:
        return found[0]
    if found:
        raise StreamgaugeError(
            f"weights of {len(found)} layouts: {', '.join(found)}",
            where=str(directory),
            remedy="Say which is meant with format.",
        )
    others = files.unsafe(directory)
    raise StreamgaugeError(
        f"only {', '.join(others)}, which may be a pickle" if others else "no SAE weights there",
        where=str(directory),
        remedy="Give a directory with one of "
        + ", ".join(weights for weights, _ in LAYOUTS.values())
        + (". Convert the weights; pickles run code and are never loaded." if others else "."),
    )


def _saelens(directory: Path):
    sae, config = files.load(directory)
    # before version 6 the metadata lay beside the rest
    metadata = config.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else config
    return sae, {
        "model": metadata.get("model_name"),
        "hook_name": metadata.get("hook_name", metadata.get("hook_point")),
        "corpus": metadata.get("dataset_path"),
        "context_length": metadata.get("context_size"),
    }


def _sparsify(directory: Path):
    path = directory / "cfg.json"
    config = json_file.read(path, remedy="sparsify keeps cfg.json beside sae.safetensors.")
    _only(config.get("activation", "topk"), ("topk",), "activation", path)
    for name in _SPARSIFY_EXTRAS:
        _only(config.get(name, False), (False,), name, path)
    k = files.whole(config, "k", path)
    weights = directory / "sae.safetensors"
    tensors = files.read_tensors(weights, ("encoder.weight", "encoder.bias", "W_dec", "b_dec"))
    tensors["W_enc"] = _transposed(tensors.pop("encoder.weight"))
    tensors["b_enc"] = tensors.pop("encoder.bias")
    sae = files.assemble("topk", {**tensors, "k": k}, weights)
    d_model = files.whole(config, "d_in", path)
    # 0 latents: as many as the expansion factor gives
    d_sae = config.get("num_latents") or d_model * files.whole(config, "expansion_factor", path)
    files.check_sizes(sae, d_model, d_sae, directory)
    # the folder is named for the hook point, and nothing else in it says which one
    hook_name = directory.name if directory.name.startswith("layers.") else None
    return sae, {"hook_name": hook_name}


#: class of dictionary_learning's -> its architecture, and what it calls b_dec
_CLASSES = {
    "AutoEncoderTopK": ("topk", "b_dec"),
    "AutoEncoder": ("standard", "bias"),
}


def _dictionary_learning(directory: Path):
    path = directory / "config.json"
    remedy = "dictionary_learning keeps config.json beside the weights."
    config = json_file.read(path, remedy=remedy)
    trainer, buffer = (_mapping(config.get(name)) for name in ("trainer", "buffer"))
    kind = trainer.get("dict_class")
    _only(kind, tuple(_CLASSES), "trainer.dict_class", path)
    architecture, b_dec = _CLASSES[kind]
    weights = directory / "ae.safetensors"
    names = ("encoder.weight", "encoder.bias", "decoder.weight", b_dec)
    found = files.read_tensors(weights, names, optional=("k",))
    parts = {
        "W_enc": _transposed(found["encoder.weight"]),
        "b_enc": found["encoder.bias"],
        "W_dec": _transposed(found["decoder.weight"]),
        "b_dec": found[b_dec],
    }
    if architecture == "topk":
        parts["k"] = files.whole(trainer, "k", path)
        if "k" in found and found["k"].tolist() != parts["k"]:
            raise StreamgaugeError(
                f"k is {parts['k']} in config.json and {shown(found['k'].tolist())} in the weights",
                where=str(directory),
                remedy="The two files belong to different SAEs; fetch them again.",
            )
    sae = files.assemble(architecture, parts, weights)
    d_model, d_sae = (files.whole(trainer, name, path) for name in ("activation_dim", "dict_size"))
    files.check_sizes(sae, d_model, d_sae, directory)
    return sae, {
        "model": trainer.get("lm_name"),
        "hook_name": trainer.get("submodule_name"),
        "context_length": buffer.get("ctx_len"),
    }


#: format -> the file that holds its weights, and its reader
LAYOUTS: dict[str, tuple[str, Callable[[Path], tuple[SparseAutoencoder, dict]]]] = {
    "saelens": (files.WEIGHTS, _saelens),
    "sparsify": ("sae.safetensors", _sparsify),
    "dictionary_learning": ("ae.safetensors", _dictionary_learning),
}


def _only(value: Any, wanted: tuple, name: str, path: Path) -> None:
    if value not in wanted:
        raise StreamgaugeError(
            f"{name} is {shown(value)}, but only {', '.join(shown(w) for w in wanted)} can be read",
            where=str(path),
            remedy="Give a TopK or ReLU SAE of plain residual-stream activations.",
        )


def _transposed(x: torch.Tensor) -> torch.Tensor:
    return x.T if x.ndim == 2 else x  # any other shape is refused when the SAE is assembled


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    """A name that is fit to be shown: one short line, else None."""
    fit = isinstance(value, str) and value.isprintable() and 0 < len(value) <= 200
    return value if fit else None
