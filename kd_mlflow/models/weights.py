"""Weights out of files and out of torchvision, read without running any code that they carry."""

from __future__ import annotations

import logging
import pickle  # nosec B403  # for the error that PyTorch raises; nothing is unpickled here
import re
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from urllib.parse import urlparse

import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from kd_mlflow.errors import InputError
from kd_mlflow.models.resampling import resampled

log = logging.getLogger(__name__)

PICKLED = (".pt", ".pth", ".pkl")
SUFFIXES = (".safetensors", *PICKLED)
_ENVELOPES = ("state_dict", "model", "model_state_dict")
_PREFIXES = ("module.", "_orig_mod.", "body.", "model.")
_AUXILIARY = re.compile(r"(aux1|aux2|AuxLogits)\.")
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.(?:weight|bias|running_mean|running_var))$")


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors``, ``.pt``, ``.pth`` or ``.pkl`` file, by name, on the CPU.

    A state dict may stand alone or under ``state_dict``, ``model`` or ``model_state_dict``.

    Raises
    ------
    InputError
        The file is missing, of another kind, damaged, or a pickle that would have to run code.
    """
    if not path.is_file():
        raise InputError(f"There is no weights file {path}; give none, imagenet, or a file.")
    if path.suffix not in SUFFIXES:
        raise InputError(f"The weights file {path} must end in one of {', '.join(SUFFIXES)}.")
    content = _read_pickled(path) if path.suffix in PICKLED else _read_safetensors(path)
    for name in _ENVELOPES:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    if not isinstance(content, Mapping) or not content:
        raise InputError(f"The weights file {path} holds no state dict; save one with torch.save(model.state_dict()).")
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise InputError(f"The weights file {path} holds no tensors; save model.state_dict() to it.")
    odd = [name for name, value in state.items() if not _is_plain(value)]
    if odd:
        raise InputError(f"The weights file {path} holds no plain tensor under {odd[0]!r}; save dense CPU tensors.")
    return state


def imagenet_weights(architecture: str) -> dict[str, Tensor]:
    """Torchvision's default weights, from its cache or downloaded.

    Raises
    ------
    InputError
        There are none for this architecture, or they are not in the cache and cannot be fetched.
    """
    entry = default_entry(architecture)
    target = Path(torch.hub.get_dir()) / "checkpoints" / _file_name(entry.url)
    if not target.is_file():
        log.info("Fetching %s into %s.", entry.url, target.parent)
    try:
        return dict(entry.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True))
    except pickle.UnpicklingError:
        raise InputError(f"The file {target} is not the one that torchvision offers; delete it.") from None
    except (OSError, RuntimeError, EOFError) as error:
        raise InputError(
            f"The ImageNet weights of {architecture} cannot be read or fetched ({error}); download {entry.url} "
            f"where there is a network and put the file at {target}, or use weights none."
        ) from error


def default_entry(architecture: str) -> torchvision.models.WeightsEnum:
    """Torchvision's entry of the weights that it recommends for an architecture."""
    try:
        return torchvision.models.get_model_weights(architecture).DEFAULT
    except (ValueError, AttributeError):
        raise InputError(f"There are no ImageNet weights for '{architecture}'; use none or a weights file.") from None


def is_torchvision_file(architecture: str, path: Path) -> bool:
    """Whether the file carries the name under which torchvision offers weights of this architecture."""
    try:
        entries = list(torchvision.models.get_model_weights(architecture))
    except ValueError:
        return False
    return path.name in {_file_name(entry.url) for entry in entries}


def load_weights(
    body: nn.Module,
    state: Mapping[str, Tensor],
    source: str,
    replaceable: Mapping[str, str],
    optional: Collection[str] = (),
) -> None:
    """Copy weights into a body, and refuse what does not fit.

    Parameters
    ----------
    source:
        What the weights are called in messages.
    replaceable:
        Parameters that may keep their fresh values when the shapes differ (the classifier, a new stem),
        each with what it is called in the warning.
    optional:
        Parameters that may be absent, and then keep their fresh values without a word.

    Raises
    ------
    InputError
        Missing or unexpected names, or shapes that differ; the first few are named.
    """
    own = body.state_dict()
    state = _without_prefixes({_OLD_DENSENET.sub(r"\1\2", name): value for name, value in state.items()}, set(own))
    state = {name: value for name, value in state.items() if name in own or not _AUXILIARY.match(name)}
    state = resampled(body, state, source)
    differ = [name for name, value in state.items() if name in own and value.shape != own[name].shape]
    absent = {name for name in own if name not in state}
    dropped = {replaceable[name] for name in [*differ, *absent] if name in replaceable}
    for what in sorted(dropped):
        log.warning("The %s in %s is missing or of another size, and starts anew.", what, source)
    kept = {name: value for name, value in state.items() if replaceable.get(name) not in dropped}
    bad_shapes = [name for name in differ if name not in replaceable]
    if bad_shapes:
        shown = ", ".join(f"{name} {list(state[name].shape)} for {list(own[name].shape)}" for name in bad_shapes[:3])
        raise InputError(f"The weights in {source} do not fit: shapes differ in {shown}; check the architecture.")
    # Checked by hand, and before anything is copied: a refused file leaves the body as it was.
    may_miss = {*optional, *replaceable, *(name for name in own if name.endswith("num_batches_tracked"))}
    missing = [name for name in own if name not in kept and name not in may_miss]
    unexpected = [name for name in kept if name not in own]
    if missing or unexpected:
        raise InputError(
            f"The weights in {source} do not fit: {_some('missing', missing)}{_some('unexpected', unexpected)}"
            "check the architecture."
        )
    body.load_state_dict(kept, strict=False)


def _some(what: str, names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    shown = ", ".join(name if name.isprintable() else repr(name) for name in names[:3])
    return f"{what} {shown}{more}; " if names else ""


def _without_prefixes(state: dict[str, Tensor], expected: set[str]) -> dict[str, Tensor]:
    """Take off wrappers' prefixes until names fit; what stands outside the prefix is left behind."""
    while not expected & state.keys():
        inner = next((found for prefix in _PREFIXES if (found := _inside(state, prefix))), None)
        if inner is None:
            break
        state = inner
    return state


def _inside(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _is_plain(value: Tensor) -> bool:
    return value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized


def _read_pickled(path: Path) -> object:
    _require_stored(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"The weights file {path} is a pickle that would have to run code and is refused; where you trust it, "
            "load it and save only its tensors with torch.save(model.state_dict(), FILE)."
        ) from None
    except Exception as error:
        # A damaged file can break the reader in any way.
        raise InputError(f"The weights file {path} cannot be read ({_first_line(error)}); write it again.") from error


def _require_stored(path: Path) -> None:
    """PyTorch stores its archives as they are: a compressed one may unpack to a thousand times its size."""
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [entry for entry in archive.infolist() if entry.file_size > entry.compress_size]
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return
    if packed:
        raise InputError(
            f"The weights file {path} is a compressed archive, which PyTorch never writes; write it again."
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _read_safetensors(path: Path) -> object:
    try:
        return safetensors.torch.load_file(path)
    except Exception as error:
        raise InputError(f"The weights file {path} cannot be read ({_first_line(error)}); write it again.") from error


def _file_name(url: str) -> str:
    return PurePosixPath(urlparse(url).path).name
