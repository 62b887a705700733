"""Paths say what they name: made from a cell, read back as the same cell."""

import re

import pytest

from streamgauge.base import paths


def test_the_folder_of_a_trained_sae_says_how_it_was_trained():
    place = {"subject": "s", "corpus": "c", "ell": "03"}
    layer = {"subject": "s", "corpus": "c", "layer": 3}
    assert paths.cell(place) == layer
    name = "topk-x8-k32-t50000-e2e-seed1"
    found = paths.cell({**place, "sae": name})
    how = {"expansion": 8, "k": 32, "tokens": 50000, "objective": "e2e", "seed": 1}
    assert found == {**layer, "sae": name, **how}
    assert paths.cell({**place, "sae": "theirs"}) == {**layer, "sae": "theirs"}


HOW = {"expansion": 8, "k": 32, "tokens": 50000, "objective": "mse", "seed": 1}


@pytest.mark.parametrize("recipe", ["", "slow"])
def test_a_folder_is_read_back_as_it_was_made(recipe):
    folder = paths.sae_folder(recipe, **HOW)
    found = paths.cell({"sae": folder})
    assert found == {"sae": folder, **HOW} | ({"recipe": recipe} if recipe else {})
    assert re.fullmatch(paths.trained_for("mse", recipe), folder)
    assert not re.fullmatch(paths.trained_for("e2e", recipe), folder)
    assert not re.fullmatch(paths.trained_for("mse", "other"), folder)
    assert re.fullmatch(paths.WILDCARDS["sae"], folder)


def test_a_manifest_says_which_cell_it_is_of():
    record = {"spec": {"wildcards": {"subject": "s", "ell": "03", "penalty": "0.5"}}}
    assert paths.cell_of(record) == {"subject": "s", "layer": 3, "penalty": 0.5}
