"""The fuzz targets under Hypothesis: whole files, cut, changed and spliced. KD_MLFLOW_FUZZ sets how many of each."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from tests.fuzz import folders, images, tars

EXAMPLES = int(os.environ.get("KD_MLFLOW_FUZZ", "60"))
BOUNDED = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))


@some.composite
def damaged(draw: some.DrawFn, corpus: list[bytes]) -> bytes:
    """A file of the corpus with a few of its bytes replaced, put in or left out."""
    data = bytearray(draw(some.sampled_from(corpus)))
    for _ in range(draw(some.integers(0, 6))):
        first = draw(some.integers(0, len(data)))
        last = min(len(data), first + draw(some.integers(0, 8)))
        data[first:last] = draw(some.binary(max_size=8))
    return bytes(data[: draw(some.integers(0, len(data)))] if draw(some.booleans()) else data)


@pytest.mark.parametrize("target", [images, folders, tars], ids=lambda target: target.__name__.rpartition(".")[2])
def test_the_corpus_itself_is_read(target):
    assert all(target.one_input(data) for data in target.seeds())


@pytest.mark.fault("an image file of any bytes", "pixels or a reason, the same in training and in a served model")
@given(data=damaged(images.seeds()) | some.binary(max_size=300))
@BOUNDED
def test_images_of_any_bytes(data):
    images.one_input(data)


@pytest.mark.fault("a model folder of any bytes", "a network or one sentence; nothing is executed")
@given(data=damaged(folders.seeds()) | some.binary(max_size=300))
@BOUNDED
def test_model_folders_of_any_bytes(data):
    folders.one_input(data)


@pytest.mark.fault("a .tar of any bytes", "its images or one sentence, and no waiting")
@given(data=damaged(tars.seeds()) | some.binary(max_size=600))
@BOUNDED
def test_tars_of_any_bytes(data):
    tars.one_input(data)
