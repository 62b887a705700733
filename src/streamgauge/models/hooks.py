"""Read and replace the residual stream of any Hugging Face causal language model.

The hook point is ``blocks.{layer}.hook_resid_post`` (docs/definitions.md, "Hook point"): the
residual stream after decoder block `layer`, before the final norm, with the weights as published.
Hooks sit on the Hugging Face modules themselves, so every architecture transformers can load works,
and the forward pass is the published one, bit for bit.

Nothing here switches gradients off: wrap calls in ``torch.no_grad()`` where none are wanted.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from streamgauge.base.errors import StreamgaugeError

# Elements held at once in each temporary over the vocabulary: on a CPU 4 MB of float32, which its
# cache holds (half the time of 32 MB); on an accelerator 128 MB, so that launches do not count.
LOGITS_AT_ONCE = {"cpu": 1 << 20}
LOGITS_AT_ONCE_ELSEWHERE = 1 << 25


class _Deepest(Exception):
    """Leaves a forward pass whose remaining blocks nobody needs."""


def hook_name(layer: int) -> str:
    """TransformerLens' name of the residual stream after block `layer`."""
    return f"blocks.{layer}.hook_resid_post"


def logits_slices(logits: Tensor, positions: int) -> Iterator[slice]:
    """Slices of the first `positions` that bound a temporary over the vocabulary.

    Args:
        logits: (..., vocabulary), for its width and device.
        positions: how many rows of that width are cut.
    """
    at_once = LOGITS_AT_ONCE.get(logits.device.type, LOGITS_AT_ONCE_ELSEWHERE)
    step = max(1, at_once // logits.shape[-1])
    return (slice(at, min(at + step, positions)) for at in range(0, positions, step))


def blocks(model: nn.Module) -> nn.ModuleList:
    """The decoder blocks of a causal language model, in order.

    They are the shallowest ``ModuleList`` under ``model.base_model`` that has as many members as
    the configuration has layers (lists of experts or of a vision tower's layers lie deeper).

    Raises:
        StreamgaugeError: no such list exists.
    """
    n_layers = model.config.get_text_config().num_hidden_layers
    lists = [
        (name.count("."), name, module)
        for name, module in model.base_model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    ]
    if not lists:
        raise StreamgaugeError(
            f"no list of {n_layers} decoder blocks found in {type(model).__name__}",
            remedy="This architecture cannot be hooked; choose another subject.",
        )
    return min(lists, key=lambda item: item[:2])[2]


def check_layers(layers: Iterable[int], n_layers: int) -> None:
    """Raise StreamgaugeError for the first of `layers` that a model of `n_layers` does not have."""
    for layer in layers:
        if not 0 <= layer < n_layers:
            raise StreamgaugeError(
                f"layer {layer} does not exist: the model has layers 0 to {n_layers - 1}",
                remedy="Correct grid.layers in the config.",
            )


def residuals(
    model: nn.Module, ids: Tensor, layers: Iterable[int], stop: bool = True
) -> dict[int, Tensor]:
    """The residual stream after each of `layers`.

    Args:
        model: a Hugging Face causal language model.
        ids: token ids, (batch, position), on the model's device.
        layers: layers wanted, any order.
        stop: leave the forward pass after the deepest of `layers` instead of finishing it.

    Returns:
        layer -> (batch, position, d_model), the very tensors of the forward pass (part of its
        graph where gradients are on).

    Raises:
        StreamgaugeError: a layer does not exist, or the model's blocks carry something other than
            one (batch, position, d_model) stream.
    """
    wanted = sorted(set(layers))
    modules = blocks(model)
    check_layers(wanted, len(modules))
    found: dict[int, Tensor] = {}

    def reader(layer: int) -> Callable:
        def hook(_module, _arguments, output):
            found[layer] = _stream(output, ids)
            if stop and layer == wanted[-1]:
                raise _Deepest

        return hook

    if not wanted:
        return found
    with _hooked({modules[layer]: reader(layer) for layer in wanted}):
        try:
            model(ids, use_cache=False)
        except _Deepest:
            pass
    return found


def logits(model: nn.Module, ids: Tensor) -> Tensor:
    """Logits of the plain forward pass: (batch, position) ids -> (batch, position, vocabulary)."""
    return model(ids, use_cache=False).logits


def logits_from(model: nn.Module, ids: Tensor, layer: int, h: Tensor) -> Tensor:
    """Logits when the residual stream after block `layer` is `h`, running only the blocks above.

    Blocks up to and including `layer` are skipped: each returns `h` at once. Embeddings, masks and
    rotary tables are computed as ever, so every architecture finds what it expects. With the clean
    residual as `h` the result equals ``model(ids).logits`` bit for bit. Where blocks hand each
    other more than the residual stream (found out once per model, on a few tokens), the lower
    blocks are run as well and only the stream is replaced.

    Args:
        model: a Hugging Face causal language model.
        ids: token ids, (batch, position).
        layer: the layer whose output is replaced; the last one is legal.
        h: (batch, position, d_model); cast to the model's dtype, differentiable.

    Returns:
        (batch, position, vocabulary).

    Raises:
        StreamgaugeError: the layer does not exist, or `h` has the wrong shape.
    """
    modules = blocks(model)
    check_layers([layer], len(modules))
    if h.ndim != 3 or h.shape[:2] != ids.shape:
        raise StreamgaugeError(
            f"the replacement has shape {tuple(h.shape)} for ids of shape {tuple(ids.shape)}",
            where=hook_name(layer),
        )
    h = h.to(device=ids.device, dtype=model.dtype)
    length = _skippable(model)
    if length is None:
        return _replaced(model, ids, layer, h)
    return _suffix(model, ids, layer, h, length)


@contextmanager
def edited(model: nn.Module, layer: int, edit: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While open, every forward pass goes on with ``edit(h)`` in place of the residual stream h.

    Args:
        model: a Hugging Face causal language model.
        layer: the block after which h is edited.
        edit: (batch, position, d_model) -> the same shape and dtype; with a KV cache it sees the
            new positions only, once for every forward pass.

    Raises:
        StreamgaugeError: the layer does not exist.
    """
    modules = blocks(model)
    check_layers([layer], len(modules))

    def replace(_module, _arguments, output):
        if isinstance(output, tuple):
            return (edit(output[0]), *output[1:])
        return edit(output)

    with _hooked({modules[layer]: replace}):
        yield


def skips_lower_blocks(model: nn.Module) -> bool:
    """Whether `logits_from` may skip the blocks up to the replaced one in this model."""
    return _skippable(model) is not None


_SKIPPABLE: WeakKeyDictionary[nn.Module, int | None] = WeakKeyDictionary()


def _skippable(model: nn.Module) -> int | None:
    """What a skipped block has to return: 0 for a tensor, n for a tuple of n members.

    None where blocks hand each other more than the residual stream, so that none may be skipped.
    Tried once per model on a few tokens, which no list of architectures could keep up with.
    """
    if model not in _SKIPPABLE:
        modules = blocks(model)
        ids = torch.arange(1, 6, device=model.device)[None]
        layers = range(len(modules))
        lengths = set()

        def measure(_module, _arguments, output):
            lengths.add(len(output) if isinstance(output, tuple) else 0)

        with torch.no_grad():
            with _hooked(dict.fromkeys(modules, measure)):
                clean = residuals(model, ids, layers, stop=False)
            plain = logits(model, ids)
            length = lengths.pop()
            equal = not lengths and all(
                torch.equal(plain, _suffix(model, ids, layer, clean[layer], length))
                for layer in {layers[0], layers[len(layers) // 2], layers[-1]}
            )
        _SKIPPABLE[model] = length if equal else None
    return _SKIPPABLE[model]


def _suffix(model: nn.Module, ids: Tensor, layer: int, h: Tensor, length: int) -> Tensor:
    """Logits with the blocks up to `layer` replaced by ones that return `h` at once."""

    def skipped(*_arguments, **_options):
        return (h, *[None] * (length - 1)) if length else h

    modules = blocks(model)[: layer + 1]
    before = [module.__dict__.get("forward") for module in modules]
    try:
        for module in modules:
            module.forward = skipped
        return logits(model, ids)
    finally:
        for module, forward in zip(modules, before, strict=True):
            if forward is None:
                module.__dict__.pop("forward", None)
            else:  # another library had put its own in place
                module.forward = forward


def _replaced(model: nn.Module, ids: Tensor, layer: int, h: Tensor) -> Tensor:
    """Logits with every block run and only the output of block `layer` replaced by `h`."""

    with edited(model, layer, lambda _: h):
        return logits(model, ids)


def _stream(output, ids: Tensor) -> Tensor:
    """The residual stream in what a block returned: a tensor, or a tuple that begins with it."""
    stream = output[0] if isinstance(output, tuple) else output
    if stream.ndim != 3 or stream.shape[:2] != ids.shape:
        raise StreamgaugeError(
            f"a block returned a stream of shape {tuple(stream.shape)} for ids of shape "
            f"{tuple(ids.shape)}",
            remedy="An architecture with several residual streams cannot be hooked.",
        )
    return stream


@contextmanager
def _hooked(hooks: dict[nn.Module, Callable]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
