"""What modules of a network read and put out while it runs, call by call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Heard = dict[str, list[Tensor]]


@contextmanager
def inputs_of(modules: Mapping[str, nn.Module], names: Iterable[str]) -> Iterator[Heard]:
    """What some modules read first, by name.

    They read a clone, since others may work in place on what is heard.
    """

    def listen(name: str, calls: list[Tensor]) -> RemovableHandle:
        def hear(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any]:
            key = None if args else next(iter(kwargs))
            read = (args[0] if key is None else kwargs[key]).clone()
            calls.append(read)
            return ((read, *args[1:]), kwargs) if key is None else (args, kwargs | {key: read})

        return modules[name].register_forward_pre_hook(hear, with_kwargs=True)

    with _listening(names, listen) as heard:
        yield heard


@contextmanager
def outputs_of(modules: Mapping[str, nn.Module], names: Iterable[str]) -> Iterator[Heard]:
    """What some modules put out first, by name.

    A clone goes on, since what follows may work in place.
    """

    def listen(name: str, calls: list[Tensor]) -> RemovableHandle:
        def hear(_: nn.Module, __: object, output: Any) -> Any:
            first, *others = output if isinstance(output, tuple) else (output,)
            calls.append(first)
            first = first.clone()
            return (first, *others) if isinstance(output, tuple) else first

        return modules[name].register_forward_hook(hear)

    with _listening(names, listen) as heard:
        yield heard


@contextmanager
def _listening(
    names: Iterable[str], listen: Callable[[str, list[Tensor]], RemovableHandle]
) -> Iterator[Heard]:
    heard: Heard = {name: [] for name in names}
    with ExitStack() as stack:
        for name, calls in heard.items():
            stack.callback(listen(name, calls).remove)
        yield heard
