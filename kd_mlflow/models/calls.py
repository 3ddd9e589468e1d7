"""What the modules of a network return during one forward pass, in order."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kd_mlflow.models.classifier import Classifier

# They may give back the tensor that they were given.
_PASSING = frozenset({"dropout", "dropout2d", "contiguous", "to", "identity"})


@dataclass(frozen=True)
class Call:
    """One value that a module returned.

    Attributes
    ----------
    number:
        The call's number among those of the module in this forward pass, from 0.
    item:
        The value's place where the module returned several.
    source:
        The first input, if it is a tensor.
    version:
        How often the value had been changed in place by then.
    function:
        The torch function that made the value, as far as Python saw it.
    """

    module: nn.Module
    number: int
    item: int | None
    source: Tensor | None
    output: Tensor
    version: int
    function: str


def record(model: Classifier, images: Tensor) -> list[Call]:
    """All tensors that modules of the body return for images, in the order of their ends, up to the classifier."""
    calls: list[Call] = []
    counts: Counter[nn.Module] = Counter()
    heads, head_seen = set(model.heads), False
    functions = _Functions()

    def note(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        nonlocal head_seen
        head_seen = head_seen or module in heads
        source = inputs[0] if inputs and isinstance(inputs[0], Tensor) else None
        for item, value in _tensors(output):
            if not head_seen:
                made_by = functions.maker(value)
                calls.append(Call(module, counts[module], item, source, value, value._version, made_by))
        counts[module] += 1

    with ExitStack() as stack:
        for module in model.body.modules():
            if module is not model.body or isinstance(module, nn.Sequential):
                stack.enter_context(module.register_forward_hook(note))
        stack.enter_context(functions)
        model(images)
    return calls


def _tensors(output: object) -> Iterator[tuple[int | None, Tensor]]:
    if isinstance(output, Tensor):
        yield None, output
    elif isinstance(output, (tuple, list)):
        yield from ((item, value) for item, value in enumerate(output) if isinstance(value, Tensor))


class _Functions(TorchFunctionMode):
    """Remembers which torch function made a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, tuple[weakref.ref[Tensor], str]] = {}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = getattr(function, "__name__", "")
        if type(result) is Tensor and name not in _PASSING:
            self._made[id(result)] = weakref.ref(result), name
        return result

    def maker(self, tensor: Tensor) -> str:
        """The name of the function, or nothing."""
        known = self._made.get(id(tensor))
        return known[1] if known is not None and known[0]() is tensor else ""
