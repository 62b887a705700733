"""What a job does to the file system, recorded, and the states a power cut may leave it in.

After a cut a file may hold anything it held since it was last flushed, and a name may be there or
not unless its folder was flushed. The recorder looks at the whole folder whenever Python is about
to change a name, open a file for writing or flush: what libraries written in other languages do
shows at the next such moment, as if done at once and never flushed by them.
"""

import contextlib
import os
import random
import resource
import sys
import threading
import time
from pathlib import Path

CHANGES = {"os.rename", "os.mkdir", "os.link", "os.symlink", "os.remove", "os.rmdir"}
UNNOTICED = 20_000_000  # ns in which a file may change twice with one time of modification


class Recorder:
    """Records what happens below a folder, from now on, in this process.

    Attributes:
        steps: ``("names", folder, {name: inode})``, ``("bytes", inode, content)``, ``("flush",
            inode, of what and by whom)``, in order; inodes are numbered from 0, the folder itself.
        kinds: of every inode: ``"folder"``, ``"file"`` or ``"link"``.
    """

    def __init__(self, folder: Path):
        self.folder, self.steps, self.kinds = folder, [], []
        self._known, self._names, self._stats, self._bytes = {}, {}, {}, {}
        self._lock, self._looking = threading.RLock(), False
        # an open file keeps its inode's number from being given to another
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        self.look()
        self.steps += [("flush", inode, "before") for inode in range(len(self.kinds))]
        sys.addaudithook(self._hook)
        self._fsync, os.fsync = os.fsync, self._flush

    def _hook(self, event: str, args: tuple) -> None:
        writing = event == "open" and isinstance(args[2], int) and args[2] & 0o1103
        if writing or event in CHANGES:
            self.look()

    def _flush(self, opened: int) -> None:
        with self._lock:
            self.look()
            found = os.fstat(opened)
            if (found.st_dev, found.st_ino) in self._known:
                frame = sys._getframe(2)  # who called `whole_file.flush`
                who = f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}"
                inode = self._known[found.st_dev, found.st_ino]
                what = f"{self.kinds[inode]} in {who}:{frame.f_lineno}"
                self.steps.append(("flush", inode, what))
        self._fsync(opened)

    def look(self) -> None:
        """See what has changed."""
        with self._lock:
            if not self._looking:
                self._looking = True
                try:
                    self._folder(self.folder)
                finally:
                    self._looking = False

    def _folder(self, path: Path) -> int:
        inode, names = self._number(path, "folder"), {}
        with contextlib.suppress(FileNotFoundError):
            for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
                if entry.is_symlink():
                    names[entry.name] = self._number(entry.path, "link")
                elif entry.is_dir():
                    names[entry.name] = self._folder(entry.path)
                else:
                    names[entry.name] = self._file(entry.path)
        if self._names.get(inode) != names:
            self._names[inode] = names
            self.steps.append(("names", inode, names))
        return inode

    def _file(self, path: str) -> int:
        inode, found = self._number(path, "file"), os.stat(path)
        seen = found.st_size, found.st_mtime_ns
        if self._stats.get(inode) != seen or time.time_ns() - found.st_mtime_ns < UNNOTICED:
            self._stats[inode] = seen
            content = Path(path).read_bytes()
            if self._bytes.get(inode) != content:
                self._bytes[inode] = content
                self.steps.append(("bytes", inode, content))
        return inode

    def _number(self, path, kind: str) -> int:
        found = os.lstat(path)
        key = (found.st_dev, found.st_ino)
        if key not in self._known:
            os.open(path, os.O_PATH | os.O_NOFOLLOW)
            self._known[key] = len(self.kinds)
            self.kinds.append(kind)
            if kind == "link":
                self.steps.append(("bytes", self._known[key], os.readlink(path)))
        return self._known[key]


class Disk:
    """A record played back: what is there now, and what of it is on disk for certain."""

    def __init__(self, kinds: list[str]):
        self.kinds = kinds
        self.names, self.bytes = {}, {}
        self.flushed_names, self.flushed_bytes = {}, {}

    def play(self, step) -> None:
        """Do one step."""
        what, inode, value = step
        if what == "names":
            self.names[inode] = value
        elif what == "bytes":
            self.bytes[inode] = value
        elif self.kinds[inode] == "folder":
            self.flushed_names[inode] = self.names[inode]
        else:
            self.flushed_bytes[inode] = self.bytes[inode]

    def now(self) -> dict:
        """What is there, as long as the power is: path -> content; None for a folder."""
        return self._tree(self.names.get, self.bytes.get)

    def lasting(self, path: str) -> set[str]:
        """Names in a folder that is there now which were flushed with it."""
        inode = 0
        for name in path.split("/"):
            inode = self.names[inode][name]
        return set(self.flushed_names.get(inode, ()))

    def least(self) -> dict:
        """What a cut leaves at least: of files and names, those that were flushed."""
        return self._tree(
            lambda inode: self.flushed_names.get(inode, {}),
            lambda inode: self.flushed_bytes.get(inode, b""),
        )

    def empty(self) -> dict:
        """What a cut leaves where every name is kept, and no content that was not flushed."""

        def content(inode):
            held = self.bytes[inode]
            return held if self.flushed_bytes.get(inode) == held else b""

        return self._tree(lambda inode: self.names[inode], content)

    def pending(self) -> list[tuple]:
        """Changes of names that were not flushed: (folder, {name: inode now, or None}).

        A name each; two where an inode got another name in its folder, which happens at once.
        """
        found = []
        for folder, now in self.names.items():
            was = self.flushed_names.get(folder, {})
            changed = {name: now.get(name) for name in was | now if was.get(name) != now.get(name)}
            renamed = {was[name]: name for name in changed if name in was and name not in now}
            groups = {}
            for name, child in changed.items():
                groups.setdefault(renamed.get(child, name), {})[name] = child
            found += [(folder, group) for group in groups.values()]
        return found

    def with_some(self, kept: list[tuple]) -> dict:
        """What a cut leaves where these changes of `pending` came before it, and no contents."""
        return self._some(kept, lambda inode: self.flushed_bytes.get(inode, b""))

    def mixed(self, draw: random.Random) -> dict:
        """What else a cut may leave: some of the changes, contents of any time, or torn."""

        def content(inode):
            held, was = self.bytes[inode], self.flushed_bytes.get(inode, b"")
            torn = [held[: len(held) // 2], bytes(len(held)), b""]
            return held if was == held else draw.choice([held, was, *torn])

        return self._some([change for change in self.pending() if draw.random() < 0.5], content)

    def _some(self, kept: list[tuple], content) -> dict:
        names = {folder: dict(flushed) for folder, flushed in self.flushed_names.items()}
        for folder, group in kept:
            for name, child in group.items():
                names.setdefault(folder, {})[name] = child
        names = {
            folder: {name: child for name, child in held.items() if child is not None}
            for folder, held in names.items()
        }
        return self._tree(lambda inode: names.get(inode, {}), content)

    def _tree(self, names, content) -> dict:
        found = {}

        def walk(inode, path):
            for name, child in names(inode).items():
                below = f"{path}{name}"
                if self.kinds[child] == "folder":
                    found[below] = None
                    walk(child, f"{below}/")
                else:
                    linked = self.kinds[child] == "link"
                    found[below] = self.bytes[child] if linked else content(child)

        walk(0, "")
        return found


def lay(state: dict, folder: Path) -> None:
    """Make a state real."""
    folder.mkdir(parents=True)
    for name, content in state.items():
        if content is None:
            (folder / name).mkdir()
        elif isinstance(content, str):
            (folder / name).symlink_to(content)
        else:
            (folder / name).write_bytes(content)
