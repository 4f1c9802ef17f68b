"""What stays whole is named with the true reason: a network for each."""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

import pytest
import torch
from conftest import ROOT
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from epruner.pruning import Constraints, analyse, prune

IMAGE = torch.linspace(-1, 1, 3 * 8 * 8).view(1, 3, 8, 8)


class Net(nn.Module):
    """Layers by name, and how they are called.

    Unless other ones are given: two convolutions with something between them, and a head.
    """

    def __init__(self, forward: Callable[..., Any], **layers: Any) -> None:
        super().__init__()
        for name, layer in layers.items():
            if isinstance(layer, Tensor) and not isinstance(layer, nn.Parameter):
                self.register_buffer(name, layer)
            else:
                setattr(self, name, layer)
        self.called = forward

    def forward(self, *x: Tensor) -> Any:
        return self.called(self, *x)


def conv(inputs: int, outputs: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1, **options)


def between(function: Callable[..., Any], made: int = 16, read: int = 16, **layers: Any) -> Net:
    """A convolution, something with what it gives, and another one that reads the result."""

    def forward(net: Any, x: Tensor) -> Any:
        x = net.first(x)
        return net.second(function(net, x) if layers else function(x))

    return Net(forward, first=conv(3, made), second=conv(read, 3), **layers)


def written(x: Tensor) -> Tensor:
    y = torch.zeros(1, 16, 8, 8)
    y[:, :8] = x[:, :8]
    return y


def put(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, torch.tensor([1, 3])] = torch.ones(2, 8, 8)
    return x


def interleaved(net: Any, x: Tensor) -> Any:
    """Each channel times each of another layer."""
    pairs = net.first(x)[:, :, None] * net.beside(x)[:, None]
    return net.second(pairs.flatten(1, 2))


def arranged(x: Tensor) -> Tensor:
    """In rows of three, and of two."""
    rows = (x.view(1, size, -1, 8, 8).tanh().flatten(1, 2) for size in (2, 3))
    return torch.stack([*rows]).sum(0)


def counted(x: Tensor) -> Tensor:
    return x / x.shape[1]


class Part(nn.Conv2d):
    """A convolution of a part of what it says it reads."""

    def forward(self, x: Tensor) -> Any:
        return F.conv2d(x, self.weight[:, : x.shape[1]])


class SpatialGate(nn.Module):
    """A gate for every position, made of all channels (Woo et al., 2018)."""

    def forward(self, x: Tensor) -> Any:
        return torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1).prod(1, True)


class Sparing(nn.Module):
    """Runs a layer only where there are many channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.also, self.second = conv(3, 16), conv(3, 3), conv(16, 3)

    def forward(self, x: Tensor) -> Any:
        y = self.first(x)
        return self.second(y) + (self.also(x) if y.shape[1] > 12 else 0)


def sequence(function: Callable[..., Any], width: int, **layers: Any) -> Net:
    """A convolution whose positions are a sequence, and a linear layer of what comes of it."""

    def forward(net: Any, x: Tensor) -> Any:
        return net.last(function(net, net.first(x).flatten(2).transpose(1, 2), x)[0])

    return Net(forward, first=conv(3, 8), last=nn.Linear(width, 2), **layers)


def with_lstm() -> nn.Module:
    lstm = nn.LSTM(8, 8, proj_size=4, batch_first=True)
    return sequence(lambda net, y, _: net.lstm(y), 4, lstm=lstm)


def with_more_keys() -> nn.Module:
    attention = nn.MultiheadAttention(8, 2, add_bias_kv=True, batch_first=True)
    return sequence(lambda net, y, _: net.attention(y, y, y), 8, attention=attention)


def started() -> nn.Module:
    gru = nn.GRU(8, 6, batch_first=True)
    return sequence(lambda net, y, x: net.gru(y, x[None, :, 0, 0, :6].clone()), 6, gru=gru)


def in_heads() -> nn.Module:
    """One scale on what lies within heads, and on the channels of another layer."""

    def forward(net: Any, x: Tensor) -> Any:
        heads = net.first(x).unflatten(1, (4, 6)) * net.scale
        return net.last(heads.flatten(1, 2)) + net.end(net.other(x) * net.scale)

    return Net(
        forward, first=conv(3, 24), other=conv(3, 6), last=conv(24, 2), end=conv(6, 2),
        scale=nn.Parameter(torch.rand(6, 1, 1)),
    )  # fmt: skip


def mirrored(norm: nn.Module, width: int) -> nn.Module:
    """The same layer reads the channels in either order."""

    def forward(net: Any, x: Tensor) -> Any:
        y = net.norm(net.first(x))
        return net.second(y) + net.second(y.flip(1))

    return Net(forward, first=conv(3, width), norm=norm, second=conv(width, 3))


def tied() -> nn.Module:
    second, third = conv(16, 16), conv(16, 16)
    third.weight = second.weight
    return Net(
        lambda net, x: net.third(net.second(net.first(x)).relu()),
        first=conv(3, 16), second=second, third=third,
    )  # fmt: skip


def scaled_twice() -> nn.Module:
    scale = nn.Parameter(torch.ones(16, 1, 1))
    inner = Net(lambda net, x: x * net.scale, scale=scale)
    return between(lambda net, x: net.inner(x) * net.scale, scale=scale, inner=inner)


def norm_of_two() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Any:
        y = net.norm(net.one(x.permute(0, 2, 3, 1)))
        return net.last(y) + net.end(net.norm(net.two(x.permute(0, 2, 3, 1))))

    return Net(
        forward, one=nn.Linear(3, 16), two=nn.Linear(3, 16), last=nn.Linear(16, 2),
        end=nn.Linear(16, 2), norm=nn.LayerNorm(16, elementwise_affine=False),
    )  # fmt: skip


TRIAL = "the network does not run without some of its channels"
CASES: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    # network, layer, its whole reason
    "output": (
        lambda: Net(lambda net, x: {"y": net.first(x)}, first=conv(3, 16)),
        "first", r"its channels are the output of the model",
    ),
    "different-norms": (norm_of_two, "one", "'norm' takes norms over different channels"),
    "layer-norm": (
        lambda: between(lambda net, x: net.norm(x), norm=nn.LayerNorm((16, 8, 8))),
        "first", "its channels are mixed in 'norm': LayerNorm runs along them",
    ),
    "group-norm": (
        lambda: between(
            lambda net, x: net.norm(x.transpose(1, 2)).transpose(1, 2),
            norm=Net(lambda net, x: F.group_norm(x, 2)),
        ),
        "first", "its channels are mixed in 'norm': GroupNorm runs along them",
    ),
    "groups-of-a-norm": (
        lambda: mirrored(nn.GroupNorm(2, 4), 4), "first", "GroupNorm 'norm' mixes its channels",
    ),
    "projection": (with_lstm, "lstm", "LSTM 'lstm' mixes its channels"),
    "before-a-projection": (with_lstm, "first", "LSTM 'lstm' mixes its channels"),
    "more-keys": (
        with_more_keys, "first", "MultiheadAttention 'attention' mixes its channels",
    ),
    "mean": (
        lambda: between(lambda x: x - x.mean(1, keepdim=True)),
        "first", r"its channels are mixed: one number is made of them \(mean\)",
    ),
    "length": (
        lambda: between(lambda x: F.normalize(x, dim=1)),
        "first", r"its channels are mixed: one number is made of them \(linalg_vector_norm\)",
    ),
    "gate-of-positions": (
        lambda: between(lambda net, x: net.gate(x) * x, gate=SpatialGate()),
        "first", r"its channels are mixed in 'gate': one number is made of them \(mean\)",
    ),
    "softmax": (
        lambda: between(lambda x: x.softmax(1)),
        "first", "its channels are mixed: softmax runs along them",
    ),
    "largest": (
        lambda: between(lambda x: x.topk(3, 1)[0], read=3),
        "first", "its channels are mixed: topk runs along them",
    ),
    "frequencies": (
        lambda: between(lambda x: torch.fft.rfft(x, dim=1).abs(), read=9),
        "first", "its channels are mixed: fft_r2c runs along them",
    ),
    "second-smallest": (
        lambda: between(lambda x: x * x.kthvalue(2, 1, keepdim=True)[0]),
        "first", r"its channels are mixed: one number is made of them \(kthvalue\)",
    ),
    "attention": (
        lambda: between(
            lambda x: F.scaled_dot_product_attention(*[x.flatten(2)[:, None]] * 3).view(x.shape)
        ),
        "first", "its channels are mixed: attention runs along them",
    ),
    "complex": (
        lambda: between(
            lambda x: torch.view_as_complex(x.movedim(1, -1).contiguous()).abs()[:, None],
            made=2, read=1,
        ),
        "first", "its channels are the parts of complex numbers",
    ),
    "product": (
        lambda: between(lambda x: (x.movedim(1, -1) @ torch.ones(16, 16)).movedim(-1, 1)),
        "first", "its channels are summed in a matrix product, outside of a layer",
    ),
    "unknown": (
        lambda: between(lambda x: x.unfold(1, 2, 2).sum(-1), read=8),
        "first", "its channels pass 'unfold', which may not keep them apart",
    ),
    "bytes": (
        lambda: between(lambda x: x.view(torch.int32).view(torch.float32)),
        "first", "its channels pass 'view', which may not keep them apart",
    ),
    "strided": (
        lambda: between(lambda x: x.as_strided((1, 16, 8, 8), (1024, 1, 128, 16))),
        "first", "its channels pass 'as_strided', which may not keep them apart",
    ),
    "put": (
        lambda: between(put),
        "first", "its channels pass 'index_put', which may not keep them apart",
    ),
    "padded": (
        lambda: Net(
            lambda net, x: net.third(F.pad(net.first(x), (0, 0, 0, 0, 2, 2)) + net.second(x)),
            first=conv(3, 4), second=conv(3, 8), third=conv(8, 2),
        ),
        "second", "a shortcut pads its channels with zeros, which fixes their positions",
    ),
    "cropped": (
        lambda: between(lambda x: F.pad(x, (0, 0, 0, 0, -2, -2)), read=12),
        "first", "its channels are cropped",
    ),
    "constant": (
        lambda: between(lambda x: x * torch.arange(16.0)[:, None, None]),
        "first", "its channels meet a tensor of fixed size",
    ),
    "added": (
        lambda: Net(
            lambda net, x: net.second(net.first(x) + x), first=conv(3, 3), second=conv(3, 4)
        ),
        "first", "its channels are added to the model's input and must keep their number and order",
    ),
    "combined": (
        lambda: Net(
            lambda net, x: net.second(net.first(x) * x), first=conv(3, 3), second=conv(3, 4)
        ),
        "first",
        "its channels are combined with the model's input and must keep their number and order",
    ),
    "one-by-one": (
        lambda: between(lambda x: torch.stack([x[:, i] for i in (2, 0, 1)], 1), read=3),
        "first", "its channels are picked one by one",
    ),
    "numbers": (
        lambda: between(lambda net, x: x[:, net.order], order=torch.arange(16).flip(0)),
        "first", "its channels are picked by their numbers",
    ),
    "scattered": (
        lambda: between(lambda x: x.scatter(1, torch.zeros(1, 1, 1, 1, dtype=torch.long), 1.0)),
        "first", "its channels are picked by their numbers",
    ),
    "parts": (
        lambda: between(lambda x: torch.cat(x.split([1, 15], 1)[::-1], 1)),
        "first", "its channels are split into parts",
    ),
    "gate": (
        lambda: between(lambda x: F.glu(x, 1), made=2, read=1),
        "first", "its channels gate each other",
    ),
    "nth": (
        lambda: between(lambda x: x[:, ::3], read=6),
        "first", "its channels are taken in steps of 3",
    ),
    "written": (
        lambda: between(written), "first", "its channels are written into a part of a tensor",
    ),
    "positions-of-a-layer": (
        lambda: between(
            lambda net, x: net.along(x.transpose(1, 2)).transpose(1, 2), along=conv(8, 8)
        ),
        "first", "its channels lie where 'along' expects positions",
    ),
    "positions-of-a-pooling": (
        lambda: between(lambda x: F.avg_pool2d(x.movedim(1, -1), 2).movedim(-1, 1), read=8),
        "first", "its channels lie where 'avg_pool2d' expects positions",
    ),
    "places": (
        lambda: Net(
            lambda net, x: net.second(
                F.grid_sample(net.first(x), net.grid(x).movedim(1, -1), align_corners=False)
            ),
            first=conv(3, 8), grid=conv(3, 2), second=conv(8, 2),
        ),
        "grid", "its channels tell 'grid_sampler_2d' where to read",
    ),
    "mirrored": (lambda: mirrored(nn.ReLU(), 2), "first", "all its channels go together"),
    "pair": (
        lambda: between(lambda x: x + x.flip(1), made=2, read=2),
        "first", "all its channels go together",
    ),
    "in-heads": (in_heads, "other", "a parameter on its channels is used within heads, too"),
    "interleaved": (
        lambda: Net(interleaved, first=conv(3, 4), beside=conv(3, 5), second=conv(20, 2)),
        "beside", "its channels are interleaved with those of another layer",
    ),
    "arranged": (
        lambda: between(arranged, made=6, read=6), "first", "its channels are arranged as 2 x 3",
    ),
    "partly": (
        lambda: Net(
            lambda net, x: net.last(net.first(x) + torch.cat([net.second(x), net.third(x)], 1)),
            first=conv(3, 8), second=conv(3, 5), third=conv(3, 3), last=conv(8, 2),
        ),
        "first", "it shares only a part of the channels of 'second'",
    ),
    "some-reach": (
        lambda: between(lambda x: x[:, :6], read=6),
        "first", "only some of its channels reach 'second'",
    ),
    "two-dimensions": (
        lambda: between(
            lambda net, x: x * net.scale, made=8, read=8, scale=nn.Parameter(torch.rand(8, 8, 1))
        ),
        "first", "parameter 'scale' has two dimensions of 8",
    ),
    "shared-scale": (scaled_twice, "first", "parameter '(inner.)?scale' on its channels is shared"),
    "input-read": (
        lambda: Net(
            lambda net, x: net.both(net.first(x)) + net.both(x), first=conv(3, 3), both=conv(3, 4)
        ),
        "first", "'both' reads the model's input",
    ),
    "constant-read": (
        lambda: Net(
            lambda net, x: net.both(net.first(x)) + net.both(torch.arange(192.0).view(1, 3, 8, 8)),
            first=conv(3, 3), both=conv(3, 4),
        ),
        "first", "'both' reads a tensor of fixed size",
    ),
    "state": (started, "gru", "'gru' reads its first state from the model's input"),
    "forward-of-its-own": (
        lambda: between(lambda net, x: net.part(x[:, :8]), made=16, read=4, part=Part(16, 4, 1)),
        "part", "'part' has a forward of its own",
    ),
    "tied": (tied, "first", "the parameters of 'second' are shared with 'third'"),
    "used-outside": (
        lambda: between(lambda net, x: net.also(x) * net.also.weight.mean(), also=conv(16, 16)),
        "also", "the weights of 'also' are used outside of it, too",
    ),
    "computed": (
        lambda: Net(
            lambda net, x: net.second(net.first(x)),
            first=weight_norm(conv(3, 16)), second=conv(16, 3),
        ),
        "first", r"the weights of 'first' are computed \(.*remove it first .*\)",
    ),
    "multiplier": (
        lambda: between(lambda net, x: net.deep(x), read=32, deep=conv(16, 32, groups=16)),
        "deep", "'deep' is a depthwise convolution with a channel multiplier",
    ),
    "grouped-transposed": (
        lambda: between(
            lambda net, x: net.up(x), read=8, up=nn.ConvTranspose2d(16, 8, 2, 2, groups=2)
        ),
        "up", "'up' is a grouped transposed convolution",
    ),
    "not-in-groups": (
        lambda: between(
            lambda net, x: net.mid(F.channel_shuffle(x, 4)), mid=conv(16, 16, groups=2)
        ),
        "first", "its channels do not lie in the groups of 'mid' as they are made",
    ),
    "groups-disagree": (
        lambda: Net(
            lambda net, x: net.last(net.third(net.second(net.first(x)))), first=conv(3, 6),
            second=conv(6, 12, groups=3), third=conv(12, 12, groups=2), last=conv(12, 2),
        ),
        "second", "convolutions of 2 and of 3 groups share its channels",
    ),
    "flattened-groups": (
        lambda: Net(
            lambda net, x: net.last(net.second(net.first(x)).flatten(1)), first=conv(3, 6),
            second=conv(6, 12, groups=3), last=nn.Linear(12 * 64, 2),
        ),
        "second", "'last' reads its flattened channels, which are grouped",
    ),
    "not-run": (
        lambda: Net(lambda net, x: net.second(x), first=conv(3, 4), second=conv(3, 4)),
        "first", "was not run by the example inputs",
    ),
    "one-channel": (lambda: between(torch.relu, made=1, read=1), "first", "it has one channel"),
    "not-read": (
        lambda: Net(
            lambda net, x: (net.first(x).sum(1), net.second(x)), first=conv(3, 4), second=conv(3, 4)
        ),
        "first", "nothing that could be made smaller reads its channels",
    ),
    "counted": (
        lambda: between(counted), "first",
        r"removing its channels does more than silencing them \(as seen in .*\).*",
    ),
    "fixed-view": (
        lambda: between(lambda x: x.view(1, 16, 8, 8)), "first", rf"{TRIAL} \(.*shape.*\)",
    ),
    "fixed-size": (
        lambda: between(lambda x: x * torch.ones(16, 1, 1)),
        "first", rf"{TRIAL}, as they meet a tensor of fixed size \(The size of tensor a .*\)",
    ),
    "fewer-layers": (
        Sparing, "first", "without some of its channels the network runs fewer of its layers",
    ),
    "shape": (
        lambda: Net(
            lambda net, x: (net.second(y := net.first(x)), torch.ones(y.shape[1])),
            first=conv(3, 4), second=conv(4, 4),
        ),
        "first", "the model's output changes its shape with its channels",
    ),
    "vacuous": (
        lambda: between(lambda x: x * 0), "first", "no trial on the example inputs shows that .*",
    ),
}  # fmt: skip


def chain() -> nn.Module:
    return nn.Sequential(conv(3, 8), conv(8, 8), conv(8, 8), conv(8, 2))


def stream(norm: nn.Module) -> nn.Module:
    def forward(net: Any, x: Tensor) -> Any:
        y = net.first(x)
        y = y + net.inner(net.outer(net.norm(y)))
        return net.last(y)

    return Net(
        forward, first=conv(3, 8), norm=norm, outer=conv(8, 9), inner=conv(9, 8), last=conv(8, 2)
    )


def block(after: Callable[[Tensor], Any] = lambda x: x) -> Net:
    return Net(
        lambda net, x: after(x + net.inner(net.outer(x).relu())), outer=conv(4, 6), inner=conv(6, 4)
    )


def blocks(forward: Callable[..., Any], **parts: Any) -> Net:
    """A residual block, and another thing that looks like one."""
    return Net(
        lambda net, x: net.last(forward(net, net.sound(net.first(x)))), first=conv(3, 4),
        sound=block(), last=conv(4, 2), **parts,
    )  # fmt: skip


def halving(layer: str, **options: Any) -> dict[str, Any]:
    constraints = Constraints(n_filters={layer: 0.5})
    return {"constraints": constraints, "method": "l1", "repair": "none"} | options


BLOCKS: dict[str, Any] = {"macs": 0.8, "scope": "blocks", "calibrate": IMAGE.repeat(4, 1, 1, 1)}
NORM = (
    "takes a norm over its channels, so that removing some is an approximation; scope='all' and a "
    "method that learns from calibrate= let them be pruned and repaired"
)
ALL: dict[str, tuple[Callable[[], nn.Module], str, str, dict[str, Any]]] = {
    # network, layer, its whole reason, options of `prune`: none where it is that of `analyse`
    **{name: (*case, {}) for name, case in CASES.items()},
    "ignored": (chain, "1", "ignored on request", halving("0", ignore=["1"])),
    "not-among": (chain, "1", "not among layers", halving("0", layers=["0"])),
    "no-beta": (
        chain, "2", "no pattern of beta matches it", {"beta": {"0": 0.7}, "method": "paper"},
    ),
    "no-number": (
        chain, "2", "no pattern of n_filters matches it", halving("0"),
    ),
    "stream": (
        lambda: stream(nn.ReLU()), "first",
        "several layers add onto its channels; scope='all' prunes them together",
        halving("outer"),
    ),
    "norm-of-a-stream": (
        lambda: stream(nn.GroupNorm(1, 8)), "first",
        f"'norm' {NORM}", halving("outer"),
    ),
    "norm-without-learning": (
        lambda: stream(nn.GroupNorm(1, 8)), "first",
        f"'norm' {NORM}", {"beta": 0.9, "scope": "all", "method": "paper"},
    ),
    "norm-in-the-forward": (
        lambda: Net(
            lambda net, x: net.third(net.second(F.group_norm(net.first(x), 1))),
            first=conv(3, 8), second=conv(8, 8), third=conv(8, 2),
        ),
        "first", f"the model {NORM}", halving("second"),
    ),
    "rectified": (
        lambda: blocks(lambda net, x: net.other(x), other=block(torch.relu)), "other",
        r"no residual block: with its layers silenced it returns something else than what it reads "
        r"\(.*\)",
        BLOCKS,
    ),
    "peeked-at": (
        lambda: blocks(lambda net, x: net.other(x) * net.other.inner.bias.sum(), other=block()),
        "other", r"the network does not run without it \(.*\)", BLOCKS,
    ),
    "numbered": (
        lambda: blocks(
            lambda net, x: net.other(x) * (1 + isinstance(net.other, Net)), other=block()
        ),
        "other", "passing it by does more than silencing what it adds", BLOCKS,
    ),
}  # fmt: skip


@cache
def found(name: str) -> str:
    """Why the layer of a case stays."""
    torch.manual_seed(0)
    make, layer, _, options = ALL[name]
    model = make().eval()
    analysis = analyse(model, IMAGE)
    skipped = prune(model, analysis, **options).report.skipped if options else analysis.skipped
    return {x.name: x.reason for x in skipped}[layer]


@pytest.mark.parametrize("name", ALL)
def test_what_stays_is_named_with_its_reason(name: str) -> None:
    assert re.fullmatch(ALL[name][2], found(name))


def documented() -> list[str]:
    """The reasons in the documentation's table, with * for names, numbers and what is left out."""
    text = (ROOT / "docs" / "pruning" / "what-can-be-pruned.md").read_text(encoding="utf-8")
    rows = text.partition("| reason | when |")[2].partition("\n\n")[0].splitlines()[2:]
    reasons = "; ".join(row.split("|")[1].strip() for row in rows).replace("`", "").split("; ")
    return [re.sub(r" in 'x'|(?<=')\w+(?=')|\d+| ?\.\.\.", "*", reason) for reason in reasons]


def test_the_documentation_lists_these_reasons() -> None:
    listed, told = documented(), [found(name) for name in ALL]
    assert [x for x in told if not any(fnmatchcase(x, pattern) for pattern in listed)] == []
    assert [x for x in listed if not any(fnmatchcase(reason, x) for reason in told)] == []
