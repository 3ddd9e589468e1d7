"""Untrained bodies by name: torchvision, timm, and a person's own factories."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torchvision
from torch import nn

from kd_mlflow.config import Stem
from kd_mlflow.errors import InputError
from kd_mlflow.models.attention import add_gates
from kd_mlflow.models.classifier import ModelSpec
from kd_mlflow.models.heads import mark_heads

FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
TIMM = "timm:"

# Families whose first convolution can become 3x3 with stride 1, and the pooling that goes with it.
_SMALL_STEMS = {
    "resnet": "maxpool", "resnext": "maxpool", "wide_resnet": "maxpool", "shufflenet": "maxpool",
    "densenet": "features.pool0", "mobilenet": None, "efficientnet": None, "mnasnet": None, "regnet": None,
    "convnext": None, "vgg": None,
}  # fmt: skip


class SizeRefused(Exception):
    """A network cannot be built for images of the size that was asked for."""


def torchvision_names() -> list[str]:
    """The image classifiers that torchvision knows."""
    return torchvision.models.list_models(module=torchvision.models)


def is_factory(architecture: str) -> bool:
    """Whether the name reads ``package.module:factory``."""
    return not architecture.startswith(TIMM) and FACTORY.fullmatch(architecture) is not None


def known(architecture: str) -> bool:
    """Whether the name is one that can be built, as far as the name alone tells."""
    return architecture in torchvision_names() or architecture.startswith(TIMM) or is_factory(architecture)


def make_body(spec: ModelSpec, *, pretrained: bool = False, sized: bool = True) -> nn.Module:
    """A network on normalised images with K logits, its classifier layers marked, its stem and gates as asked.

    Parameters
    ----------
    pretrained:
        Let timm fetch its own weights. The other sources give untrained weights.
    sized:
        Build transformers of timm's for ``spec.image_size``; else for the size of timm's own weights.

    Raises
    ------
    InputError
        The architecture is unknown, cannot be imported or cannot be built as asked.
    SizeRefused
        It cannot be built for ``spec.image_size``.
    """
    count, name = len(spec.classes), spec.architecture
    if name.startswith(TIMM):
        body = _from_timm(name, count, pretrained, spec.image_size if sized else None)
    elif is_factory(name):
        body = _from_factory(name, count)
    else:
        body = _from_torchvision(name, count, spec.image_size)
    if spec.stem == "small":
        _make_stem_small(body, name)
    marked = mark_heads(body, count, spec.dropout)
    if spec.dropout and not marked:
        raise InputError(f"'{name}' has no linear layer with {count} outputs to put --dropout before; leave it at 0.")
    if spec.squeeze_excitation:
        add_gates(body, name)
    return body


def replaced_stem_key(body: nn.Module, name: str, stem: Stem) -> str | None:
    """The parameter that a small stem made anew, which pretrained weights may not fit."""
    return f"{_first_convolution(body, name)[0]}.weight" if stem == "small" else None


def _from_torchvision(name: str, count: int, image_size: int) -> nn.Module:
    if name not in torchvision_names():
        raise InputError(
            f"There is no architecture '{name}'; give a torchvision name such as resnet18, timm:<name>, "
            "or package.module:factory."
        )
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        # The auxiliary classifiers would make the output depend on the mode.
        options = {"aux_logits": False, "init_weights": True, "transform_input": True, "dropout": 0.0}
    elif name.startswith("vit_"):
        options = {"image_size": image_size}
    elif name.startswith("maxvit"):
        options = {"input_size": (image_size, image_size)}
    try:
        return torchvision.models.get_model(name, weights=None, num_classes=count, **options)
    except (ValueError, AssertionError, RuntimeError) as error:
        raise SizeRefused(str(error)) from error


def _from_timm(name: str, count: int, pretrained: bool, image_size: int | None) -> nn.Module:
    timm, own = import_timm(name), name.removeprefix(TIMM)
    options: dict[str, Any] = {"num_classes": count}
    try:
        entry = timm.get_pretrained_cfg(own)
        if image_size and entry is not None and entry.fixed_input_size:
            # timm's mark of networks that are built for one size, whichever it is.
            options["img_size"] = image_size
        return timm.create_model(own, pretrained=pretrained, **options)
    except Exception as error:
        if "img_size" in options and not _can_make(timm, own, options):
            raise SizeRefused(str(error)) from error
        # timm and its hub client raise many kinds; each comes with a message of its own.
        hint = "; without a network, put its weights into the Hugging Face cache first" if pretrained else ""
        if pretrained and "img_size" in options and "size mismatch" in str(error):
            hint = f" at {image_size} px from its weights for {entry.input_size[-1]} px; give --image-size that size"
        raise InputError(f"timm cannot make '{own}'{hint} ({_in_a_line(error)}).") from error


def _can_make(timm: Any, name: str, options: dict[str, Any]) -> bool:
    """Whether the network can be built with these options, whatever its weights."""
    try:
        timm.create_model(name, pretrained=False, **options)
    except Exception:
        return False
    return True


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def import_timm(name: str) -> Any:
    """The timm package, or an InputError that says how to get it."""
    try:
        return importlib.import_module("timm")
    except ImportError:
        raise InputError(f"'{name}' needs the package timm; install it with: pip install timm.") from None


def require_installed(name: str) -> None:
    """Refuse an architecture whose code would be found in the working directory alone.

    Raises
    ------
    InputError
        With what to do where that code is one's own.
    """
    if not is_factory(name):
        return
    module = _foreign_module(name)
    try:
        importlib.import_module(module)
    except ModuleNotFoundError:
        raise InputError(
            f"The model is built by '{name}', code that did not come with this package; where you trust it, install "
            "it or put its folder on the PYTHONPATH."
        ) from None
    except Exception as error:
        raise _import_error(name, error) from error


def _from_factory(name: str, count: int) -> nn.Module:
    module_name, attribute = _foreign_module(name), name.partition(":")[2]
    with working_directory_importable():
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            raise InputError(
                f"The architecture '{name}' needs the Python module '{error.name}', which is not there; start in the "
                "folder that holds it, or install it."
            ) from error
        except Exception as error:
            raise _import_error(name, error) from error
        factory = getattr(module, attribute, None)
        if not callable(factory):
            raise InputError(f"The module '{module_name}' has no function '{attribute}' that could make '{name}'.")
        try:
            body = factory(num_classes=count)
        except Exception as error:
            raise InputError(f"{name}(num_classes={count}) failed with {type(error).__name__}: {error}.") from error
    if not isinstance(body, nn.Module):
        raise InputError(f"{name}(num_classes={count}) must return a torch.nn.Module, not {type(body).__name__}.")
    return body


def _foreign_module(name: str) -> str:
    """The module of ``module:factory``; merely to import one of Python's own may start things."""
    module = name.partition(":")[0]
    if module.partition(".")[0] in sys.stdlib_module_names:
        raise InputError(f"'{name}' is a part of Python itself and makes no network.")
    return module


def _import_error(name: str, error: Exception) -> InputError:
    return InputError(f"The module of '{name}' cannot be imported ({type(error).__name__}: {error}).")


@contextmanager
def working_directory_importable() -> Iterator[None]:
    """A console script does not have the working directory on the path, `python -m` has.

    It comes last: a file that lies there shall not take the place of a package that is installed.
    """
    here = str(Path.cwd())
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.append(here)
    try:
        yield
    finally:
        if added and here in sys.path:
            sys.path.remove(here)


def _make_stem_small(body: nn.Module, architecture: str) -> None:
    """A 3x3 first convolution with stride 1, and no pooling after it."""
    name, old = _first_convolution(body, architecture)
    if old.kernel_size == (3, 3) and old.stride == (1, 1):
        return
    new = nn.Conv2d(3, old.out_channels, 3, 1, 1, bias=old.bias is not None)
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    _replace(body, name, new)
    pooling = _SMALL_STEMS[_family(architecture)]
    if pooling is not None:
        _replace(body, pooling, nn.Identity())


def _first_convolution(body: nn.Module, architecture: str) -> tuple[str, nn.Conv2d]:
    if _family(architecture) not in _SMALL_STEMS:
        raise InputError(
            f"--stem small is not defined for '{architecture}'; use --stem standard, or one of the families "
            f"{', '.join(_SMALL_STEMS)}."
        )
    return next((name, module) for name, module in body.named_modules() if isinstance(module, nn.Conv2d))


def _family(architecture: str) -> str:
    return next((family for family in _SMALL_STEMS if architecture.startswith(family)), "")


def _replace(body: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(body.get_submodule(parent), own, module)
