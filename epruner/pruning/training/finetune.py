"""A small helper for training a pruned network on: a baseline, not a framework."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal
from zlib import crc32

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from epruner._files import check_target
from epruner._progress import Row, open_display
from epruner.pruning.network.ranks import ALONE, Ranks, ranks_of
from epruner.pruning.training.descent import Descent
from epruner.pruning.training.distill import divergence

if TYPE_CHECKING:
    import torch.distributed as dist

# What is added to the loss, from the model, and the scores and labels of a batch.
Regularizer = Callable[[nn.Module, Tensor, Tensor], Tensor]
_FORMAT = 2
_END = object()


@dataclass(frozen=True)
class Epoch:
    """One pass over the training set.

    Parameters
    ----------
    epoch : int
        From 1.
    loss : float
        Mean over the images.
    accuracy : float or None
        Share of the evaluation set that is classified correctly, if there is one.

    Examples
    --------
    >>> import epruner, torch
    >>> batches = [(torch.randn(32, 8), torch.arange(32) % 2)]
    >>> (epoch,) = epruner.finetune(torch.nn.Linear(8, 2), batches, epochs=1)
    >>> epoch.epoch, epoch.accuracy  # there was nothing to evaluate on
    (1, None)
    """

    epoch: int
    loss: float
    accuracy: float | None


def finetune(
    model: nn.Module,
    train_loader: Iterable[Any],
    *,
    epochs: int = 10,
    optimizer: Literal["sgd", "adamw"] = "sgd",
    lr: float | None = None,
    weight_decay: float = 5e-4,
    schedule: Literal["cosine", "step"] = "cosine",
    label_smoothing: float = 0.0,
    teacher: nn.Module | None = None,
    distill: float = 0.5,
    temperature: float = 4.0,
    regularizer: Regularizer | None = None,
    eval_loader: Iterable[Any] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    amp: bool | None = None,
    progress: bool = False,
    group: dist.ProcessGroup | None = None,
) -> list[Epoch]:
    """Train a classifier, in place; over the ranks of a process group, if one is given.

    Parameters
    ----------
    model : torch.nn.Module
        From inputs (n, ...) to scores (n, classes), on the device to train on.
    train_loader : iterable of (inputs, labels)
        Gone through once an epoch; needs a length. Before each epoch it, its `sampler` and its
        `batch_sampler` are told the number of those done, where they have `set_epoch`. Over ranks
        every rank's own part, of as many batches: what is learned is the mean over the inputs of
        all ranks.
    epochs : int
        At least 1.
    optimizer : {"sgd", "adamw"}
        SGD with Nesterov momentum 0.9, or AdamW.
    lr : float, optional
        Default 0.02 for SGD, 1e-3 for AdamW.
    weight_decay : float
        Not applied to biases and norm parameters.
    schedule : {"cosine", "step"}
        Down to zero over all steps, or a tenth after half and after three quarters of them.
    label_smoothing : float in [0, 1)
        What of a label's weight goes to all classes.
    teacher : torch.nn.Module, optional
        The unpruned network; its softened scores are learned beside the labels.
    distill : float in [0, 1]
        Weight of the teacher's scores against the labels.
    temperature : float
        Of the softening.
    regularizer : callable, optional
        From the model, the scores (n, classes) and the labels (n,) of a batch to a scalar that is
        added to the loss. Before each epoch it is told the number of those done, where it has
        `set_epoch`.
    eval_loader : iterable of (inputs, labels), optional
        Accuracy is measured on it after each epoch. Over ranks every rank's own part.
    checkpoint : path-like, optional
        Written after each epoch; a run that finds it goes on from there. Over ranks written by
        rank 0 and read by all, with torch's random state of each.
    amp : bool, optional
        Mixed precision. Default: on a GPU only.
    progress : bool
        Show a progress bar on standard error; over ranks rank 0 does.
    group : torch.distributed.ProcessGroup, optional
        Every rank calls this function with the same model and options. Gradients are averaged by
        `torch.nn.parallel.DistributedDataParallel`, to which every step has to use the same
        parameters; BatchNorm layers normalise by the whole batch. The weights of rank 0 are those
        that all start from, and what is returned is the same on all. Default: this process alone.

    Returns
    -------
    list of Epoch
        Those of earlier runs from the checkpoint included.

    Raises
    ------
    ValueError
        An option out of range, labels of another number than inputs, a checkpoint of another
        network or recipe. Over ranks also models, options or numbers of batches that differ, and
        what is wrong on one of them is raised on all.
    TypeError
        `regularizer` is no function.
    FloatingPointError
        The loss became NaN or infinite.
    RankError
        A rank was lost.

    Examples
    --------
    >>> import epruner, torch
    >>> from torch import nn
    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> inputs = torch.randn(256, 8)
    >>> loader = DataLoader(TensorDataset(inputs, (inputs[:, 0] > 0).long()), batch_size=32)
    >>> history = epruner.finetune(nn.Linear(8, 2), loader, epochs=3, eval_loader=loader)
    >>> [epoch.epoch for epoch in history], history[-1].loss < history[0].loss
    ([1, 2, 3], True)
    """
    ranks = ranks_of(group)
    with ranks.agree():
        if optimizer not in ("sgd", "adamw"):
            raise ValueError(f"optimizer must be 'sgd' or 'adamw', got {optimizer!r}")
        if schedule not in ("cosine", "step"):
            raise ValueError(f"schedule must be 'cosine' or 'step', got {schedule!r}")
        if type(epochs) is not int or epochs < 1:
            raise ValueError(f"epochs must be a positive integer, got {epochs!r}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing!r}")
        if not 0 <= distill <= 1:
            raise ValueError(f"distill must be in [0, 1], got {distill!r}")
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature!r}")
        if regularizer is not None and not callable(regularizer):
            raise TypeError(
                "regularizer must be a function of (model, scores, labels), got "
                f"{regularizer!r:.80}"
            )
        if not isinstance(train_loader, Sized) or not len(train_loader):
            raise ValueError("train_loader must have a length of at least 1")
        length = len(train_loader)
        steps = epochs * length
        descent = Descent(
            model, steps, optimizer=optimizer, lr=lr, weight_decay=weight_decay,
            schedule=schedule, amp=amp, ranks=ranks,
        )  # fmt: skip
        path = None if checkpoint is None else check_target(checkpoint)
    device = descent.device
    found = path is not None and path.exists()
    recipe: dict[str, Any] = {
        "epochs": epochs,
        "steps": steps,
        "optimizer": optimizer,
        "lr": descent.lr,
        "weight_decay": weight_decay,
        "schedule": schedule,
        "label_smoothing": label_smoothing,
        "distill": None if teacher is None else distill,
        "temperature": None if teacher is None else temperature,
        **({} if regularizer is None else {"regularizer": _name_of(regularizer)}),
        "number of ranks": ranks.size,
    }
    same = {"model": _outline(model), "len(train_loader)": length, **recipe, "amp": amp}
    same["teacher"] = None if teacher is None else _outline(teacher)
    same["eval_loader"] = None if eval_loader is None else "given"
    same["checkpoint"] = path and ("found" if found else "not found")
    ranks.require_same(**same)
    parts = {"model": model, **descent.parts}
    history: list[Epoch] = []
    if path is not None and found:
        with ranks.agree():
            history = _resume(path, parts, recipe, ranks)
    if teacher is not None:
        teacher = teacher.to(device).eval()
    forward = ranks.replica(model)

    def loss_of(inputs: Tensor, labels: Tensor) -> Tensor:
        scores = forward(inputs)
        loss = F.cross_entropy(scores, labels, label_smoothing=label_smoothing)
        if teacher is not None:
            with torch.no_grad():
                wanted = teacher(inputs)
            loss = (1 - distill) * loss + distill * divergence(scores, wanted, temperature)
        if regularizer is None:
            return loss
        term = regularizer(model, scores, labels)
        if not isinstance(term, Tensor) or term.numel() != 1:
            raise ValueError(f"regularizer must return a scalar tensor, got {term!r:.80}")
        return loss + term.sum()

    was_training = model.training
    done, left, begun = 0, steps - len(history) * length, monotonic()
    with closing(open_display(progress and ranks.rank == 0)) as display, ranks.together():
        for epoch in range(len(history) + 1, epochs + 1):
            model.train()
            total = seen = 0.0
            samplers = (getattr(train_loader, x, None) for x in ("sampler", "batch_sampler"))
            _set_epoch(epoch - 1, train_loader, *samplers, regularizer)
            for inputs, labels in _batches(train_loader, length, device, ranks):
                try:
                    value = descent.step(partial(loss_of, inputs, labels), len(labels))
                except FloatingPointError as error:
                    raise FloatingPointError(f"epoch {epoch}: {error}") from None
                total, seen = total + value * len(labels), seen + len(labels)
                done += 1
                facts = (f"epoch {epoch}", f"loss {value:.3f}")
                display.show([Row("fine-tuning", done, left, facts=facts, begun=begun)])
            total, seen = _summed(ranks, total, seen)
            accuracy = None if eval_loader is None else evaluate(model, eval_loader, ranks)
            history.append(Epoch(epoch, total / max(seen, 1), accuracy))
            if path is not None:
                _write(path, parts, recipe, history, ranks)
    model.train(was_training)
    return history


def _set_epoch(done: int, *parts: Any) -> None:
    for part in parts:
        if hasattr(part, "set_epoch"):
            part.set_epoch(done)


def _name_of(regularizer: Regularizer) -> str:
    """With its settings, where it tells them; without addresses, which change with every run."""
    name = getattr(regularizer, "__qualname__", None) or repr(regularizer)
    return re.sub(r" at 0x[0-9a-f]+", "", name)


def _batches(
    loader: Iterable[Any], length: int, device: torch.device, ranks: Ranks
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of an epoch: on all ranks as many, or an error on all."""
    with ranks.agree():
        batches = iter(loader)
    for number in count():
        with ranks.agree():
            batch = next(batches, _END)
            if ranks.size > 1 and (batch is _END) != (number == length):
                gave = number if batch is _END else "more"
                raise ValueError(
                    f"train_loader has a length of {length} and gave {gave} batches: all ranks "
                    "must take as many steps"
                )
            pair = None if batch is _END else labelled(batch, device)
        if pair is None:
            return
        yield pair


@torch.no_grad()
def evaluate(model: nn.Module, loader: Iterable[Any], ranks: Ranks = ALONE) -> float:
    """Share of labelled inputs that a classifier gets right.

    Parameters
    ----------
    model : torch.nn.Module
        Run in eval mode, left in the mode it was in.
    loader : iterable of (inputs, labels)
    ranks : Ranks
        Those that have a part of the inputs each.

    Raises
    ------
    ValueError
        Labels of another number than inputs, or none at all.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    right = seen = 0
    try:
        with ranks.agree():
            for batch in loader:
                inputs, labels = labelled(batch, device)
                right += int((model(inputs).argmax(1) == labels).sum())
                seen += len(labels)
    finally:
        model.train(was_training)
    right, seen = map(int, _summed(ranks, right, seen))
    if not seen:
        raise ValueError("the labelled set is empty")
    return right / seen


def labelled(batch: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """Inputs and labels of a batch, on a device.

    Raises
    ------
    TypeError, ValueError
        Not a pair of tensors, or of different lengths.
    """
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise TypeError(f"a batch must be a pair (inputs, labels), got {type(batch).__name__}")
    inputs, labels = batch
    if not isinstance(inputs, Tensor) or not isinstance(labels, Tensor):
        raise TypeError("a batch must be a pair of tensors (inputs, labels)")
    if labels.dim() != 1 or len(inputs) != len(labels):
        raise ValueError(
            f"{len(inputs)} inputs and labels of shape {tuple(labels.shape)} in a batch; there "
            "must be one class number for each input"
        )
    return inputs.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def _summed(ranks: Ranks, *numbers: float) -> list[float]:
    """Numbers added up over ranks."""
    found: list[float] = ranks.total(torch.tensor(numbers, dtype=torch.float64))[0].tolist()
    return found


def _outline(model: nn.Module) -> str:
    """What must be the same of the models of all ranks, in short."""
    tensors = [
        f"{name} {tuple(p.shape)} {p.dtype} {p.requires_grad}"
        for name, p in model.named_parameters()
    ]
    count = sum(p.numel() for p in model.parameters())
    return f"{type(model).__name__}, {count:,} parameters, {crc32('; '.join(tensors).encode()):08x}"


def _write(
    path: Path,
    parts: dict[str, Any],
    recipe: dict[str, Any],
    history: list[Epoch],
    ranks: Ranks,
) -> None:
    device = next(parts["model"].parameters()).device
    random = ranks.gather(_random_state(device))
    with ranks.agree():
        if ranks.rank:
            return
        state = {name: part.state_dict() for name, part in parts.items()}
        state["scheduler"].pop("lr_lambdas", None)
        record = {"format": _FORMAT, "recipe": recipe, "history": [asdict(e) for e in history]}
        record |= state | {"rng": random}
        temporary = path.with_name(path.name + ".part")
        torch.save(record, temporary)
        temporary.replace(path)


def _resume(path: Path, parts: dict[str, Any], recipe: dict[str, Any], ranks: Ranks) -> list[Epoch]:
    try:
        record = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path} is not a checkpoint of finetune ({type(error).__name__})"
        ) from error
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        raise ValueError(f"{path} is not a checkpoint of finetune")
    if record["recipe"] != recipe:
        keys = dict.fromkeys((*recipe, *record["recipe"]))
        changed = [key for key in keys if record["recipe"].get(key) != recipe.get(key)]
        raise ValueError(
            f"{path} is from a run with another {', '.join(changed)}; give the same options or "
            "another checkpoint"
        )
    record["scheduler"]["lr_lambdas"] = [None] * len(parts["scheduler"].lr_lambdas)
    try:
        for name, part in parts.items():
            part.load_state_dict(record[name])
    except (RuntimeError, KeyError) as error:
        first = str(error).partition("\n")[0]
        raise ValueError(f"{path} is from a run of another network ({first})") from error
    _set_random_state(record["rng"][ranks.rank], next(parts["model"].parameters()).device)
    return [Epoch(**entry) for entry in record["history"]]


def _random_state(device: torch.device) -> Tensor:
    """Of the CPU, and of the device if it is a card, one behind the other."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return torch.cat(states)


def _set_random_state(state: Tensor, device: torch.device) -> None:
    size = len(torch.get_rng_state())
    torch.set_rng_state(state[:size])
    if len(state) > size:
        torch.cuda.set_rng_state(state[size:], device)
