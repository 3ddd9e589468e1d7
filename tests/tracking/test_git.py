from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from kd_mlflow.tracking.git import DIFF_LIMIT, code_state


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", *identity, "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A work tree with one committed module in a package."""
    package = tmp_path / "tree" / "package"
    package.mkdir(parents=True)
    git(package.parent, "init", "-q")
    (package / "a.py").write_text("x = 1\n")
    (package.parent / ".gitignore").write_text("ignored/\n")
    git(package.parent, "add", ".")
    git(package.parent, "commit", "-q", "-m", "first")
    return package.parent


def test_clean_tree_is_its_commit(tree: Path) -> None:
    state = code_state(tree / "package")
    assert (state.commit, state.dirty, state.diff) == (git(tree, "rev-parse", "HEAD"), False, "")


def test_changed_tree_is_dirty_with_its_difference(tree: Path) -> None:
    (tree / "package" / "a.py").write_text("x = 2\n")
    (tree / "package" / "new.py").write_text("y = 1\n")
    state = code_state(tree / "package")
    assert state.dirty
    assert "-x = 1\n+x = 2\n" in state.diff
    assert "# new, not in git: package/new.py\n" in state.diff


def test_staged_changes_belong_to_the_difference(tree: Path) -> None:
    (tree / "package" / "a.py").write_text("x = 3\n")
    git(tree, "add", ".")
    assert "+x = 3\n" in code_state(tree / "package").diff


def test_large_difference_is_cut(tree: Path) -> None:
    (tree / "package" / "a.py").write_text("x = 2\n" * (DIFF_LIMIT // 6))
    state = code_state(tree / "package")
    assert len(state.diff) < DIFF_LIMIT + 200
    assert "# cut here" in state.diff


def test_code_outside_git_or_in_an_ignored_folder_has_no_state(tree: Path, tmp_path: Path) -> None:
    (tree / "ignored" / "site-packages").mkdir(parents=True)
    (tmp_path / "plain").mkdir()
    assert code_state(tree / "ignored" / "site-packages") is None
    assert code_state(tmp_path / "plain") is None


def test_repository_without_a_commit_is_dirty(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("x = 1\n")
    state = code_state(tmp_path)
    assert (state.commit, state.dirty) == ("", True)


def test_repository_named_by_a_hooks_environment_is_passed_over(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    assert code_state(tree / "package").commit != ""
