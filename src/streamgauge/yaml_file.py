"""YAML files as users write them: one mapping, nothing that hides a mistake."""

from pathlib import Path

import yaml

from streamgauge.errors import StreamgaugeError
from streamgauge.wording import kind_of


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses what hides mistakes: a key given twice, an explicit tag."""

    def compose_node(self, parent, index):
        event = self.peek_event()
        if getattr(event, "tag", None) is not None:
            raise yaml.MarkedYAMLError(
                problem=f"the tag {event.tag} is not allowed", problem_mark=event.start_mark
            )
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {key.value} is given twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return node


def read(path: str | Path) -> dict:
    """The mapping in a YAML file; an empty file is an empty mapping.

    Raises:
        StreamgaugeError: the file cannot be read, is not YAML, is not a mapping, gives a key twice,
            or carries a YAML tag.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise StreamgaugeError(f"cannot be read ({reason})", where=str(path)) from error
    try:
        data = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise StreamgaugeError(f"not usable: {problem}", where=f"{path}{line}") from error
    except (ValueError, RecursionError) as error:  # e.g. the date 2020-99-99; very deep nesting
        raise StreamgaugeError(f"not usable: {error}", where=str(path)) from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise StreamgaugeError(
            f"holds {kind_of(data)} at the top",
            where=str(path),
            remedy="Write a mapping of keys to values.",
        )
    return data
