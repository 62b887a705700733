"""Pairs of problems in two languages: read from a YAML file, checked, and cut into tokens.

A file holds languages (how a problem is put to a model in each), worked examples and pairs: one
problem in every language, with its answer as a number. A prompt is a header (BOS where the
tokenizer has one, then the worked examples) and the problem's own text; only the tokens of the
latter are the *problem span*, what later stages pool, compare and patch.
"""

import sys
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from streamgauge.base import yaml_file
from streamgauge.base.errors import StreamgaugeError
from streamgauge.base.wording import nearest
from streamgauge.models.encoding import encode

ROLES = ("target", "source")
_FILE_KEYS = {"languages", "separator", "stop", "examples", "pairs"}
_LANGUAGE_KEYS = {"name", "prompt", "answer"}
_PAIR_KEYS = {"id", "category", "answer", "check"}
_EXAMPLE_KEYS = {"answer", "check", "work"}


@dataclass(frozen=True)
class Language:
    """How a problem is put to a model in one language.

    Attributes:
        name: its English name.
        prompt: template with ``{problem}``.
        answer: template with ``{answer}``, the sentence that ends a worked example, and perhaps
            ``{work}``; None where the file has none (then prompts can have no worked examples).
    """

    name: str
    prompt: str
    answer: str | None


@dataclass(frozen=True)
class Problem:
    """One problem, or worked example, in every language of its file.

    Attributes:
        id: its name; None for a worked example.
        category: what kind of problem; None for a worked example.
        answer: the number that solves it.
        check: an expression that a test may compute the answer from; never evaluated here.
        work: of a worked example, what stands for ``{work}`` in its answer; else None.
        text: language code -> the problem.
    """

    id: str | None
    category: str | None
    answer: float
    check: str | None
    work: str | None
    text: Mapping[str, str]


@dataclass(frozen=True)
class PromptSet:
    """What a file of pairs holds.

    Attributes:
        path: where it was read from.
        languages: code -> `Language`.
        separator: text between worked examples, and behind the last.
        stop: strings that end a generated answer.
        examples: worked examples, in file order.
        problems: the pairs, in file order.
    """

    path: Path
    languages: Mapping[str, Language]
    separator: str
    stop: tuple[str, ...]
    examples: tuple[Problem, ...]
    problems: tuple[Problem, ...]

    def header(self, language: str, shots: int) -> str:
        """The first `shots` worked examples in a language, each with its answer; "" for none."""
        template = self.languages[language].answer or ""
        return "".join(
            self.problem(language, example)
            + template.replace("{work}", example.work or "").replace(
                "{answer}", f"{example.answer:.15g}"
            )
            + self.separator
            for example in self.examples[:shots]
        )

    def problem(self, language: str, problem: Problem) -> str:
        """The text of one problem as it is put to a model, without header."""
        return self.languages[language].prompt.replace("{problem}", problem.text[language])


# --- reading ------------------------------------------------------------------------------------
def read(path: str | Path) -> PromptSet:
    """Read and check a YAML file of pairs; its format is in docs/prompts.md.

    Raises:
        StreamgaugeError: naming file, pair and field: the file cannot be read, is not YAML or
            carries YAML tags; an unknown or missing key; a pair without a text in one of the
            languages; an answer that is not a finite number; an id given twice; no pairs.
    """
    path = Path(path)
    data = yaml_file.read(path)
    _check_keys(data, _FILE_KEYS, path)
    languages = _languages(_mapping(data, "languages", path), path)
    stop = data.get("stop", ["\n"])
    if not isinstance(stop, list) or not all(isinstance(text, str) and text for text in stop):
        raise _fault(path, "stop is no list of texts", 'For example stop: ["\\n"].')
    separator = data.get("separator", "\n\n")
    if not isinstance(separator, str):
        raise _fault(path, "separator is not text", 'For example separator: "\\n\\n".')
    problems = _problems(data, "pairs", _PAIR_KEYS, languages, path)
    if not problems:
        raise _fault(path, "there are no pairs", "List problems under pairs.")
    for name, n in Counter(problem.id for problem in problems).items():
        if n > 1:
            raise _fault(path, f"the id {name!r} is given to {n} pairs", "Give each its own id.")
    examples = _problems(data, "examples", _EXAMPLE_KEYS, languages, path)
    shown = [code for code, entry in languages.items() if "{work}" in (entry.answer or "")]
    for i, example in enumerate(examples):
        if shown and example.work is None:
            problem = f"examples[{i}] has no work, which languages.{shown[0]}.answer shows"
            raise _fault(path, problem, "Add it, or take {work} out of the template.")
    return PromptSet(path, languages, separator, tuple(stop), tuple(examples), tuple(problems))


def _languages(block: Mapping[str, Any], path: Path) -> dict[str, Language]:
    found = {}
    for code, entry in block.items():
        where = f"languages.{code}"
        if not isinstance(code, str):
            raise _fault(path, f"the language {code!r} is not text", f'Write "{code}" in quotes.')
        if code in _PAIR_KEYS:
            raise _fault(path, f"a language cannot be called {code}", "Choose another code.")
        if not isinstance(entry, dict):
            raise _fault(path, f"{where} is no mapping", "It has name, prompt and answer.")
        _check_keys(entry, _LANGUAGE_KEYS, path, where)
        prompt, answer = entry.get("prompt"), entry.get("answer")
        _check_template(prompt, "{problem}", f"{where}.prompt", path)
        if answer is not None:
            _check_template(answer, "{answer}", f"{where}.answer", path)
        found[code] = Language(_text(entry, "name", where, path), prompt, answer)
    if len(found) < 2:
        raise _fault(path, f"{len(found)} languages are described", "Pairs need at least two.")
    return found


def _problems(data, key: str, keys: set[str], languages, path: Path) -> list[Problem]:
    entries = data.get(key, [])
    if not isinstance(entries, list):
        raise _fault(path, f"{key} is no list", "List one mapping a problem.")
    found = []
    for i, entry in enumerate(entries):
        where = f"{key}[{i}]"
        if not isinstance(entry, dict):
            raise _fault(path, f"{where} is no mapping", "It has a text in every language.")
        if "id" in keys:
            where += f" ({_text(entry, 'id', where, path)})"
        _check_keys(entry, keys | set(languages), path, where)
        for code in languages:
            if code not in entry:
                raise _fault(
                    path,
                    f"{where} has no counterpart in {code}",
                    f"Add its text as {code}, or remove it.",
                )
        answer = entry.get("answer")
        if isinstance(answer, bool) or not isinstance(answer, int | float):
            raise _not_a_number(path, where, answer)
        if not abs(answer) <= sys.float_info.max:  # also where it is nan
            raise _not_a_number(path, where, answer)
        found.append(
            Problem(
                id=entry.get("id"),
                category=_text(entry, "category", where, path) if "category" in keys else None,
                answer=float(answer),
                check=_text(entry, "check", where, path) if "check" in entry else None,
                work=_text(entry, "work", where, path) if "work" in entry else None,
                text={code: _text(entry, code, where, path) for code in languages},
            )
        )
    return found


def _check_keys(entry: Mapping, known: set[str], path: Path, where: str = "the file") -> None:
    for key in entry:
        if key not in known:
            raise _fault(
                path,
                f"{where} has the unknown key {key}{nearest(str(key), sorted(known))}",
                f"Known are {', '.join(sorted(known))}.",
            )


def _mapping(data: Mapping, key: str, path: Path) -> Mapping:
    if not isinstance(data.get(key), dict):
        raise _fault(path, f"{key} is no mapping", "See the format in docs/prompts.md.")
    return data[key]


def _text(entry: Mapping, key: str, where: str, path: Path) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or not value.strip():
        problem = f"{where} has no {key}" if key not in entry else f"{where}.{key} is not text"
        raise _fault(
            path, problem, f"Write {key} as text, in quotes where YAML reads it otherwise."
        )
    return value


def _check_template(value: Any, slot: str, where: str, path: Path) -> None:
    if not isinstance(value, str) or value.count(slot) != 1:
        raise _fault(path, f"{where} is no text with one {slot}", f"Put {slot} where it belongs.")


def _not_a_number(path: Path, where: str, answer: Any) -> StreamgaugeError:
    remedy = "Write a whole number or a decimal, without quotes."
    return _fault(path, f"{where}.answer is {answer!r}, not a finite number", remedy)


def _fault(path: Path, problem: str, remedy: str) -> StreamgaugeError:
    return StreamgaugeError(problem, where=str(path), remedy=remedy)


# --- tokens -------------------------------------------------------------------------------------
def prepare(
    path: str | Path, block: Mapping[str, Any], tokenizer, n_ctx: int | None
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The prompts of one block of the configuration, for one tokenizer.

    Args:
        path: the YAML file.
        block: an entry of ``prompts``: ``target``, ``source``, ``shots``, ``limit``.
        tokenizer: a Hugging Face tokenizer.
        n_ctx: the model's longest context, or None.

    Returns:
        The table of `tokenise` and the manifest's facts: ``n_problems``, ``languages`` (target,
        source), ``shots``, ``stop``, ``bos`` (the id in front of every prompt, or None),
        ``header_tokens`` and ``problem_tokens`` (language -> number; language -> fewest, most).

    Raises:
        StreamgaugeError: as for `read` and `tokenise`.
    """
    chosen = {key: block[key] for key in ("target", "source", "shots", "limit")}
    prompt_set = read(path)
    table = tokenise(prompt_set, tokenizer, **chosen, n_ctx=n_ctx)
    languages = [chosen[role] for role in ROLES]
    rows = {code: table[table["language"] == code] for code in languages}
    spans = {code: part["ids"].map(len) - part["header"] for code, part in rows.items()}
    return table, {
        "n_problems": len(table) // 2,
        "languages": languages,
        "shots": chosen["shots"],
        "stop": list(prompt_set.stop),
        "bos": tokenizer.bos_token_id,
        "header_tokens": {code: int(part["header"].iloc[0]) for code, part in rows.items()},
        "problem_tokens": {code: [int(n.min()), int(n.max())] for code, n in spans.items()},
    }


def tokenise(
    prompt_set: PromptSet,
    tokenizer,
    target: str,
    source: str,
    shots: int = 0,
    limit: int | None = None,
    n_ctx: int | None = None,
) -> pd.DataFrame:
    """Prompts as token ids, two rows a problem.

    Header and problem are tokenised apart and joined, so that the header's ids are the same in
    front of every problem of a language and no token spans both.

    Args:
        prompt_set: from `read`.
        tokenizer: a Hugging Face tokenizer.
        target: code of the language whose runs are patched.
        source: code of the language that content is taken from.
        shots: worked examples in the header.
        limit: use the first `limit` problems only; None for all.
        n_ctx: the model's longest context, or None.

    Returns:
        ``problem`` (id), ``category``, ``language`` (code), ``role`` (target, source), ``answer``
        (float64), ``text`` (the whole prompt), ``ids`` (lists of int, BOS first where the tokenizer
        has one), ``header`` (int64: leading ids that are BOS or worked examples). Problems in file
        order, the target's row before the source's.

    Raises:
        StreamgaugeError: a language the file does not have, or the same one twice; too few worked
            examples; `limit` below 1; a tokenizer that loses characters of a language; a prompt
            that does not fit `n_ctx`.
    """
    languages = (target, source)
    _check_choice(prompt_set, languages, shots, limit)
    problems = prompt_set.problems[:limit]
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    columns = {}
    for code in languages:
        texts = [prompt_set.problem(code, problem) for problem in problems]
        header = prompt_set.header(code, shots)
        encoded = _encode(tokenizer, [header, *texts], code, prompt_set.path)
        ids = [[*bos, *encoded[0], *span] for span in encoded[1:]]
        columns[code] = header, texts, len(bos) + len(encoded[0]), ids
    rows = []
    for i, problem in enumerate(problems):
        for role, code in zip(ROLES, languages, strict=True):
            header, texts, n_header, ids = columns[code]
            if n_ctx is not None and len(ids[i]) > n_ctx:
                raise StreamgaugeError(
                    f"{problem.id} in {code} is a prompt of {len(ids[i])} tokens, and the model's "
                    f"context is {n_ctx}",
                    where=str(prompt_set.path),
                    remedy="Use fewer shots, or a shorter problem.",
                )
            rows.append(
                {
                    "problem": problem.id,
                    "category": problem.category,
                    "language": code,
                    "role": role,
                    "answer": problem.answer,
                    "text": header + texts[i],
                    "ids": ids[i],
                    "header": n_header,
                }
            )
    return pd.DataFrame(rows)


def _check_choice(prompt_set: PromptSet, languages: Sequence[str], shots, limit) -> None:
    path, known = prompt_set.path, prompt_set.languages
    for role, code in zip(ROLES, languages, strict=True):
        if code not in known:
            raise _fault(
                path,
                f"the {role} language {code!r} is not among its languages",
                f"Choose from {', '.join(known)}.",
            )
    if languages[0] == languages[1]:
        raise _fault(path, f"target and source are both {languages[0]!r}", "Choose two languages.")
    if not 0 <= shots <= len(prompt_set.examples):
        raise _fault(
            path,
            f"shots is {shots} and there are {len(prompt_set.examples)} examples",
            "Lower shots, or add worked examples.",
        )
    for code in languages:
        if shots and known[code].answer is None:
            raise _fault(
                path,
                f"languages.{code} has no answer, which worked examples end with",
                "Add a template with {answer}, or set shots: 0.",
            )
    if limit is not None and limit < 1:
        raise _fault(path, f"limit is {limit}", "Use at least 1 problem, or null for all.")


def _encode(tokenizer, texts: Sequence[str], language: str, path: Path) -> list[list[int]]:
    """Ids of every text; StreamgaugeError where characters do not survive the way there and back.

    Compared without white space, which many tokenizers normalise, and in compatibility form, which
    some of them use (a full-width colon may come back as a plain one).
    """
    encoded = encode(tokenizer, texts)
    lost = Counter()
    for text, ids in zip(texts, encoded, strict=True):
        back = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        lost |= _characters(text) - _characters(back)
    if lost:
        shown = "".join(sorted(lost)[:20])
        more = f" and {len(lost) - 20} more" if len(lost) > 20 else ""
        raise StreamgaugeError(
            f"the tokenizer cannot encode {language}: it loses {shown}{more}",
            where=str(path),
            remedy="Choose a subject trained on this language, or another pair of languages.",
        )
    return encoded


def _characters(text: str) -> Counter:
    plain = unicodedata.normalize("NFKC", text).casefold()
    return Counter(character for character in plain if not character.isspace())
