"""A network that lacks a tap is refused with the methods that do without."""

from __future__ import annotations

import pytest

from kd_mlflow.distillers.refusals import methods_without, naming_methods
from kd_mlflow.models.taps import Tapped, TapRefused
from tests.distillers.networks import network


def test_methods_without_a_tap_neither_need_it_nor_build_on_it():
    assert {"kd", "dkd", "dist", "at", "ofd"} <= set(methods_without({"pooled"}))
    assert not {"fnkd", "rkd", "crd", "pkt", "reviewkd", "byot", "tskd", "kdfm"} & set(methods_without({"pooled"}))
    assert {"kd", "rkd", "fnkd"} <= set(methods_without({"stages", "preactivations"}))
    assert not {"at", "ofd", "reviewkd", "byot", "iakd"} & set(methods_without({"stages", "preactivations"}))


def test_the_sentence_names_network_tap_and_the_methods_left():
    with pytest.raises(TapRefused) as refused, naming_methods():
        Tapped(network("squeezenet1_1"), frozenset({"preactivations"}))
    sentence = str(refused.value)
    assert sentence.startswith("'squeezenet1_1' has no pre-activations")
    assert "at, byot, crd" in sentence
    assert "ofd" not in sentence
    assert "reviewkd" not in sentence
