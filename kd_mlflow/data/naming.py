"""What names of folders mean: which split one is called after, and which names are spelled alike."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable
from typing import Literal, NamedTuple

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

# The names that are a split's by themselves; the longer words of the second table also with what goes with them.
_EXACT: dict[str, Split] = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
    "testing": "test",
}  # fmt: skip
_WORDS: dict[str, Split] = {
    **_EXACT, "trainval": "train", "trainvalid": "train", "validating": "val", "dev": "val", "development": "val",
    "eval": "val", "evaluation": "val", "holdout": "test", "heldout": "test",
}  # fmt: skip
_FILLER = (
    r"(?:data|datasets?|sets?|images?|imgs?|pictures?|pics?|photos?|samples?|examples?|files?|folders?|splits?|\d+)"
)
_SPLIT_NAME = re.compile(rf"{_FILLER}*({'|'.join(sorted(_WORDS, key=len, reverse=True))}){_FILLER}*")
_FILLER_NAME = re.compile(rf"{_FILLER}+")
# Words of a split that has no labels: it is left out, but its name tells how the others are put together.
_UNLABELED = frozenset({"pred", "predict", "prediction", "predictions", "unlabeled", "unlabelled", "inference"})
_WORD_ENDS = re.compile(r"[\W_]+|(?<=[a-z])(?=[A-Z])")


class SplitName(NamedTuple):
    """The split a folder is called after; ``exact`` where its name says nothing else."""

    split: Split
    exact: bool


def split_named(name: str) -> SplitName | None:
    """The split that a name alone stands for: ``Train``, ``training_set``, ``test-images``, ``val2017``; or None."""
    squashed = re.sub(r"[\W_]+", "", _folded(name))
    if squashed in _EXACT:
        return SplitName(_EXACT[squashed], squashed == _folded(name))
    match = _SPLIT_NAME.fullmatch(squashed)
    return SplitName(_WORDS[match[1]], False) if match else None


def split_names(names: Collection[str]) -> dict[str, SplitName]:
    """Which of the folders that lie beside each other are called after splits.

    A name with a word of its own, such as ``seg_train``, counts where another differs from it in the split alone:
    ``seg_test``, or ``seg_pred``. ``bus_station`` beside ``train_station`` makes that no split.
    """
    named = {name: found for name in names if (found := split_named(name)) is not None}
    shared: dict[tuple[str, ...], dict[str, Split | None]] = {}
    for name in set(names) - named.keys():
        words = [word for word in _WORD_ENDS.split(unicodedata.normalize("NFKC", name)) if word]
        for at, word in enumerate(words):
            meant, frame = split_named(word), tuple(_folded(part) for part in (*words[:at], "", *words[at + 1 :]))
            if meant is not None or word.casefold() in _UNLABELED:
                shared.setdefault(frame, {})[name] = meant.split if meant else None
    for group in shared.values():
        if len(set(group.values())) > 1:
            named |= {name: SplitName(split, False) for name, split in group.items() if split is not None}
    return named


def says_nothing(name: str) -> bool:
    """Whether a folder is called after what any data set holds: ``images``, ``data``, ``dataset2``."""
    return _FILLER_NAME.fullmatch(re.sub(r"[\W_]+", "", _folded(name))) is not None


def same_name(first: str, second: str) -> bool:
    """Whether two names are one but for case, Unicode form and blanks."""
    return _folded(first) == _folded(second)


def same_letters(first: str, second: str) -> bool:
    """Whether two names look the same in print: their letters are composed of code points in different ways."""
    return unicodedata.normalize("NFC", first) == unicodedata.normalize("NFC", second)


def twin_of(name: str, others: Iterable[str]) -> str | None:
    """Another name that is spelled like this one but for case, Unicode form and blanks."""
    folded = _folded(name)
    return next((other for other in others if other != name and _folded(other) == folded), None)


def twins_sentence(first: str, second: str) -> str:
    """Two names that look alike, and in what they differ: ``'Cat' and 'cat' differ only in upper and lower case``."""
    if same_letters(first, second):
        return f"{first!a} and {second!a} differ only in Unicode form (composed or decomposed letters)"
    if unicodedata.normalize("NFC", first).casefold() == unicodedata.normalize("NFC", second).casefold():
        return f"{first!r} and {second!r} differ only in upper and lower case"
    return f"{first!r} and {second!r} differ only in blanks, case or Unicode form"


def _folded(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold()).split())
