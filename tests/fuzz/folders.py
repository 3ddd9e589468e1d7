"""Whatever bytes stand in a model folder's files: a network, or one InputError; nothing in it is executed.

The first byte says which file the rest is: the description, or the weights, for which the description has the right
digest. For a fuzzer: ``atheris.Setup(sys.argv, one_input); atheris.Fuzz()``.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from kd_mlflow.errors import InputError
from kd_mlflow.models.artifact import load_model, save_model
from kd_mlflow.models.classifier import Classifier, ModelSpec
from kd_mlflow.models.weights import read_weights
from kd_mlflow.models.zoo import build
from tests.fuzz.sentences import one_sentence

DESCRIPTION, WEIGHTS = b"d", b"w"


def one_input(data: bytes) -> bool:
    """Load the folder; the weights also as a file of their own. Whether it is a network."""
    kind, content = data[:1], data[1:]
    description, weights = _whole()
    if kind == WEIGHTS:
        weights, digest = content, hashlib.sha256(content).hexdigest()
        description = json.dumps({**json.loads(description), "digests": {"model.safetensors": digest}}).encode()
    else:
        description = content
    with TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "model.json").write_bytes(description)
        (place / "model.safetensors").write_bytes(weights)
        try:
            read = isinstance(load_model(place), Classifier)
        except InputError as error:
            one_sentence(error)
            read = False
        if kind == WEIGHTS:
            try:
                assert read_weights(place / "model.safetensors")
            except InputError as error:
                one_sentence(error)
    return read


def seeds() -> list[bytes]:
    """The two files of a whole folder."""
    description, weights = _whole()
    return [DESCRIPTION + description, WEIGHTS + weights]


@cache
def _whole() -> tuple[bytes, bytes]:
    spec = ModelSpec(
        architecture="tests.entrypoints.tiny:make",
        classes=("a", "b", "c"),
        image_size=16,
        mean=(0.5,) * 3,
        std=(0.2,) * 3,
    )
    with TemporaryDirectory() as folder:
        place = Path(folder) / "model"
        save_model(place, build(spec, seed=0), run_id="r1", program=False)
        return (place / "model.json").read_bytes(), (place / "model.safetensors").read_bytes()
