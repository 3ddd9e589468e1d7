"""The words of a search's end."""

from __future__ import annotations

from kd_mlflow.reports.paired import UNPAIRED
from kd_mlflow.reports.search import BEST, DEFAULTS, verdict
from kd_mlflow.reports.statistics import Difference

MEANS = {DEFAULTS: 0.8, BEST: 0.9}


def said(winner=BEST, means=MEANS, difference=None, minus_control=None, broken=None, unpaired=False):
    return verdict("val/accuracy", means, winner, difference, minus_control, broken or {}, unpaired)


def test_the_search_beats_the_defaults_or_does_not():
    assert said() == "On fresh seeds the best of the search has val/accuracy 0.9000, the report's defaults 0.8000."
    assert "does not beat them" in said(DEFAULTS)
    assert said(DEFAULTS, {DEFAULTS: 0.8}).startswith("The search found nothing better than the report's defaults")


def test_differences_are_given_with_their_interval_and_no_stronger_than_that():
    assert said(difference=Difference(0.1, 0.05, 0.15, 3)).endswith(
        "The best of the search is better than the source report's defaults on test by more than chance: accuracy "
        "differs by +0.1000 (95 % interval +0.0500 to +0.1500, paired over 3 seeds and all images)."
    )
    assert said(difference=Difference(0.05, -0.05, 0.15, 1, 0.4, 12, 7)).endswith(
        "The best of the search is not told apart from the source report's defaults on test: accuracy differs by "
        "+0.0500 (95 % interval −0.0500 to +0.1500; exact McNemar test of the images that one of the two alone "
        "names rightly, 12 to 7: p = 0.4; it rests on one seed)."
    )


def test_labels_alone_that_do_better_are_said_whoever_wins():
    worse = Difference(-0.02, -0.03, -0.01, 5)
    expected = (
        "The winner is worse than the labels-only control on test by more than chance: accuracy differs by −0.0200 "
        "(95 % interval −0.0300 to −0.0100, paired over 5 seeds and all images)."
    )
    assert said(minus_control=worse).endswith(expected)
    assert said(DEFAULTS, {DEFAULTS: 0.8}, minus_control=worse).endswith(expected)


def test_runs_that_cannot_be_paired_are_said_to_be_so_once():
    assert said(unpaired=True).endswith(UNPAIRED)
    assert said(unpaired=True).count("not paired") == 1


def test_a_constraint_that_is_broken_is_named():
    broken = {DEFAULTS: ["efficiency/parameters_total<1000"]}
    assert "the best is what is registered" in said(broken=broken)
    assert said(broken=broken).endswith(
        " Not kept on fresh seeds by the source report's defaults: efficiency/parameters_total<1000."
    )
