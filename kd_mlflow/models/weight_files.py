"""What lies in a weights file, told by its content and read without running any code that it carries."""

from __future__ import annotations

import pickle  # nosec B403  # for the error that PyTorch raises; nothing is unpickled here
import pickletools  # nosec B403  # reads the names in a pickle; nothing is unpickled
import re
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch

from kd_mlflow.errors import InputError

LARGEST_HEADER = 10**8  # bytes of a safetensors header, as the format's own reader allows
_PICKLES = 4  # a file of PyTorch before 1.6 is a row of pickles: two numbers, the system, the content
_FOREIGN = (
    (b"\x1f\x8b", "compressed with gzip; unpack it first"),
    (b"BZh", "compressed with bzip2; unpack it first"),
    (b"\xfd7zXZ", "compressed with xz; unpack it first"),
    (b"\x89HDF", "an HDF5 file (Keras); convert it to PyTorch, and save a state dict with torch.save"),
    (b"version https://git-lfs", "a pointer of Git LFS and not the weights; fetch them with `git lfs pull`"),
    (b"<", "a web page or XML and not the weights; download the file itself"),
    (b"{", "a text in JSON; give the .safetensors or .bin file with the weights (of several parts, join them first)"),
)  # fmt: skip
# Types that checkpoints carry beside their tensors: options, paths, times, numbers of numpy, settings of frameworks.
# None of them is made: see :class:`_Unread`.
_DATA = re.compile(
    r"argparse\.Namespace|types\.SimpleNamespace|pathlib\.(_local\.)?\w*Path|uuid\.\w+|decimal\.\w+|fractions\.\w+"
    r"|datetime\.\w+|functools\.partial|copyreg\._reconstructor"
    r"|builtins\.(object|list|dict|tuple|frozenset|range|slice|int|float|str|bool|bytes)"
    r"|numpy\.[\w.]+|torch\.(optim|nn\.modules\.(loss|activation))\.[\w.]+|torch\.torch_version\.TorchVersion"
    r"|(lightning|pytorch_lightning|lightning_fabric|omegaconf|ml_collections|mmengine|mmcv)\.[\w.]+"
)
_MAPPINGS = re.compile(
    r"collections\.defaultdict|[\w.]+\.(AttributeDict|CfgNode|EasyDict|ConfigDict|Munch|AttrDict|Dict)"
)
_LISTS = re.compile(r"collections\.deque|[\w.]+\.UserList")
# What Python 2 called them, as PyTorch still writes it.
_OLD_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_OLD_NAMES = {"builtins.xrange": "builtins.range", "builtins.long": "builtins.int", "builtins.unicode": "builtins.str"}


class _Unread:
    """Stands where a file has an object that is no tensor; whatever the file would do with that is not done."""

    def __init__(self, *values: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _Mapping:
    """Stands where a file has a mapping of its own kind; a plain one takes its place."""

    def __new__(cls, *values: object) -> OrderedDict:  # type: ignore[misc]
        return OrderedDict()


class _List:
    """Stands where a file has a list of its own kind; a plain one takes its place."""

    def __new__(cls, *values: object) -> list:  # type: ignore[misc]
        return []


def is_safetensors(path: Path) -> bool:
    """Whether the file begins as one in the format safetensors does, whatever its name."""
    try:
        with path.open("rb") as file:
            head, size = file.read(9), path.stat().st_size
    except OSError:
        return False
    length = int.from_bytes(head[:8], "little")
    return len(head) == 9 and head[8:] == b"{" and length < LARGEST_HEADER and length + 8 <= size


def read_content(path: Path) -> Any:
    """What a file of safetensors or of ``torch.save`` holds, its tensors on the CPU.

    Objects that are neither tensors nor plain Python are left out where their types are harmless data; no
    code of theirs runs.

    Raises
    ------
    InputError
        The file is missing, of another kind, damaged, or a pickle that would have to run code.
    """
    if not path.is_file():
        kind = "is a folder; name the file in it" if path.is_dir() else "does not exist; give none, imagenet, or a file"
        raise InputError(f"The weights file {path} {kind}.")
    if is_safetensors(path):
        return _safetensors(path)
    if path.suffix.lower() == ".safetensors":
        raise InputError(f"The weights file {path} is damaged or not in the format safetensors; write it again.")
    _refuse_foreign(path)
    if zipfile.is_zipfile(path):
        _refuse_archive(path)
    return _pickled(path)


def _safetensors(path: Path) -> Any:
    try:
        return safetensors.torch.load_file(path)
    except Exception as error:
        raise InputError(f"The weights file {path} cannot be read ({_first_line(error)}); write it again.") from error


def _refuse_foreign(path: Path) -> None:
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise InputError(f"The weights file {path} cannot be read ({error.strerror}).") from None
    if not head:
        raise InputError(f"The weights file {path} is empty; write it again.")
    for begins, what in _FOREIGN:
        if head.lstrip().startswith(begins):
            raise InputError(f"The weights file {path} is {what}.")
    if head[257:262] == b"ustar" and tarfile.is_tarfile(path):
        raise InputError(
            f"The weights file {path} is a tar archive and no checkpoint of torch.save; unpack it and give the file "
            "in it."
        )


def _refuse_archive(path: Path) -> None:
    """Refuse archives that torch.save did not write; compressed ones may unpack to a thousand times their size."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return
    names = {entry.filename.partition("/")[2] for entry in entries}
    if "constants.pkl" in names:
        raise InputError(
            f"The weights file {path} is a TorchScript program; where you trust it, save its tensors with "
            "torch.save(torch.jit.load(FILE).state_dict(), NEW)."
        )
    if "archive_format" in names:
        raise InputError(
            f"The weights file {path} is an exported program (torch.export); where you trust it, save its tensors "
            "with torch.save(dict(torch.export.load(FILE).state_dict), NEW)."
        )
    if any(entry.file_size > entry.compress_size for entry in entries):
        raise InputError(
            f"The weights file {path} is a compressed archive, which PyTorch never writes; write it again."
        )
    if "data.pkl" not in names:
        raise InputError(f"The weights file {path} is a zip archive and no checkpoint of torch.save; unpack it.")


def _pickled(path: Path) -> Any:
    harmless = [(stand_in, name) for name in _globals(path) if (stand_in := _stand_in(name)) is not None]
    try:
        with torch.serialization.safe_globals(harmless), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(_refusal(path, str(error))) from None
    except Exception as error:
        # A damaged file can break the reader in any way.
        raise InputError(f"The weights file {path} cannot be read ({_first_line(error)}); write it again.") from error


def _refusal(path: Path, error: str) -> str:
    """Why PyTorch's reader of plain tensors gave up, and the step that helps."""
    step = "load it and save only its tensors with torch.save(model.state_dict(), FILE)"
    if "Unsupported operand" in error or "magic number" in error:
        return (
            f"The weights file {path} is a pickle in a form that torch.save does not write, and is refused; where you "
            f"trust it, {step}."
        )
    named = re.search(r"GLOBAL ([\w.]+)", error)
    what = f" ({named[1]})" if named else ""
    return (
        f"The weights file {path} is a pickle that would have to run code{what} and is refused; where you trust it, "
        f"{step}."
    )


def _globals(path: Path) -> set[str]:
    """The classes and functions that a pickle names; it is looked through, nothing of it is run."""
    named: set[str] = set()
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                record = next(entry for entry in archive.namelist() if entry.partition("/")[2] == "data.pkl")
                with archive.open(record) as file:
                    _note_globals(file, named)
        else:
            with path.open("rb") as file:
                for _ in range(_PICKLES):
                    _note_globals(file, named)
    except Exception:
        return named  # the reader itself says what is wrong with the file
    return named


def _note_globals(file: Any | BinaryIO, named: set[str]) -> None:
    for code, argument, _ in pickletools.genops(file):
        if code.name == "GLOBAL":
            module, _, name = str(argument).partition(" ")
            full = f"{_OLD_MODULES.get(module, module)}.{name}"
            named.add(_OLD_NAMES.get(full, full))


def _stand_in(name: str) -> type | None:
    for pattern, stand_in in ((_MAPPINGS, _Mapping), (_LISTS, _List), (_DATA, _Unread)):
        if pattern.fullmatch(name):
            return stand_in
    return None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
