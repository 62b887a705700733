"""Tokenizers whose rules are traps: real ones, in real processes, end in one line."""

import subprocess
import sys

import pytest
from tokenizers import Regex, normalizers, pre_tokenizers

import script_jobs
import tiny_models
from streamgauge.base.errors import StreamgaugeError
from streamgauge.models import encoding

TRAP = "a" * 30 + "!"


def multiplying(tokenizer, times):
    """Every ``a`` becomes 10^times."""
    steps = [normalizers.Replace("a", "a" * 10)] * times
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(steps)
    return tokenizer


def panicking(tokenizer):
    trap = normalizers.Replace(Regex("(?:a*)*b|^(a+)+$"), "x")
    tokenizer.backend_tokenizer.normalizer = trap
    return tokenizer


def test_texts_become_what_the_tokenizer_says():
    tokenizer = tiny_models.tiny_tokenizer()
    texts = [*tiny_models.TEXT, "", "é\u2028"]
    plain = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert encoding.encode(tokenizer, texts) == plain and encoding.encode(tokenizer, []) == []


def test_a_rule_that_panics_is_one_error(capfd):
    with pytest.raises(StreamgaugeError, match=r"tokenizer\.json: this tokenizer gave up on a tex"):
        encoding.encode(panicking(tiny_models.tiny_tokenizer()), [TRAP])
    assert capfd.readouterr().err == ""


def test_a_panic_in_a_second_pre_tokenizer():
    tokenizer = tiny_models.tiny_tokenizer()
    trap = pre_tokenizers.Split(Regex(r"(a+)+$"), "isolated")
    tokenizer.backend_tokenizer.pre_tokenizer = trap
    with pytest.raises(StreamgaugeError, match="retry-limit"):
        encoding.encode(tokenizer, ["fine", TRAP])


def test_a_text_that_is_multiplied_is_refused():
    with pytest.raises(StreamgaugeError, match=r"makes 300,001 tokens of 31 characters"):
        encoding.encode(multiplying(tiny_models.tiny_tokenizer(), 4), [TRAP])


CODE = """
import sys
sys.path[:0] = {path!r}
import test_encoding as t, tiny_models
from streamgauge.base import job_log
from streamgauge.models import encoding
with job_log.job("job.log"):
    encoding.encode(t.multiplying(tiny_models.tiny_tokenizer(), 6), [t.TRAP * 9], {ceiling})
"""


@pytest.mark.parametrize(
    ("ceiling", "says"),
    [("seconds=1", "more than 1 s for"), ("memory=3e8", "more than 300.0 MB of memory")],
)
def test_a_ceiling_ends_the_process_in_one_line(tmp_path, ceiling, says):
    code = CODE.format(path=sys.path, ceiling=ceiling)
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: tokenizer.json: this tokenizer needs ")
    assert says in done.stderr and (tmp_path / "job.log").read_text() == done.stderr


def test_a_job_with_a_trap_for_a_tokenizer_names_its_file(tmp_path):
    panicking(tiny_models.tiny_tokenizer()).save_pretrained(tmp_path / "model")
    words = script_jobs.tokens(tmp_path, tmp_path / "model", TRAP)
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    faults = [line for line in done.stderr.splitlines() if not line.startswith("[")]
    assert done.returncode == 1 and len(faults) == 1, done.stderr[-2000:]
    assert faults[0].startswith(f"error: {tmp_path / 'model/tokenizer.json'}: this tokenizer gave")
    assert not (tmp_path / "t.json").exists()
