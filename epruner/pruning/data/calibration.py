"""Calibration inputs: whatever holds a few hundred of them, made into batches of fixed sizes.

What learns from inputs is judged on others: every fifth input is held back from all fitting.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from epruner.pruning.data.dealing import deal, handed_over, split
from epruner.pruning.network.batches import NONE, Batches
from epruner.pruning.network.inputs import Arguments
from epruner.pruning.network.ranks import ALONE, Ranks
from epruner.pruning.network.tree import tensors_in

# Inputs of a batch. What the first layers of a network pass on is some twenty times an image, but
# may be a thousand times a sequence of indices.
_MOST, _MOST_IMAGES = 32, 128
_MOST_ELEMENTS = 2**21
_HELD_BACK = 5  # one in so many
_FEWEST = 15  # inputs of which some are held back: three at least
_LABEL_KEYS = ("labels", "label", "y")
_USUAL_KEYS = ("pixel_values", "image", "images", "img", "inputs", "input", "x", "data")


@dataclass(frozen=True)
class Calibration:
    """Inputs of a network, batch by batch.

    Parameters
    ----------
    fit : Batches
        To measure and to fit to.
    held_back : Batches
        To judge by what was fit; empty where the inputs are too few.
    labels : tuple of Tensor
        Of each batch to fit to, where they were asked for.
    """

    fit: Batches
    held_back: Batches = NONE
    labels: tuple[Tensor, ...] = ()

    @property
    def unseen(self) -> Batches:
        """What to judge by: those held back if there are any."""
        return self.held_back or self.fit

    @property
    def everything(self) -> Batches:
        """What was fit to, and what was held back."""
        own = [x for part in (self.fit, self.held_back) if not part.stands_in for x in part]
        return Batches(own or self.fit, self.fit.ranks, stands_in=not own)


def inputs_in(batches: Batches) -> int:
    """How many inputs all batches hold."""
    return batches.count(sum(len(tensors_in(batch)[0]) for batch in batches))


def calibration_inputs(
    model: nn.Module,
    calibrate: Any,
    example: Arguments,
    *,
    size: int | None = None,
    labelled: bool = False,
    ranks: Ranks = ALONE,
) -> Calibration:
    """Inputs to fit to and inputs to judge by, as arguments of the model's forward.

    The batches do not depend on those of a loader: the same inputs give the same bits. Nor do they
    depend on the number of ranks: batches are made of the inputs of all, in the order of the ranks,
    and dealt out.

    Parameters
    ----------
    model : torch.nn.Module
        Batches are put on its device.
    calibrate : Tensor, mapping, or iterable of tensors, tuples or mappings
        Tensors with the batch first. Of a tuple the first entries are taken, as many as the model
        has inputs; of a mapping the entries with their names.
    example : (args, kwargs)
        Example inputs: which tensors there are, and of what shape.
    size : int, optional
        Largest batch. Default: 128 images or 32 other inputs, fewer if they are large.
    labelled : bool
        Whether labels are wanted, too: of a tuple the entry after the inputs, of a mapping that
        named labels.
    ranks : Ranks
        Each with its own part of the inputs, or with none.

    Returns
    -------
    Calibration
        Each part in batches of at most two sizes; half precision becomes float32.

    Raises
    ------
    TypeError
        Not inputs, nor an iterable of them.
    ValueError
        No inputs, of another shape than the example's, or not finite.
    """
    with ranks.agree():
        whole, labels_given = _columns(model, calibrate, example, labelled=labelled)
    shapes = [list(tensor.shape[1:]) for tensor in whole]
    ranks.require_same(**{"the shape of an input": shapes})
    counts = torch.cat(ranks.gather(torch.tensor([len(whole[0])]))).tolist()
    if not sum(counts):
        raise ValueError("calibrate is empty: it must give at least one batch of inputs")
    if size is None:
        elements = max(1, sum(math.prod(tensor.shape[1:]) for tensor in whole))
        most = _MOST_IMAGES if all(tensor.dim() >= 4 for tensor in whole) else _MOST
        size = min(most, max(2, _MOST_ELEMENTS // elements))  # one alone has no variance
    if labelled:
        whole.append(_joined(labels_given, ranks))
    index = torch.arange(sum(counts))
    held_back = index % _HELD_BACK == _HELD_BACK - 1
    if len(index) < _FEWEST:
        held_back[:] = False
    device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def batches(part: Tensor, *, late: bool) -> tuple[Batches, tuple[Tensor, ...]]:
        shares = deal(split(index[part], size), ranks.size, late=late)
        own = shares[ranks.rank]
        sizes = [len(batch) for batch in own.batches]
        columns = [
            torch.split(handed_over(tensor, counts, shares, ranks).to(device), sizes)
            for tensor in whole
        ]
        labels = columns.pop() if labelled else ()
        filled = [fill(example, batch) for batch in zip(*columns, strict=True)]
        return Batches(filled if sizes else (), ranks, stands_in=own.stands_in), labels

    # those who get one more of the former are not the first to get one more of the latter
    fit, labels = batches(~held_back, late=False)
    return Calibration(fit, batches(held_back, late=True)[0], labels)


def _columns(
    model: nn.Module, calibrate: Any, example: Arguments, *, labelled: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """Of each tensor argument all that is given, checked, on the CPU; labels batch by batch."""
    names, likes = slots(model, example)
    if not likes:
        raise ValueError("calibrate needs example inputs with at least one tensor")
    if isinstance(calibrate, (Tensor, Mapping)):
        calibrate = [calibrate]
    if isinstance(calibrate, (str, bytes)) or not isinstance(calibrate, Iterable):
        raise TypeError(
            "calibrate must be a tensor of inputs or an iterable (a DataLoader) of tensors, tuples "
            f"or dicts, got {type(calibrate).__name__}"
        )
    parts: list[list[Tensor]] = [[] for _ in likes]
    labels: list[Tensor] = []
    for number, item in enumerate(calibrate):
        picked = _pick(item, names, number)
        for column, tensor, like in zip(parts, picked, likes, strict=True):
            _check(tensor, like, number)
            column.append(tensor.detach().to("cpu", _exact(like)))
        if labelled:
            labels.append(_labels(item, names, len(picked[0]), number))
    whole = [
        torch.cat([torch.empty((0, *like.shape[1:]), dtype=_exact(like)), *column]).contiguous()
        for column, like in zip(parts, likes, strict=True)
    ]
    count = len(whole[0])
    if any(len(tensor) != count for tensor in whole):
        raise ValueError(
            f"calibrate: the inputs differ in number: {[len(tensor) for tensor in whole]}"
        )
    for tensor in whole:
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor.flatten(1))).any(1).sum())
            raise ValueError(f"calibrate: {bad} of {count} inputs hold NaN or infinity")
    return whole, labels


def _exact(like: Tensor) -> torch.dtype:
    """Of inputs like this one: half precision becomes float32."""
    wide = torch.promote_types(like.dtype, torch.float32)
    return wide if like.is_floating_point() else like.dtype


def with_example(model: nn.Module, calibrate: Any) -> tuple[Any, Any]:
    """Calibration inputs, and one of them as example input."""
    if isinstance(calibrate, (str, bytes)) or not isinstance(calibrate, Iterable):
        raise TypeError(
            "calibrate must be a tensor of inputs or an iterable (a DataLoader) of tensors, tuples "
            f"or dicts, got {type(calibrate).__name__}"
        )
    whole = calibrate if isinstance(calibrate, (Tensor, Mapping)) else list(calibrate)
    if isinstance(whole, list) and not whole:
        raise ValueError("calibrate is empty: it must give at least one batch of inputs")
    first = whole[0] if isinstance(whole, list) else whole
    parameters = inspect.signature(model.forward).parameters
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [
        name
        for name, p in parameters.items()
        if p.default is inspect.Parameter.empty and p.kind not in variadic
    ]
    if isinstance(first, Mapping):
        taken = {k: v[:1] for k, v in first.items() if k in parameters and k != "labels"}
        if not taken or not set(needed) <= set(taken):
            raise ValueError(
                f"calibrate: batch 0 is a dict with the keys {list(first)}, the model's inputs are "
                f"{list(parameters)}; give inputs=, as to analyse"
            )
        return whole, taken
    if isinstance(first, Tensor):
        return whole, first[:1]
    if not isinstance(first, Sequence) or not all(isinstance(x, Tensor) for x in first[:1]):
        raise TypeError(
            "calibrate: batch 0 must be a tensor, a tuple that starts with the inputs or a dict of "
            f"them, got {type(first).__name__}"
        )
    return whole, tuple(value[:1] for value in first[: max(1, len(needed))])


def slots(model: nn.Module, example: Arguments) -> tuple[list[str], list[Tensor]]:
    """Name and example of each tensor argument."""
    args, kwargs = example
    parameters = list(inspect.signature(model.forward).parameters)
    parameters += [f"argument {i}" for i in range(len(parameters), len(args))]
    named = [*zip(parameters, args, strict=False), *kwargs.items()]
    found = [(name, value) for name, value in named if isinstance(value, Tensor)]
    if len(tensors_in(example)) != len(found):
        raise ValueError("calibrate takes no nested inputs; every argument must be a tensor")
    return [name for name, _ in found], [value for _, value in found]


def _pick(item: Any, names: Sequence[str], number: int) -> list[Tensor]:
    if isinstance(item, Tensor):
        item = (item,)
    if isinstance(item, Mapping):
        keys = list(names)
        if len(names) == 1 and names[0] not in item:
            keys = [key for key in _USUAL_KEYS if key in item][:1]
        if not keys or any(key not in item for key in keys):
            raise ValueError(
                f"calibrate: batch {number} is a dict with the keys {list(item)}; the model's "
                f"inputs are {list(names)}"
            )
        item = [item[key] for key in keys]
    if not isinstance(item, Sequence) or not all(
        isinstance(value, Tensor) for value in item[: len(names)]
    ):
        raise TypeError(
            f"calibrate: batch {number} must be a tensor, a tuple that starts with the inputs or a "
            f"dict of them, got {type(item).__name__}"
        )
    if len(item) < len(names):
        raise ValueError(
            f"calibrate: batch {number} holds {len(item)} tensors, the model takes {len(names)}"
        )
    return list(item[: len(names)])


def _labels(item: Any, names: Sequence[str], count: int, number: int) -> Tensor:
    """Those of a batch: int64, float32 or float64."""
    found = None
    if isinstance(item, Mapping):
        keys = (key for key in _LABEL_KEYS if key in item and key not in names)
        found = next((item[key] for key in keys), None)
    elif not isinstance(item, Tensor) and len(item) > len(names):
        found = item[len(names)]
    if found is None:
        raise ValueError(
            f"calibrate: batch {number} has no labels; this method needs batches (inputs, labels), "
            "of one batch [(inputs, labels)], or dicts with 'labels'"
        )
    if not isinstance(found, Tensor):
        raise TypeError(
            f"calibrate: the labels of batch {number} must be a tensor, got {type(found).__name__}"
        )
    if found.dim() == 0 or len(found) != count:
        raise ValueError(
            f"calibrate: batch {number} has {count} inputs and labels of shape "
            f"{tuple(found.shape)}; there must be one for each"
        )
    found = found.detach().cpu()
    if not found.is_floating_point():
        return found.long()
    return found if found.dtype == torch.float64 else found.float()


def _joined(labels: Sequence[Tensor], ranks: Ranks) -> Tensor:
    """Those of all batches; of a rank without any as many as none, of the others' kind."""
    mine = sorted({f"{x.dtype} of shape {tuple(x.shape[1:])}" for x in labels})
    kinds = sorted(
        {kind for text in ranks.gather_text("; ".join(mine)) for kind in text.split("; ")}
    )
    kinds = [kind for kind in kinds if kind]
    if len(kinds) > 1:
        raise ValueError(f"calibrate: labels of an input differ in kind: {', '.join(kinds)}")
    if labels:
        return torch.cat(list(labels))
    dtype, _, shape = kinds[0].removeprefix("torch.").partition(" of shape ")
    sizes = [int(size) for size in shape.strip("(),").split(",") if size]
    return torch.empty((0, *sizes), dtype=getattr(torch, dtype))


def _check(tensor: Tensor, like: Tensor, number: int) -> None:
    if tensor.dim() != like.dim() or tensor.shape[1:] != like.shape[1:]:
        raise ValueError(
            f"calibrate: batch {number} has inputs of shape {tuple(tensor.shape)}; inputs "
            f"has {tuple(like.shape)}, and only the first size may differ"
        )
    if tensor.is_floating_point() != like.is_floating_point():
        raise TypeError(
            f"calibrate: batch {number} is of {tensor.dtype}, inputs of {like.dtype}; "
            "scale and normalise the inputs as for the model"
        )


def fill(example: Arguments, batch: Sequence[Tensor]) -> Arguments:
    """The example's arguments with these tensors."""
    tensors = iter(batch)
    args, kwargs = example
    return (
        tuple(next(tensors) if isinstance(value, Tensor) else value for value in args),
        {k: next(tensors) if isinstance(v, Tensor) else v for k, v in kwargs.items()},
    )
