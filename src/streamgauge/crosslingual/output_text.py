"""What a generated text says: its number, its language, and whether it is a text at all."""

import math
import re
import unicodedata
from collections import Counter
from typing import NamedTuple

from streamgauge.base.errors import StreamgaugeError

#: share of a text's letters from which on it is in one language
SHARE = 0.8
#: a loop has at least so many copies of a unit, and so many words or signs in all
COPIES, LOOPED = 3, 6

_SCRIPTS = {
    "LATIN": "cs da de en es fi fr hu id it nl no pl pt ro sv sw tr vi",
    "CYRILLIC": "bg ru sr uk",
    "ARABIC": "ar fa ur",
    "CJK": "zh ja",
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "HANGUL": "ko",
    "GREEK": "el",
    "HEBREW": "he",
    "DEVANAGARI": "hi",
    "BENGALI": "bn",
    "TAMIL": "ta",
    "THAI": "th",
}
_FULL_WIDTH = str.maketrans("０１２３４５６７８９．／＝−－﹣", "0123456789./=---")
_FRACTION = re.compile(r"\\[dt]?frac\{(-?\d+)\}\{(\d+)\}")
_NUMBER = re.compile(
    r"(?:(?<![A-Za-z_\d.)])-)?"  # a sign, not a subtraction
    r"(?<![A-Za-z_\d.])(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
    r"(?:[eE][+-]?\d+)?(?:/\d+)?"
)
_CUE = re.compile("=|answer|答案", re.IGNORECASE)
# a run of letters and digits, one sign of a script without spaces, or any other sign
_UNIT = re.compile(r"[^\W\u2e80-\u9fff\uac00-\ud7af]+|\S")


class Numbers(NamedTuple):
    """Numbers in a text; NaN where there is none.

    Attributes:
        first: the first one.
        cued: the one behind the last "=", "answer" or "答案" that a number follows.
        extracted: the answer: `cued` where there is one, else `first`.
    """

    first: float
    cued: float
    extracted: float


def extract_answer(text: str) -> Numbers:
    """The numbers that a text may give as its answer (docs/definitions.md, "Patching").

    Digits may be full-width, thousands grouped by commas, and a fraction is one number: "1,234",
    "3/4", "−5", "１２。". Number words are none, and "50 %" is 50.
    """
    text = _FRACTION.sub(r"\1/\2", text.translate(_FULL_WIDTH))
    found = [(match.start(), _value(match.group())) for match in _NUMBER.finditer(text)]
    first = found[0][1] if found else math.nan
    cues = [match.end() for match in _CUE.finditer(text) if found and match.end() <= found[-1][0]]
    cued = next(value for at, value in found if at >= cues[-1]) if cues else math.nan
    return Numbers(first, cued, cued if cues else first)


def _value(number: str) -> float:
    above, _, below = number.replace(",", "").partition("/")
    return float(above) / (float(below or 1) or 1)


def scripts(target: str, source: str) -> dict[str, set[str]]:
    """The scripts that tell two languages apart: code -> names of Unicode scripts.

    Args:
        target, source: language codes; what follows a hyphen ("zh-Hant") is ignored.

    Raises:
        StreamgaugeError: a language that is not known here, or two that share a script.
    """
    found = {}
    for code in (target, source):
        plain = code.split("-")[0]
        found[code] = {name for name, codes in _SCRIPTS.items() if plain in codes.split()}
        if not found[code]:
            raise StreamgaugeError(
                f"it is not known in which script {code!r} is written",
                where="the prompts' languages",
                remedy=f"Known are {' '.join(_SCRIPTS.values())}.",
            )
    if both := found[target] & found[source]:
        raise StreamgaugeError(
            f"{target} and {source} are both written in {min(both)} letters, so the language of "
            "an output cannot be told",
            where="the prompts' languages",
            remedy="Choose two languages of different scripts.",
        )
    return found


def classify_language(text: str, target: str = "en", source: str = "zh") -> str:
    """The language of a text by the script of its letters (docs/definitions.md, "Patching").

    Latin letters that stand alone, such as the x of "x = 5", are variables and not counted.

    Returns:
        `target` or `source` where at least `SHARE` of the letters are of its script; ``none``
        where there is no letter; else ``mixed``, also for letters of a third script.

    Raises:
        StreamgaugeError: see `scripts`.
    """
    known = scripts(target, source)
    text = re.sub(r"(?<![A-Za-z])[A-Za-z](?![A-Za-z])", "", text)
    counts = Counter(_script(sign) for sign in text if sign.isalpha())
    n = sum(counts.values())
    if not n:
        return "none"
    shares = {code: sum(counts[s] for s in names) / n for code, names in known.items()}
    return next((code for code, share in shares.items() if share >= SHARE), "mixed")


def _script(sign: str) -> str:
    return unicodedata.name(sign, "").split(" ")[0]


def degenerate(text: str) -> bool:
    """Whether a text says nothing: blank, or ending in a loop (docs/definitions.md, "Patching").

    Blank: neither a letter nor a digit. A loop: cut into words, and single signs elsewhere, the
    text ends in at least `COPIES` copies of some stretch, at least `LOOPED` units long together
    and at least half of the text. The last copy may be cut off.
    """
    if not any(sign.isalnum() for sign in text):
        return True
    units = _UNIT.findall(text)
    n = len(units)
    for period in range(1, n // COPIES + 1):
        end = n
        while end > period and units[end - 1] == units[end - 1 - period]:
            end -= 1
        repeated = n - end + period
        if repeated >= max(COPIES * period, LOOPED) and 2 * repeated >= n:
            return True
    return False
