"""YAML files as users write them: one mapping, nothing that hides a mistake."""

from pathlib import Path

import yaml

from streamgauge.base.errors import StreamgaugeError
from streamgauge.base.wording import kind_of, named, shown

LARGEST = 1 << 20  # bytes
_MOST = 100_000  # values in a file, each alias counted for all that it stands for


_TEMPLATE = "__use_yte__"


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses what hides mistakes: a key given twice, an explicit tag.

    It also refuses a few aliases of aliases that stand for billions of values.
    """

    def compose_document(self):
        self._sizes = {}
        return super().compose_document()

    def compose_node(self, parent, index):
        event = self.peek_event()
        if getattr(event, "tag", None) is not None:
            raise yaml.MarkedYAMLError(
                problem=f"the tag {named(event.tag)} is not allowed", problem_mark=event.start_mark
            )
        node = super().compose_node(parent, index)
        self._sizes[node] = self._size(node)
        if self._sizes[node] > _MOST:
            raise yaml.MarkedYAMLError(
                problem=f"more than {_MOST} values, aliases counted", problem_mark=event.start_mark
            )
        return node

    def _size(self, node) -> int:
        parts = node.value if isinstance(node, yaml.CollectionNode) else ()
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in parts for part in pair]
        # a node inside itself has no size yet; `config` finds it
        return 1 + sum(self._sizes.get(part, 1) for part in parts)

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {named(key.value)} is given twice",
                        problem_mark=key.start_mark,
                    )
                seen.add(key.value)
        return node

    def construct_object(self, node, deep=False):
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError):  # looks like a date or a number: 2020-99-99, 0x_
            raise yaml.MarkedYAMLError(
                problem=f"{shown(node.value)} is no value; put it in quotes if it is text",
                problem_mark=node.start_mark,
            ) from None


def read(path: str | Path) -> dict:
    """The mapping in a YAML file; an empty file is an empty mapping.

    Raises:
        StreamgaugeError: the file cannot be read, is larger than `LARGEST`, is not YAML, is not a
            mapping, gives a key twice, carries a YAML tag, or is a template with Python in it.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():  # a pipe or a device would be read without end
            raise ValueError("no regular file")
        if path.stat().st_size > LARGEST:
            raise ValueError(f"{path.stat().st_size:,} bytes, which no configuration has")
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        no_text = isinstance(error, UnicodeDecodeError)
        reason = "not UTF-8 text" if no_text else getattr(error, "strerror", None) or error
        raise StreamgaugeError(f"cannot be read ({reason})", where=str(path)) from error
    try:
        data = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        problem = problem if len(problem) <= 200 else f"{problem[:197]}..."
        raise StreamgaugeError(f"not usable: {problem}", where=f"{path}{line}") from error
    except RecursionError:
        raise StreamgaugeError("not usable: nested too deeply", where=str(path)) from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise StreamgaugeError(
            f"holds {kind_of(data)} at the top",
            where=str(path),
            remedy="Write a mapping of keys to values.",
        )
    if _TEMPLATE in data:
        raise StreamgaugeError(
            f"not usable: {_TEMPLATE} makes it a program, which Snakemake runs as it reads it",
            where=str(path),
            remedy="Write out what the program is to compute.",
        )
    return data
