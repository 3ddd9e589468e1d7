"""The figures of a study: pictures, and one self-contained page on which they are interactive."""

from kd_mlflow.search.figures.study import study_figures
from kd_mlflow.search.figures.view import StudyFigures

__all__ = ["StudyFigures", "study_figures"]
