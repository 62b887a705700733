"""SAE directories in the layout of SAELens, and checkpoints of a training run.

A directory holds ``cfg.json`` and ``sae_weights.safetensors`` with ``W_enc`` (d, m), ``b_enc``,
``W_dec`` (m, d) and ``b_dec``; ``sae_lens.SAE.load_from_disk`` reads it. Weights are read from
safetensors only, never from a pickle.
"""

import contextlib
import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from streamgauge.errors import StreamgaugeError
from streamgauge.sae.topk import TopKSAE

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")
# The layout written here. Without a version of at least 6 SAELens takes the directory for an
# older layout and drops the metadata.
SAE_LENS_VERSION = "6.54.12"


def save(sae: TopKSAE, directory: Path | str, metadata: dict) -> None:
    """Write an SAE in SAELens' layout. The same SAE and metadata give the same bytes.

    Args:
        sae: an SAE of unscaled activations.
        directory: made when missing; files of the same names are replaced.
        metadata: JSON values kept in ``cfg.json``; SAELens uses ``model_name``, ``hook_name``,
            ``context_size`` and ``prepend_bos``, and hands other keys through.
    """
    directory = Path(directory)
    config = {
        "architecture": "topk",
        "d_in": sae.d_model,
        "d_sae": sae.d_sae,
        "k": sae.k,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "rescale_acts_by_decoder_norm": False,
        "metadata": {**metadata, "sae_lens_version": SAE_LENS_VERSION},
    }
    tensors = {name: getattr(sae, name).cpu().float().contiguous() for name in NAMES}
    _replace(directory / WEIGHTS, lambda path: save_file(tensors, path))
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    _replace(directory / CONFIG, lambda path: path.write_text(text))


def load(directory: Path | str, device: str | torch.device = "cpu") -> tuple[TopKSAE, dict]:
    """Read a TopK SAE in SAELens' layout, ours or theirs: (SAE in float32, its ``cfg.json``).

    SAEs that rank latents by activation times decoder norm, or that do not subtract b_dec from
    the input, are rewritten to the plain formula; their outputs agree up to rounding.

    Raises:
        StreamgaugeError: no such directory, weights that are no safetensors, another
            architecture or an input normalisation, k > d_sae, shapes that do not fit.
    """
    directory = Path(directory)
    config = _read_config(directory)
    sae = _read_weights(directory, config["k"])
    d, m = config.get("d_in", sae.d_model), config.get("d_sae", sae.d_sae)
    if (d, m) != (sae.d_model, sae.d_sae):
        raise StreamgaugeError(
            f"the configuration says {d} x {m}, the weights are {sae.d_model} x {sae.d_sae}",
            where=str(directory),
            remedy="The two files belong to different SAEs; fetch them again.",
        )
    if not config.get("apply_b_dec_to_input", True):
        # x W + b = (x - b_dec) W + (b + b_dec W)
        sae = TopKSAE(sae.W_enc, sae.b_enc + sae.b_dec @ sae.W_enc, sae.W_dec, sae.b_dec, sae.k)
    if config.get("rescale_acts_by_decoder_norm", False):
        sae = fold_decoder_norm(sae)
    return sae.to(device), config


def fold_decoder_norm(sae: TopKSAE) -> TopKSAE:
    """The SAE with unit decoder rows that ranks by pre-activation alone.

    Equals, up to rounding, the given SAE read as SAELens' ``rescale_acts_by_decoder_norm``
    (TopK of pre-activation times decoder norm, decoded with normalised rows).
    """
    norm = sae.W_dec.norm(dim=1).clamp(min=1e-8)
    return TopKSAE(
        sae.W_enc * norm, sae.b_enc * norm, sae.W_dec / norm.unsqueeze(1), sae.b_dec, sae.k
    )


def save_checkpoint(path: Path | str, tensors: dict[str, torch.Tensor], facts: dict) -> None:
    """Write tensors and JSON facts as one safetensors file that is whole or not there."""
    _replace(
        Path(path), lambda temporary: save_file(tensors, temporary, {"facts": json.dumps(facts)})
    )


def load_checkpoint(path: Path | str) -> tuple[dict[str, torch.Tensor], dict]:
    """(tensors, facts) of a checkpoint.

    Raises:
        StreamgaugeError: the file is no readable checkpoint.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["facts"])
            return {name: file.get_tensor(name) for name in file.keys()}, facts
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise StreamgaugeError(
            f"unreadable checkpoint ({error})",
            where=str(path),
            remedy="Delete it; training starts again from the first step.",
        ) from error


def _replace(path: Path, write) -> None:
    """Write beside `path` and rename, so that a reader never sees half a file."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise StreamgaugeError(
            f"cannot be written ({error})",
            where=str(path),
            remedy="Check free space and permissions; a second start continues the work.",
        ) from error


def _read_config(directory: Path) -> dict:
    path = directory / CONFIG
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StreamgaugeError(
            f"no readable {CONFIG} ({error})",
            where=str(directory),
            remedy=f"An SAE is a directory with {CONFIG} and {WEIGHTS}, as SAELens saves it.",
        ) from error
    for key, wanted, default in (
        ("architecture", ("topk",), "standard"),
        ("normalize_activations", ("none", None), "none"),
        ("reshape_activations", ("none", None), "none"),
    ):
        value = config.get(key, default)
        if value not in wanted:
            raise StreamgaugeError(
                f"{key} is {value!r}, but only {wanted[0]!r} can be read",
                where=str(path),
                remedy="Give a TopK SAE of plain residual-stream activations.",
            )
    if not isinstance(config.get("k"), int):
        raise StreamgaugeError(
            f"k is {config.get('k')!r}, not a number of latents", where=str(path)
        )
    return config


def _read_weights(directory: Path, k: int) -> TopKSAE:
    path = directory / WEIGHTS
    if not path.exists():
        others = sorted(
            p.name for p in directory.iterdir() if p.suffix in (".pt", ".pth", ".bin", ".pkl")
        )
        found = f"only {', '.join(others)}, which may be a pickle" if others else "no weights"
        raise StreamgaugeError(
            f"{found}; {WEIGHTS} is needed",
            where=str(directory),
            remedy="Convert the weights to safetensors; pickles run code and are never loaded.",
        )
    try:
        with safe_open(path, framework="pt") as file:
            missing = [name for name in NAMES if name not in file.keys()]
            tensors = {n: file.get_tensor(n).float() for n in NAMES if n not in missing}
    except (SafetensorError, OSError) as error:
        raise StreamgaugeError(
            f"not a safetensors file ({error})",
            where=str(path),
            remedy="Convert the weights to safetensors; pickles run code and are never loaded.",
        ) from error
    if missing:
        raise StreamgaugeError(f"tensors missing: {', '.join(missing)}", where=str(path))
    try:
        return TopKSAE(**tensors, k=k)
    except StreamgaugeError as error:
        raise StreamgaugeError(error.problem, where=str(path), remedy=error.remedy) from error
