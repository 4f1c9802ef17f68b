"""One forward pass in which every tensor is known by the channels that it is made of.

Layers whose rules are known run as a whole: the labels on what they read are those of their input
channels, and those of their output channels lie on what they return, every time that they are
called. What runs between them is followed operation by operation.
"""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from epruner.pruning.errors import TraceError
from epruner.pruning.graph.costs import Recorder
from epruner.pruning.graph.labels import Algebra, Classes, Facet, Operand
from epruner.pruning.graph.norms import operation_of
from epruner.pruning.graph.operations import Call, Facets, Look, facets_after
from epruner.pruning.network.copies import address_of, own_tensors, owners
from epruner.pruning.network.layers import (
    can_resize,
    channel_dim,
    is_depthwise,
    multiplies,
    rule_of,
    sides,
    ties,
)
from epruner.pruning.network.tree import tensors_in


@dataclass
class Followed:
    """What a forward pass tells of the channels.

    Parameters
    ----------
    classes : Classes
        Of the labels.
    outputs, inputs : dict of str to Tensor of int
        By module, labels of its output and input channels; inputs only of those that have filters.
    bare : dict of (str, int) to Tensor of int
        By name and dimension, labels of parameters and buffers that no known layer owns.
    added : Tensor of int
        Labels of channels to which several layers add.
    products : dict of str to Tensor of int
        By name of a matrix product, labels for each of which it is made, in equal parts.
    norms : dict of str to Tensor of int
        By module, labels of channels over which it takes a norm.
    """

    classes: Classes
    outputs: dict[str, Tensor] = field(default_factory=dict)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    bare: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    added: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    products: dict[str, Tensor] = field(default_factory=dict)
    norms: dict[str, Tensor] = field(default_factory=dict)


def follow(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], recorder: Recorder
) -> Followed:
    """Run a forward pass and follow the channels through it.

    Parameters
    ----------
    model : torch.nn.Module
        In eval mode.
    args, kwargs
        Arguments of its forward.
    recorder : Recorder
        Records the pass.

    Raises
    ------
    TraceError
        The forward pass failed.
    """
    mode = _Follower(model, recorder)
    mode.given(tensors_in((args, dict(kwargs))))
    try:
        with (
            warnings.catch_warnings(),
            torch.no_grad(),
            recorder.recording(),
            mode.hooked(model),
            mode,
        ):
            warnings.simplefilter("ignore")
            output = model(*args, **kwargs)
    except Exception as error:
        at = recorder.running[-1] if recorder.running else ""
        where = f"in module {at!r}" if at else "in the model's own forward"
        line = str(error).partition("\n")[0]
        raise TraceError(
            f"the forward pass failed {where}: {type(error).__name__}: {line}. Check "
            "inputs: a tensor, a shape, a tuple of arguments or a dict of keyword "
            "arguments"
        ) from error
    return mode.finished(tensors_in(output))


class _Following:
    """What a follower does, apart from the mode that makes torch call it.

    Its own arithmetic is under no mode: it would be followed and counted, too.

    A mode that itself defines ``__torch_dispatch__`` makes torch import its compiler, which takes
    seconds and 150 MB.
    """

    def __init__(self, model: nn.Module, recorder: Recorder) -> None:
        super().__init__()
        self._algebra = Algebra()
        self._found = Followed(self._algebra.classes)
        self._model = model
        self._recorder = recorder
        self._names = {module: name for name, module in model.named_modules()}
        self._leaves = {m: name for m, name in self._names.items() if _is_leaf(m)}
        self._owners = owners(model)
        self._inside = 0
        self._known: dict[int, tuple[weakref.ref[Tensor], Facets, bool]] = {}
        self._owned = {
            id(tensor): name for m, name in self._leaves.items() for tensor in own_tensors(m)
        }
        self._bare = {
            id(tensor): f"{name}.{leaf}".lstrip(".")
            for module, name in self._names.items()
            for leaf, tensor in (
                *module.named_parameters(recurse=False),
                *module.named_buffers(recurse=False),
            )
            if id(tensor) not in self._owned
        }
        self._looks: dict[int, Look] = {}

    def given(self, tensors: list[Tensor]) -> None:
        """Know the model's inputs."""
        for tensor in tensors:
            self._note(tensor, (), given=True)

    def hooked(self, model: nn.Module) -> ExitStack:
        """Hooks on the layers that run as a whole, as long as the stack is open."""
        hooks = ExitStack()
        for module in self._leaves:
            hooks.enter_context(module.register_forward_pre_hook(self._enter))
            hooks.enter_context(module.register_forward_hook(self._leave, with_kwargs=True))
        return hooks

    def finished(self, outputs: list[Tensor]) -> Followed:
        """Everything that was found, now that the pass is over."""
        self._used(outputs)
        for tensor in outputs:
            for facet in self._operand(tensor).facets:
                self._algebra.classes.fix(facet.labels, "its channels are the output of the model")
        self._algebra.square()
        for name, calls in self._algebra.norms.items():
            roots = [self._algebra.classes.find(labels) for labels in calls]
            if not all(np.array_equal(roots[0], other) for other in roots):
                for labels in calls:
                    why = f"{name!r} takes norms over different channels"
                    self._algebra.classes.fix(labels, why)
            self._found.norms[name] = calls[0]
        if self._algebra.added:
            self._found.added = torch.cat([labels.flatten() for labels in self._algebra.added])
        return self._found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, seen = kwargs or {}, args
        if self._inside:
            return func(*args, **kwargs)
        with _disable_current_modes():
            operands = {id(t): self._operand(t) for t in tensors_in((args, kwargs))}
            if torch.Tag.inplace_view in func.tags:  # its shape is about to change
                known, shaped = operands[id(args[0])], args[0].detach()
                operands[id(shaped)] = replace(known, tensor=shaped)
                seen = (shaped, *args[1:])
        if func is not torch.ops.aten._local_scalar_dense.default:
            self._used(operand.tensor for operand in operands.values())
        multiplied = iter(range(len(self._recorder.products), sys.maxsize))
        result = func(*args, **kwargs)
        results = tensors_in(result)
        given = any(o.given for o in operands.values()) and not any(
            o.facets for o in operands.values()
        )
        name, named = operation_of(func, seen, kwargs)
        running = self._running()
        call = Call(
            algebra=self._algebra,
            name=name,
            function=func,
            args=named,
            results=results,
            operand=lambda tensor: operands.get(id(tensor)) or Operand(tensor, ()),
            module=running,
            owner=self._model.get_submodule(running),
            product=lambda facets: self._product(next(multiplied), facets),
            look=lambda look: self._looks.update({id(look.result): look}),
        )
        with _disable_current_modes():
            into = [x for t in results if (x := operands.get(id(t)))]  # what is written into
            if any(not x.facets and _is_part(x.tensor) for x in into):
                for operand in operands.values():
                    call.fix(operand.facets, "its channels are written into a part of a tensor")
                found: list[Facets] = [()] * len(results)
            else:
                found = facets_after(call)
            for tensor, facets in zip(results, found, strict=True):
                self._note(tensor, facets, given)
        return result

    def _used(self, tensors: Iterable[Tensor]) -> None:
        """Let channels stay of which numbers are made that something is made of."""
        for tensor in tensors:
            if look := self._looks.pop(id(tensor), None):
                for facet in look.facets:
                    self._algebra.classes.join(facet.labels, look.dims, look.why)

    def _enter(self, module: nn.Module, _: Any) -> None:
        self._inside += 1

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self._inside -= 1
        if not self._inside:
            with _disable_current_modes():  # what follows is no part of the pass
                self._passed(module, tensors_in((args, kwargs)), tensors_in(output))

    def _passed(self, module: nn.Module, read: Sequence[Tensor], written: Sequence[Tensor]) -> None:
        """Let a layer read its labels, and put those of its outputs on what it wrote."""
        if not read or not written:
            return
        self._used(read)
        name, source = self._leaves[module], self._operand(read[0])
        outputs, inputs = self._sides(name, module)
        if outputs is not None and not _as_usual(module, read[0], written, outputs, inputs):
            kept = [outputs, *([] if inputs is None else [inputs])]
            kept += [facet.labels for tensor in read for facet in self._operand(tensor).facets]
            for labels in kept:
                self._algebra.classes.fix(labels, f"{name!r} has a forward of its own")
        elif outputs is not None:
            along, across = self._read(name, module, source, outputs if inputs is None else inputs)
            makers = along if inputs is None else frozenset([name])
            if rule_of(module).reads_itself:
                self._resumes(name, read[1:], outputs)
            if isinstance(module, nn.GroupNorm) and module.num_groups == 1:
                self._algebra.norms.setdefault(name, []).append(outputs)
            for tensor in written:
                dim = channel_dim(module, tensor)
                facets = [Facet(_placed(outputs[: tensor.shape[dim]], dim, tensor.dim()), makers)]
                facets += [f for f in across if f.labels.dim() == tensor.dim()]
                self._note(tensor, self._algebra.settled(facets))
        elif multiplies(module):  # no rule resizes it
            for tensor in read:
                for facet in self._operand(tensor).facets:
                    self._algebra.classes.fix(facet.labels, mixing(name, module))
        else:  # a PReLU of one parameter
            self._note(written[0], source.facets, source.given)

    def _read(
        self, name: str, module: nn.Module, source: Operand, labels: Tensor
    ) -> tuple[frozenset[str], list[Facet]]:
        """Let a layer read: who made its channels, and the facets along other dimensions."""
        tensor, classes = source.tensor, self._algebra.classes
        dim = channel_dim(module, tensor)
        makers: frozenset[str] = frozenset()
        across = []
        positions = range(0 if rule_of(module).reads_itself else dim + 1, tensor.dim())
        for facet in source.facets:
            if facet.along(dim):
                classes.unify(facet.labels, _placed(labels, dim, tensor.dim()))
                makers |= facet.makers
            elif isinstance(module, _BatchNorm):
                across.append(facet)
            else:
                why = f"its channels lie where {name!r} expects positions"
                classes.join(facet.labels, positions, why)
                if not set(facet.dims) <= set(positions):  # otherwise they stay, whatever it is
                    across.append(facet)
        alone = not any(facet.along(dim) for facet in source.facets)
        if alone and tensor.stride(dim) and len(labels) > 1:
            how = "the model's input" if source.given else "a tensor of fixed size"
            classes.fix(labels, f"{name!r} reads {how}")
        return makers, across

    def _resumes(self, name: str, states: Sequence[Tensor], outputs: Tensor) -> None:
        """Let the states that a recurrent layer starts from have its units."""
        for state in filter(torch.is_floating_point, states):
            operand, dim = self._operand(state), state.dim() - 1
            units = _placed(outputs[: state.shape[dim]], dim, state.dim())
            mine = [facet for facet in operand.facets if facet.along(dim)]
            for facet in mine:
                self._algebra.classes.unify(facet.labels, units)
            if operand.given and not mine:
                why = f"{name!r} reads its first state from the model's input"
                self._algebra.classes.fix(outputs, why)

    def _sides(self, name: str, module: nn.Module) -> tuple[Tensor | None, Tensor | None]:
        """Labels of a layer's (output, input) channels; None for a side that it has not."""
        outputs, inputs = sides(module)
        if name not in self._found.outputs and outputs:
            why = self._objection(name, module)
            labels = self._algebra.classes.new([outputs], why)
            if (tied := ties(module)) is not None:
                _, first, number = np.unique(tied, return_index=True, return_inverse=True)
                others = torch.from_numpy(labels.numpy()[first[number]])
                self._algebra.classes.unify(labels, others, mixing(name, module))
            self._found.outputs[name] = labels
            if inputs:
                self._found.inputs[name] = self._algebra.classes.new([inputs], why)
        return self._found.outputs.get(name), self._found.inputs.get(name)

    def _objection(self, name: str, module: nn.Module) -> str | None:
        if not can_resize(module):
            return mixing(name, module)
        for tensor in own_tensors(module):
            others = [x for x in self._owners.get(address_of(tensor), ()) if x != name]
            if others:
                return f"the parameters of {name!r} are shared with {others[0]!r}"
        groups = 1 if is_depthwise(module) else getattr(module, "groups", 1)
        if groups > 1 and groups in sides(module):
            return f"{name!r} is a depthwise convolution with a channel multiplier"
        return None

    def _operand(self, tensor: Tensor) -> Operand:
        known = self._known.get(id(tensor))
        if known is not None and known[0]() is tensor:
            return Operand(tensor, known[1], known[2])
        if id(tensor) in self._bare:
            return Operand(tensor, self._bare_facets(tensor))
        if id(tensor) in self._owned:
            owner = self._owned[id(tensor)]
            for labels in self._sides(owner, self._model.get_submodule(owner)):
                if labels is not None:
                    why = f"the weights of {owner!r} are used outside of it, too"
                    self._algebra.classes.fix(labels, why)
        return Operand(tensor, ())

    def _bare_facets(self, tensor: Tensor) -> Facets:
        name = self._bare[id(tensor)]
        shared = len(self._owners.get(address_of(tensor), ())) > 1
        why = f"parameter {name!r} on its channels is shared" if shared else None
        found = []
        for dim, size in enumerate(tensor.shape):
            if size > 1:
                labels = self._algebra.classes.new([size], why)
                self._found.bare[name, dim] = labels
                found.append(Facet(_placed(labels, dim, tensor.dim())))
        self._note(tensor, tuple(found))
        return tuple(found)

    def _note(self, tensor: Tensor, facets: Facets, given: bool = False) -> None:
        key = id(tensor)

        def gone(_: Any) -> None:
            self._known.pop(key, None)

        self._known[key] = (weakref.ref(tensor, gone), facets, given)

    def _product(self, number: int, facets: Facets) -> None:
        name = self._recorder.products[number][0]
        if labels := [facet.labels.flatten() for facet in facets if len(facet.dims) == 1]:
            self._found.products[name] = labels[0]

    def _running(self) -> str:
        return self._recorder.running[-1] if self._recorder.running else ""


class _Follower(_Following, TorchDispatchMode):  # type: ignore[no-untyped-call]
    pass


def mixing(name: str, module: nn.Module) -> str:
    """The reason of layers that stay whole: norms over channels, attention, recurrence."""
    return f"{type(module).__name__} {name!r} mixes its channels"


def _as_usual(
    module: nn.Module,
    read: Tensor,
    written: Sequence[Tensor],
    outputs: Tensor,
    inputs: Tensor | None,
) -> bool:
    """Whether a layer reads and writes as many channels as it says."""
    makes = {tensor.shape[channel_dim(module, tensor)] for tensor in written}
    reads = read.shape[channel_dim(module, read)]
    return max(makes) == len(outputs) and (inputs is None or reads == len(inputs))


def _is_leaf(module: nn.Module) -> bool:
    return multiplies(module) or any(sides(module)) or isinstance(module, nn.PReLU)


def _is_part(tensor: Tensor) -> bool:
    """Whether a tensor is a part of what lies in its memory."""
    return tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size()


def _placed(labels: Tensor, dim: int, dims: int) -> Tensor:
    """Labels along one dimension of so many."""
    return labels.view([-1 if d == dim else 1 for d in range(dims)])
