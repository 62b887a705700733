"""Language models from any source, as one kind of object.

`prepare` turns a block of the configuration into a Hugging Face directory (config, tokenizer,
safetensors); `load` opens such a directory as a `Subject`. Weights are read from safetensors or
GGUF only: pickles are refused, and code that comes with a model is never run. Models of the source
``scratch`` are pretrained by `pretraining`.
"""

import importlib.util
import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from streamgauge.base import entry, whole_file
from streamgauge.base.errors import StreamgaugeError, one_line
from streamgauge.base.progress import busy
from streamgauge.models import hooks
from streamgauge.models.quiet import quiet
from streamgauge.models.sources import check_config, weight_files, weights_digest


def prepare(block: Mapping[str, Any], directory: str | Path) -> dict[str, Any]:
    """Make `directory` the Hugging Face directory of a subject, from any source.

    Files of a local directory or of the hub's cache are linked; a GGUF file is dequantised to
    float32 safetensors once. The directory appears only when it is whole and the model has been
    loaded and run.

    Args:
        block: one entry of ``subjects`` in the configuration, with ``source`` ``huggingface``
            (``repo``, ``revision``), ``local`` (``path``) or ``gguf`` (``path``, or ``package`` and
            ``file``), and ``dtype``; optionally ``expect``, see `make`.
        directory: to be made; replaced where it exists.

    Returns:
        Facts for the manifest: ``architecture``, ``d_model``, ``n_layers``, ``vocab_size``,
        ``n_ctx`` (longest context or None), ``n_parameters``, ``dtype``, ``source``,
        ``weights_sha256`` (see `weights_digest`), ``logit_difference`` (largest absolute difference
        between the plain forward and one with the clean residual put back, at three layers),
        ``suffix_reruns`` (whether patched forwards skip the blocks below), ``transformer_lens``
        ("yes", or in one line why not).

    Raises:
        StreamgaugeError: the source is missing, unreachable, holds pickles only, needs code of its
            own, is no causal language model, is incomplete, computes non-finite logits, or is not
            the model that ``expect`` describes.
    """
    return make(block, directory, entry.named(entry.SOURCE.format(**block)))


def make(
    block: Mapping[str, Any],
    directory: str | Path,
    fill: Callable[[Mapping[str, Any], Path], str],
) -> dict[str, Any]:
    """Fill a directory, check the model in it, and only then let it appear: every source's end.

    Args:
        block: one entry of ``subjects``: ``dtype``, the precision the model is run in, and
            ``expect``, facts it must have (``d_model``, ``n_layers``, ``vocab_size``; None says
            nothing).
        directory: to be made; replaced where it exists.
        fill: called with `block` and a scratch directory to write a Hugging Face directory into;
            says in a line where its contents came from.

    Returns:
        Facts, see `prepare`.

    Raises:
        StreamgaugeError: as for `prepare`.
    """
    directory = Path(directory)
    with whole_file.beside(directory) as place:
        scratch = place.parent
        source = fill(block, scratch)
        try:
            facts = _facts(scratch, block.get("dtype", "float32")) | {"source": source}
            _check_expected(facts, block.get("expect") or {})
        except StreamgaugeError as error:  # about the source, not about its copy here
            raise StreamgaugeError(error.problem, where=source, remedy=error.remedy) from error
        whole_file.flush(*scratch.rglob("*"), scratch)
        shutil.rmtree(directory, ignore_errors=True)
        scratch.rename(directory)
    whole_file.remove_leftovers(directory)
    return facts


def load(directory: str | Path, device: str = "auto", dtype: str = "float32") -> "Subject":
    """Open a directory made by `prepare` (or any Hugging Face directory with safetensors).

    Args:
        directory: the directory.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        dtype: ``float32``, ``float16`` or ``bfloat16``.

    Raises:
        StreamgaugeError: no such device; the directory is no complete causal language model.
    """
    where = resolve_device(device)
    with busy(f"load {Path(directory).parent.name or directory}", "reading the weights"):
        return Subject(_load_model(Path(directory), dtype).to(where), Path(directory))


def load_tokenizer(directory: str | Path):
    """The tokenizer of a Hugging Face directory (a ``PreTrainedTokenizerBase``).

    Raises:
        StreamgaugeError: there is none, or transformers cannot read it.
    """
    from transformers import AutoTokenizer

    with quiet(), one_line(f"{directory}", "the tokenizer cannot be loaded"):
        return AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )


def resolve_device(name: str = "auto") -> torch.device:
    """The torch device of a name; ``auto`` is CUDA, else MPS, else the CPU.

    Raises:
        StreamgaugeError: the device is not known or not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cpu" and torch.backends.mps.is_available():
            name = "mps"
    remedy = "Set device to auto, or to one this machine has."
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise StreamgaugeError(
            f"{name!r} is no device", where="config device", remedy=remedy
        ) from error
    there = {
        "cpu": True,
        "cuda": (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(device.type, False):
        raise StreamgaugeError(f"there is no {name} here", where="config device", remedy=remedy)
    return device


class Subject:
    """A causal language model with its residual stream in reach.

    Attributes:
        model: the Hugging Face model: evaluation mode, parameters without gradients.
        directory: where it was loaded from.
        device: where it lives.
        n_layers, d_model, vocab_size: its shape.
        n_ctx: longest context it was made for, or None.
    """

    def __init__(self, model: torch.nn.Module, directory: Path):
        config = model.config.get_text_config()
        self.model, self.directory, self.device = model, directory, model.device
        self.n_layers: int = config.num_hidden_layers
        self.d_model: int = config.hidden_size
        self.vocab_size: int = config.vocab_size
        self.n_ctx: int | None = getattr(config, "max_position_embeddings", None)

    @cached_property
    def tokenizer(self):
        """The tokenizer, read on first use."""
        return load_tokenizer(self.directory)

    @property
    def bos_token_id(self) -> int | None:
        """The tokenizer's beginning-of-sequence id, where it has one."""
        return self.tokenizer.bos_token_id

    def ids(self, ids) -> Tensor:
        """Token ids (batch, position) of any array type, checked and on the model's device.

        Raises:
            StreamgaugeError: an id the model does not know, or a context longer than `n_ctx`.
        """
        ids = torch.as_tensor(ids)
        if self.n_ctx is not None and ids.shape[-1] > self.n_ctx:
            raise StreamgaugeError(
                f"sequences of {ids.shape[-1]} tokens exceed the model's context of {self.n_ctx}",
                remedy="Lower context_length in the corpus' block.",
            )
        # ids already on an accelerator are left alone: looking at them would make it wait
        if ids.device.type == "cpu" and ids.numel():
            low, high = int(ids.min()), int(ids.max())
            if low < 0 or high >= self.vocab_size:
                raise StreamgaugeError(
                    f"token id {low if low < 0 else high} is outside the model's vocabulary of "
                    f"{self.vocab_size}",
                    remedy="Use a corpus tokenised for this model, or a text column.",
                )
        return ids.to(device=self.device, dtype=torch.long)

    def residuals(self, ids, layers: Iterable[int], stop: bool = True) -> dict[int, Tensor]:
        """`hooks.residuals` of this model: layer -> (batch, position, d_model)."""
        return hooks.residuals(self.model, self.ids(ids), layers, stop)

    def logits(self, ids) -> Tensor:
        """Logits of the plain forward pass, (batch, position, vocab_size)."""
        return hooks.logits(self.model, self.ids(ids))

    def logits_from(self, ids, layer: int, h: Tensor) -> Tensor:
        """`hooks.logits_from` of this model: logits with the residual after `layer` set to `h`."""
        return hooks.logits_from(self.model, self.ids(ids), layer, h)

    def bridge(self):
        """This model as a TransformerLens ``TransformerBridge``, from a copy of its own.

        The bridge wraps the modules it is given in place, so `model` is not given to it.

        Raises:
            StreamgaugeError: TransformerLens does not know the architecture.
        """
        verdict = transformer_lens_support(type(self.model).__name__)
        if verdict != "yes":
            raise StreamgaugeError(verdict, where=str(self.directory))
        from transformer_lens.model_bridge import TransformerBridge

        dtype = str(self.model.dtype).removeprefix("torch.")
        with quiet():
            return TransformerBridge.boot_transformers(
                str(self.directory),
                device=self.device,
                dtype=self.model.dtype,
                hf_model=_load_model(self.directory, dtype).to(self.device),
                tokenizer=self.tokenizer,
            )


def transformer_lens_support(architecture: str) -> str:
    """ "yes" where TransformerLens has an adapter for `architecture`, else one line saying not.

    Its table of adapters is read from the source: importing the library takes ten seconds.
    """
    spec = importlib.util.find_spec("transformer_lens")
    if spec is None:
        return "TransformerLens is not installed"
    package = Path(next(iter(spec.submodule_search_locations)))
    table = (package / "factories" / "architecture_adapter_factory.py").read_text("utf-8")
    if f'"{architecture}":' in table:
        return "yes"
    return f"TransformerLens has no adapter for {architecture}; streamgauge's own hooks are used"


def _load_model(directory: Path, dtype: str) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    check_config(directory)
    weight_files(directory)
    with quiet(), one_line(str(directory), "transformers cannot load the model"):
        model, found = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    # transformers would fill these with random numbers
    if found["missing_keys"]:
        name = sorted(found["missing_keys"])[0]
        raise StreamgaugeError(
            f"the weights are incomplete: {name} is missing", where=str(directory)
        )
    return model.eval().requires_grad_(False)


def _check_expected(facts: Mapping[str, Any], expect: Mapping[str, Any]) -> None:
    for name, value in expect.items():
        if value is not None and facts[name] != value:
            raise StreamgaugeError(
                f"the model has {name} {facts[name]}, not {value} as expected",
                remedy="Name the right model, or mend expect in the subject's block.",
            )


def _facts(directory: Path, dtype: str) -> dict[str, Any]:
    """Load the model, run it plainly and through the hooks, and describe it."""
    subject = load(directory, "auto", dtype)
    hooks.blocks(subject.model)
    generator = torch.Generator().manual_seed(0)
    length = min(32, subject.n_ctx or 32)
    ids = torch.randint(0, subject.vocab_size, (2, length), generator=generator)
    layers = sorted({0, subject.n_layers // 2, subject.n_layers - 1})
    label = f"subject {type(subject.model).__name__}"
    with torch.no_grad(), busy(label, "comparing hooked and plain logits"):
        plain = subject.logits(ids)
        if not torch.isfinite(plain).all():
            raise StreamgaugeError(
                f"the logits are not finite in {dtype}",
                where=str(directory),
                remedy="Set dtype: float32 for this subject, or check its weights.",
            )
        clean = subject.residuals(ids, layers)
        difference = max(
            float((subject.logits_from(ids, layer, clean[layer]) - plain).abs().max())
            for layer in layers
        )
    with busy(label, "hashing the weights"):
        digest = weights_digest(directory)
    architecture = type(subject.model).__name__
    return {
        "architecture": architecture,
        "d_model": subject.d_model,
        "n_layers": subject.n_layers,
        "vocab_size": subject.vocab_size,
        "n_ctx": subject.n_ctx,
        "n_parameters": sum(p.numel() for p in subject.model.parameters()),
        "dtype": dtype,
        "weights_sha256": digest,
        "logit_difference": difference,
        "suffix_reruns": hooks.skips_lower_blocks(subject.model),
        "transformer_lens": transformer_lens_support(architecture),
    }
