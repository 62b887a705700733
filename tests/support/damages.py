"""Damages of files below results, drawn with a seed, and what kinds of files lie there."""

import contextlib
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from streamgauge.artifacts import catalogue, manifest
from streamgauge.artifacts.records import RECORD

KINDS = ("flip", "truncate", "zero", "append", "delete", "swap", "folder", "link")


def files(results: Path) -> dict[str, list[tuple[Path, Path]]]:
    """Files by kind: their stage and name, numbers left out; each with its manifest or record."""
    found: dict[str, list[tuple[Path, Path]]] = {}
    for path in catalogue.find(results):
        record = manifest.read(path)
        stage = record["spec"]["stage"]
        found.setdefault(f"{stage} manifest", []).append((path, path))
        for name in record["files"]:
            kind = f"{stage} {_kind(name, path.stem)}"
            found.setdefault(kind, []).append((path.parent / name, path))
    for path in results.parent.glob(RECORD.format(study="*")):
        found.setdefault("record of a study", []).append((path, path))
    return found


def _kind(name: str, stem: str) -> str:
    top, *inner = name.split("/")
    if "c" in inner:
        inner = inner[: inner.index("c") + 1]
    return "/".join([top.replace(stem, "*"), *inner])


class Damage(NamedTuple):
    """What is done to a file.

    Attributes:
        kind: of the file, see `files`.
        how: one of `KINDS`.
        file: its path.
        other: the file of its kind that it is swapped with, if it is.
        owners: the manifests of what is damaged by that.
    """

    kind: str
    how: str
    file: Path
    other: Path | None
    owners: frozenset[Path]


def draw(
    kind: str, how: str, found: tuple[Path, Path], members: Sequence[tuple[Path, Path]], rng
) -> Damage:
    """A damage of one file with its manifest; where nothing can be swapped, a flipped bit.

    Args:
        members: all files of its kind, each with its manifest.
    """
    file, owner = found
    if how == "swap":
        data = file.read_bytes()
        others = [one for one in members if one[0] != file and one[0].read_bytes() != data]
        if others:
            other, second = rng.choice(others)
            return Damage(kind, how, file, other, frozenset({owner, second}))
        how = "flip"
    return Damage(kind, how, file, None, frozenset({owner}))


@contextlib.contextmanager
def done(
    damage: Damage, rng: random.Random, aside: Path, other_bytes: bool = False
) -> Iterator[None]:
    """A file damaged, and put back afterwards, its times and all.

    Args:
        rng: draws where and how much.
        aside: a folder of the same file system, outside results.
        other_bytes: where a link leads to; the same bytes unless links are allowed there.
    """
    path, how = damage.file, damage.how
    if damage.other:
        exchange(path, damage.other)
        try:
            yield
        finally:
            exchange(path, damage.other)
        return
    data = path.read_bytes()
    kept = aside / f"kept-{rng.getrandbits(64):x}"
    os.rename(path, kept)
    try:
        if how == "folder":
            path.mkdir()
            if rng.random() < 0.5:
                shutil.copy(kept, path / "inside")
        elif how == "link":
            target = kept.with_name(f"{kept.name}-elsewhere")
            others = other_bytes or "model" in path.parts
            target.write_bytes(spoilt(data, "flip", rng) if others else data)
            path.symlink_to(target)
        elif how != "delete":
            path.write_bytes(spoilt(data, how, rng))
        yield
    finally:
        remove(path)
        os.rename(kept, path)


def spoilt(data: bytes, how: str, rng: random.Random) -> bytes:
    """Other bytes than `data`."""
    if how == "append" or not data:
        return data + rng.randbytes(rng.randint(1, 64))
    if how == "truncate":
        return data[: rng.randrange(len(data))]
    changed = bytearray(data)
    something = [i for i, byte in enumerate(data[: 1 << 16]) if byte]
    if how == "zero" and something:
        at = rng.choice(something)
        for i in range(at, min(len(data), at + rng.randint(1, 64))):
            changed[i] = 0
    else:
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def exchange(one: Path, other: Path) -> None:
    """Give two files or folders each other's name."""
    between = one.with_name(f".{one.name}.between")
    os.rename(one, between)
    os.rename(other, one)
    os.rename(between, other)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, where there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
