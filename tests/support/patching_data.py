"""Outputs of a patching run whose answers and languages are planted."""

import numpy as np
import pandas as pd

from streamgauge.crosslingual import output_text, patching
from streamgauge.crosslingual.output_text import classify_language, extract_answer


def planted():
    """Outputs of 20 problems: Z changes answers, its complement the language, nothing else does."""
    rows = []
    for c in patching.conditions("mean", 19, 19):
        for i in range(20):
            number = i + 1 if c.condition in ("z", "full") else i
            word = "答案是" if c.condition in ("z_perp", "full") else "The answer is"
            text = f"{word} {number}"
            rows.append((c.condition, c.draw, f"p{i}", "counting", float(i), text, 4))
    columns = ["condition", "draw", "problem", "category", "answer", "text", "n_tokens"]
    table = pd.DataFrame(rows, columns=columns)
    numbers = np.array([extract_answer(text) for text in table.text])
    table[["number_first", "number_cued", "extracted"]] = numbers
    table["language"] = [classify_language(text) for text in table.text]
    table["degenerate"] = [output_text.degenerate(text) for text in table.text]
    return table.assign(correct=table.extracted == table.answer)
