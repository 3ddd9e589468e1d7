"""Searching hyper-parameters; the only package that imports optuna."""
