"""SAE directories in the layout of SAELens.

A directory holds ``cfg.json`` and ``sae_weights.safetensors`` with ``W_enc`` (d, m), ``b_enc``,
``W_dec`` (m, d), ``b_dec`` and, for JumpReLU, ``threshold`` (m,); ``sae_lens.SAE.load_from_disk``
reads it. Weights are read from safetensors only, never from a pickle. Other layouts: `formats`.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from streamgauge.base import entry, json_file, whole_file
from streamgauge.base.errors import StreamgaugeError
from streamgauge.base.wording import shown
from streamgauge.sae.codec import SparseAutoencoder
from streamgauge.sae.topk import TopKSAE
from streamgauge.stores import checkpoints

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")
LARGEST = 1 << 31  # of a number of latents or dimensions that a configuration may name
# The layout written here. Without a version of at least 6 SAELens takes the directory for an
# older layout and drops the metadata.
SAE_LENS_VERSION = "6.54.12"


def save(sae: SparseAutoencoder, directory: Path | str, metadata: dict) -> None:
    """Write an SAE in SAELens' layout. The same SAE and metadata give the same bytes.

    Args:
        sae: an SAE of unscaled activations.
        directory: made when missing; files of the same names are replaced.
        metadata: JSON values kept in ``cfg.json``; SAELens uses ``model_name``, ``hook_name``,
            ``context_size`` and ``prepend_bos``, and hands other keys through.
    """
    directory = Path(directory)
    config = {
        "architecture": sae.architecture,
        "d_in": sae.d_model,
        "d_sae": sae.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {**metadata, "sae_lens_version": SAE_LENS_VERSION},
    }
    if sae.k is not None:
        config |= {"k": sae.k, "rescale_acts_by_decoder_norm": False}
    tensors = {name: value.cpu().float() for name, value in sae.tensors().items()}
    checkpoints.save_tensors(directory / WEIGHTS, tensors)
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    whole_file.replace(directory / CONFIG, lambda path: path.write_text(text))


def load(
    directory: Path | str, device: str | torch.device = "cpu"
) -> tuple[SparseAutoencoder, dict]:
    """Read an SAE in SAELens' layout, ours or theirs: (SAE in float32, its ``cfg.json``).

    TopK, standard (ReLU) and JumpReLU are read. SAEs that rank latents by activation times decoder
    norm, or that do not subtract b_dec from the input, are rewritten to the plain formula; their
    outputs agree up to rounding.

    Raises:
        StreamgaugeError: no such directory, weights that are no safetensors or not finite, another
            architecture or an input normalisation, k > d_sae, shapes that do not fit.
    """
    directory = Path(directory)
    path = directory / CONFIG
    remedy = f"An SAE is a directory with {CONFIG} and {WEIGHTS}, as SAELens does."
    config = json_file.read(path, remedy=remedy)
    architecture = _architecture(config, path)
    kind = _architectures()[architecture]
    older = config.get("activation_fn_kwargs")  # where k was before SAELens 6
    given = {**older, **config} if isinstance(older, dict) else config
    counts = {name: whole(given, name, path) for name in kind.counts}
    tensors = read_tensors(directory / WEIGHTS, (*NAMES, *kind.tensors))
    sae = assemble(architecture, {**tensors, **counts}, directory / WEIGHTS)
    check_sizes(sae, config.get("d_in", sae.d_model), config.get("d_sae", sae.d_sae), directory)
    if not _flag(config, "apply_b_dec_to_input", True, path):
        # x W + b = (x - b_dec) W + (b + b_dec W)
        sae = replace(sae, b_enc=sae.b_enc + sae.b_dec @ sae.W_enc)
    if _flag(config, "rescale_acts_by_decoder_norm", False, path) and isinstance(sae, TopKSAE):
        sae = fold_decoder_norm(sae)
    return sae.to(device), config


def fold_decoder_norm(sae: TopKSAE) -> TopKSAE:
    """The SAE with unit decoder rows that ranks by pre-activation alone.

    Equals, up to rounding, the given SAE read as SAELens' ``rescale_acts_by_decoder_norm``
    (TopK of pre-activation times decoder norm, decoded with normalised rows).
    """
    norm = sae.W_dec.norm(dim=1).clamp(min=1e-8)
    return replace(
        sae,
        W_enc=sae.W_enc * norm,
        b_enc=sae.b_enc * norm,
        W_dec=sae.W_dec / norm.unsqueeze(1),
    )


# --- what a stranger's directory holds ------------------------------------------------------------
def read_tensors(
    path: Path, names: Iterable[str], optional: Iterable[str] = ()
) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file in float32, those of `optional` where they are there.

    Raises:
        StreamgaugeError: no such file (naming pickles that lie there instead), no safetensors, a
            tensor missing, not of a floating type, or not finite.
    """
    names, optional = list(names), list(optional)
    pickles = "Convert the weights to safetensors; pickles run code and are never loaded."
    if not path.is_file():
        others = unsafe(path.parent)
        found = f"only {', '.join(others)}, which may be a pickle" if others else "no weights"
        raise StreamgaugeError(
            f"{found}; {path.name} is needed", where=str(path.parent), remedy=pickles
        )
    try:
        json_file.header(path)  # whose own reader takes the last of two tensors of a name
        with safe_open(path, framework="pt") as file:
            there = set(file.keys())
            tensors = {n: file.get_tensor(n) for n in (*names, *optional) if n in there}
    except (SafetensorError, OSError, ValueError) as error:
        raise StreamgaugeError(
            f"not a safetensors file ({error})", where=str(path), remedy=pickles
        ) from error
    missing = [name for name in names if name not in tensors]
    if missing:
        raise StreamgaugeError(f"tensors missing: {', '.join(missing)}", where=str(path))
    for name in names:
        if not tensors[name].is_floating_point():
            raise StreamgaugeError(
                f"{name} is of type {tensors[name].dtype}, not floating point", where=str(path)
            )
        tensors[name] = tensors[name].float()
        if not tensors[name].isfinite().all():
            raise StreamgaugeError(
                f"{name} has values that are not finite",
                where=str(path),
                remedy="The SAE is broken; fetch or train it again.",
            )
    return tensors


def unsafe(directory: Path) -> list[str]:
    """Names of the files in `directory` that may be pickles, sorted."""
    suffixes = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".npy", ".npz")
    files = directory.iterdir() if directory.is_dir() else ()
    return sorted(file.name for file in files if file.suffix in suffixes)


def whole(config: Mapping[str, Any], key: str, where: Path) -> int:
    """A whole number from 1 that a configuration gives.

    Raises:
        StreamgaugeError: it is missing, of another type, or out of any sensible range.
    """
    value = config.get(key)
    if type(value) is not int or not 1 <= value < LARGEST:
        raise StreamgaugeError(f"{key} is {shown(value)}, not a usable number", where=str(where))
    return value


def _flag(config: Mapping[str, Any], key: str, default: bool, where: Path) -> bool:
    """A setting that changes what the weights mean: true or false, and nothing that resembles."""
    value = config.get(key, default)
    if type(value) is not bool:
        raise StreamgaugeError(
            f"{key} is {shown(value)}, neither true nor false",
            where=str(where),
            remedy="The configuration is damaged; fetch it again.",
        )
    return value


def assemble(architecture: str, parts: Mapping[str, Any], where: Path) -> SparseAutoencoder:
    """The SAE of these tensors and counts.

    Raises:
        StreamgaugeError: shapes that do not fit, k > d_sae.
    """
    try:
        return _architectures()[architecture].build(**parts)
    except StreamgaugeError as error:
        raise StreamgaugeError(error.problem, where=str(where), remedy=error.remedy) from error


def check_sizes(sae: SparseAutoencoder, d_model, d_sae, where: Path) -> None:
    """Refuse weights of other sizes than the configuration names."""
    if (d_model, d_sae) != (sae.d_model, sae.d_sae):
        raise StreamgaugeError(
            f"the configuration says {shown(d_model)} x {shown(d_sae)}, the weights are "
            f"{sae.d_model} x {sae.d_sae}",
            where=str(where),
            remedy="The two files belong to different SAEs; fetch them again.",
        )


def _architecture(config: Mapping[str, Any], path: Path) -> str:
    """Which of `ARCHITECTURES` it is, in the present layout or one older than SAELens 6."""
    architecture = config.get("architecture", "standard")
    activation = config.get("activation_fn", config.get("activation_fn_str", "relu"))
    if (architecture, activation) == ("standard", "topk"):
        architecture, activation = "topk", "relu"
    plain = (
        ("architecture", architecture, tuple(_architectures())),
        ("activation_fn", activation, ("topk", "relu") if architecture == "topk" else ("relu",)),
        ("normalize_activations", config.get("normalize_activations"), ("none", None, False)),
        ("reshape_activations", config.get("reshape_activations"), ("none", None)),
        ("finetuning_scaling_factor", config.get("finetuning_scaling_factor"), (False, None)),
    )
    for key, value, wanted in plain:
        if value not in wanted:
            raise StreamgaugeError(
                f"{key} is {shown(value)}, but only {', '.join(filter(None, wanted)) or 'false'} "
                "can be read",
                where=str(path),
                remedy="Give a TopK, ReLU or JumpReLU SAE of plain residual-stream activations.",
            )
    return architecture


def _architectures() -> Mapping[str, Any]:
    """What `architectures` knows; keys count it for imported SAEs alone, as all others are TopK."""
    return entry.named(entry.ARCHITECTURES)
