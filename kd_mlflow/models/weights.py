"""Weights out of files and out of torchvision: which of a file's tensors fit a network, and their copying."""

from __future__ import annotations

import logging
import pickle  # nosec B403  # for the error that PyTorch raises; nothing is unpickled here
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from urllib.parse import urlparse

import torch
import torchvision
from torch import Tensor, nn

from kd_mlflow.errors import InputError
from kd_mlflow.models.resampling import resampled
from kd_mlflow.models.weight_files import read_content

log = logging.getLogger(__name__)

# Between the names of a mapping inside a file and of what it holds: state_dict/module.conv1.weight.
INSIDE = "/"
DEEPEST, MOST_PLACES, SHOWN = 6, 64, 3
AVERAGED = {"ema", "swa", "averaged"}
SIDES = {"teacher", "student", "discriminator", "momentum", "target"}
# What a training keeps beside its networks.
_TRAINING = re.compile(r"optimizers?(_states?)?|.*schedulers?|callbacks|loops|.*scaler|amp|rng.*")
# Auxiliary classifiers, and the counters that profilers leave in a network.
_AUXILIARY = re.compile(r"(aux1|aux2|AuxLogits)\.|(.*\.)?total_(ops|params)$")
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.(?:weight|bias|running_mean|running_var))$")


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a file of safetensors or ``torch.save``, whatever its ending, on the CPU.

    Names inside nested mappings are joined with ``/``: ``state_dict/conv1.weight``. A list of three numbers counts
    as a tensor (a mean or standard deviation a channel).

    Raises
    ------
    InputError
        As :func:`kd_mlflow.models.weight_files.read_content`, or the file holds no plain tensors.
    """
    content = read_content(path)
    if not isinstance(content, Mapping):
        kind = "a tensor" if isinstance(content, Tensor) else f"a {type(content).__name__.strip('_').lower()} object"
        raise InputError(
            f"The weights file {path} holds no state dict but {kind}; save one with "
            "torch.save(model.state_dict(), FILE)."
        )
    state = dict(_tensors(content))
    if all(value.dtype == torch.float64 and value.shape == (3,) for value in state.values()):
        raise InputError(f"The weights file {path} holds no tensors; save model.state_dict() to it.")
    odd = [name for name, value in state.items() if not _is_plain(value)]
    if odd:
        raise InputError(f"The weights file {path} holds no plain tensor under {odd[0]!r}; save dense CPU tensors.")
    return state


def _tensors(content: object, name: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """The tensors at and below a place of a file, by name."""
    if isinstance(content, Tensor):
        yield name, content
    elif _is_triple(content):
        yield name, torch.tensor(content, dtype=torch.float64)
    elif isinstance(content, (Mapping, list, tuple)) and depth < DEEPEST:
        pairs = content.items() if isinstance(content, Mapping) else enumerate(content)
        for key, value in pairs:
            if not _TRAINING.fullmatch(str(key)):
                yield from _tensors(value, f"{name}{INSIDE}{key}" if depth else str(key), depth + 1)


def _is_triple(content: object) -> bool:
    numbers = isinstance(content, (list, tuple)) and len(content) == 3
    return numbers and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in content)


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


@dataclass(frozen=True)
class _Fit:
    """What lies behind one prefix of a file's names, held against a network's.

    Attributes
    ----------
    prefix:
        What stands before the network's names in the file.
    state:
        The tensors behind it, under the network's names.
    fresh:
        What the network keeps anew: the classifier, the stem.
    refused:
        Why position embeddings of another image size cannot be used; empty where they can.
    """

    prefix: str
    state: dict[str, Tensor]
    fresh: frozenset[str]
    misfits: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    refused: str = ""

    @property
    def fits(self) -> bool:
        return not (self.misfits or self.missing or self.unexpected)

    @property
    def faults(self) -> int:
        return len(self.misfits) + len(self.missing) + len(self.unexpected)

    @property
    def place(self) -> str:
        """The prefix as messages name it."""
        return self.prefix.rstrip("./").replace(INSIDE, ".") or "the file itself"


def load_weights(
    body: nn.Module,
    state: Mapping[str, Tensor],
    source: str,
    replaceable: Mapping[str, str],
    optional: Collection[str] = (),
    side: str = "",
) -> None:
    """Copy weights into a body: those behind the one prefix of the file's names that fits whole.

    Where several do, the network's own side of the training goes first (``teacher``, ``student``), then averaged
    weights (``ema``), then the order of the file; the other side comes last.

    Parameters
    ----------
    state:
        As :func:`read_weights` gives it.
    source:
        What the weights are called in messages.
    replaceable:
        Parameters that may keep their fresh values when the shapes differ (the classifier, a new stem),
        each with what it is called in the warning.
    optional:
        Parameters that may be absent, and then keep their fresh values without a word.
    side:
        ``teacher`` or ``student``, or empty.

    Raises
    ------
    InputError
        Nothing in the file fits: says what was looked at, and the first few names or shapes that differ.
    """
    state = {_OLD_DENSENET.sub(r"\1\2", name): value for name, value in state.items()}
    own = body.state_dict()
    places = _prefixes(list(own), state)
    compared = [_compare(body, own, state, prefix, cut, replaceable, optional, source) for prefix, cut in places]
    fitting = sorted((fit for fit in compared if fit.fits), key=lambda fit: (len(fit.fresh), _rank(fit.prefix, side)))
    if not fitting:
        refused = [fit.refused for fit in compared if fit.refused]
        if refused:
            raise InputError(refused[0])
        raise InputError(_misfit(state, compared, source))
    # Everything was compared before anything is copied: a refused file leaves the body as it was.
    chosen = fitting[0]
    rivals = [fit for fit in fitting[1:] if len(fit.fresh) == len(chosen.fresh) and _differs(fit, chosen)]
    if rivals:
        _warn_once(
            f"Several sets of weights in {source} fit; {chosen.place} is taken, not "
            f"{_listed([fit.place for fit in rivals])} (to take another, save it alone)."
        )
    for what in sorted(chosen.fresh):
        _warn_once(f"The {what} in {source} is missing or of another size, and starts anew.")
    body.load_state_dict(chosen.state, strict=False)


@cache
def _warn_once(text: str) -> None:
    """A command builds a network several times: to check it, to train it."""
    log.warning(text)


def _prefixes(own: list[str], state: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """Prefixes behind which the file has names of the body, those with most first.

    Each with what the body's names have before the file's: the file may be of the network inside a wrapper.
    """
    ranked: Counter[tuple[str, str]] = Counter()
    for cut in _common_starts(own):
        inner = {name.removeprefix(cut) for name in own}
        for name in state:
            for end in range(len(name)):
                if (end == 0 or name[end - 1] in "./") and name[end:].replace(INSIDE, ".") in inner:
                    ranked[name[:end], cut] += 1
    return [place for place, _ in ranked.most_common(MOST_PLACES)]


def _common_starts(names: list[str]) -> list[str]:
    """The empty string, and what all names begin with, a part at a time: "", "net.", "net.body."."""
    starts, parts = [""], [name.split(".")[:-1] for name in names]
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        starts.append(f"{starts[-1]}{level[0]}.")
    return starts


def _compare(
    body: nn.Module,
    own: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    prefix: str,
    cut: str,
    replaceable: Mapping[str, str],
    optional: Collection[str],
    source: str,
) -> _Fit:
    tops = {name.removeprefix(cut).partition(".")[0] for name in own}
    inside = {}
    for name, value in state.items():
        rest = name.removeprefix(prefix)
        # A mapping beside the network's own parts, such as another network of the same checkpoint.
        beside = INSIDE in rest and rest.partition(INSIDE)[0].partition(".")[0] not in tops
        if name.startswith(prefix) and rest and not beside:
            inside[cut + rest.replace(INSIDE, ".")] = value
    inside = {name: value for name, value in inside.items() if name in own or not _AUXILIARY.match(name)}
    refused = ""
    try:
        inside = resampled(body, inside, source)
    except InputError as error:
        refused = str(error)
    differ = [name for name, value in inside.items() if name in own and value.shape != own[name].shape]
    fresh = frozenset(
        replaceable[name] for name in own if name in replaceable and (name in differ or name not in inside)
    )
    kept = {name: value for name, value in inside.items() if replaceable.get(name) not in fresh}
    may_miss = {*optional, *replaceable, *(name for name in own if name.endswith("num_batches_tracked"))}
    return _Fit(
        prefix,
        kept,
        fresh,
        tuple(f"{n} {list(inside[n].shape)} for {list(own[n].shape)}" for n in differ if n not in replaceable),
        tuple(name for name in own if name not in kept and name not in may_miss),
        tuple(name for name in kept if name not in own),
        refused,
    )


def _rank(prefix: str, side: str) -> int:
    words = set(re.split(r"[^a-z0-9]+", prefix.lower()))
    if side and side in words:
        return 0
    if words & SIDES - {side}:
        return 3
    return 1 if words & AVERAGED else 2


def _differs(fit: _Fit, chosen: _Fit) -> bool:
    return fit.state.keys() != chosen.state.keys() or any(
        not torch.equal(value, chosen.state[name]) for name, value in fit.state.items()
    )


def _misfit(state: Mapping[str, Tensor], compared: list[_Fit], source: str) -> str:
    """The sentence about a file in which nothing fits."""
    looked = _looked_at(state)
    if not compared:
        return (
            f"The weights in {source} do not fit: none of its names, such as {_quoted(next(iter(state)))}, is one of "
            f"the network's{looked}; check the architecture."
        )
    nearest = min(compared, key=lambda fit: fit.faults)
    within = f" in {nearest.place}" if nearest.prefix else ""
    if nearest.misfits and not (nearest.missing or nearest.unexpected):
        shown = ", ".join(nearest.misfits[:SHOWN])
        return f"The weights in {source} do not fit: shapes differ{within} in {shown}{looked}; check the architecture."
    return (
        f"The weights in {source} do not fit{':' if not within else f', nearest{within}:'} "
        f"{_some('missing', nearest.missing)}{_some('unexpected', nearest.unexpected)}"
        f"{_some('of other shapes', nearest.misfits)}check the architecture{looked}."
    )


def _looked_at(state: Mapping[str, Tensor]) -> str:
    """The mappings of the file that hold tensors; empty where the file is one mapping."""
    held = Counter(name.rpartition(INSIDE)[0] for name in state)
    if set(held) == {""}:
        return ""
    most = [f"{_quoted(place.replace(INSIDE, '.'))} ({count} tensors)" for place, count in held.most_common(5) if place]
    return f" (looked at {', '.join(most)})"


def _listed(names: list[str]) -> str:
    return ", ".join(_quoted(name) for name in names[:SHOWN])


def _quoted(name: str) -> str:
    return name if name.isprintable() else repr(name)


def _some(what: str, names: Collection[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{what} {_listed(list(names))}{more}; " if names else ""


def _is_plain(value: Tensor) -> bool:
    return value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized


def _file_name(url: str) -> str:
    return PurePosixPath(urlparse(url).path).name
