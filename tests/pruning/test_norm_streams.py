"""Streams that norms read: an approximation that says so, and of which the rest is proved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import networks
import pytest
import torch
from architectures import (
    CASES,
    IMAGE,
    TEXT,
    RmsNorm,
    SeparateAttention,
    TransformerBlock,
    Vit,
    lively,
)
from networks import difference, silenced
from torch import Tensor, nn
from torch.nn import functional as F

from epruner.pruning import Constraints, PruningResult, analyse, load, prune, save
from epruner.pruning.analysis import Analysis
from epruner.pruning.plan.apply import counterpart
from epruner.pruning.plan.plan import Plan


class WidthAttention(nn.Module):
    """Fused attention that works out the width of a head from what it reads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Any:
        n, t, c = x.shape
        qkv = self.qkv(x).reshape(n, t, 3, self.num_heads, c // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(n, t, c))


class PlainNorm(nn.Module):
    """Torch's function with parameters of its own, in the shape of the weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.eps = 1e-5

    def forward(self, x: Tensor) -> Any:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class ChannelNorm(PlainNorm):
    """The channels of a map, by hand."""

    def forward(self, x: Tensor) -> Any:
        x = x - x.mean(1, keepdim=True)
        x = x / torch.sqrt(x.pow(2).mean(1, keepdim=True) + self.eps)
        return x * self.weight[:, None, None] + self.bias[:, None, None]


def rms_block() -> nn.Module:
    """With torch's own RMSNorm."""
    block: Any = TransformerBlock(24, SeparateAttention(24, 4))
    block.norm1, block.norm2 = nn.RMSNorm(24, eps=1e-5), nn.RMSNorm(24, eps=1e-5)
    return block  # type: ignore[no-any-return]


class Words(nn.Module):
    """Words and positions, a block whose norms are functions, logits of a head of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.width = self.embedding_dim = 24
        self.scale = nn.Parameter(torch.ones(24))
        self.words, self.positions = nn.Embedding(40, 24), nn.Embedding(16, 24)
        block: Any = TransformerBlock(24, WidthAttention(24, 4))
        block.norm1, block.norm2 = PlainNorm(24), PlainNorm(24)
        self.block = block
        self.norm, self.head = PlainNorm(24), nn.Linear(24, 40)

    def forward(self, ids: Tensor) -> Any:
        x = self.words(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        x = self.norm(self.block(self.scale * x)).view(-1, self.width)
        return self.head(x).view(*ids.shape, -1)


class Map(nn.Module):
    """Convolutions around a stream that a norm of the kind given reads."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.norm1, self.up, self.down = norm(12), nn.Conv2d(12, 20, 1), nn.Conv2d(20, 12, 1)
        self.norm2, self.head = norm(12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        x = x + self.down(F.gelu(self.up(self.norm1(x))))
        return self.head(self.norm2(x).mean((2, 3)))


@dataclass(frozen=True)
class Case:
    """A network, its inputs, and how many channels of its streams stay."""

    make: Callable[[], nn.Module]
    inputs: Any
    kept: Mapping[str, int]


def published(name: str, **kept: int) -> Case:
    """One of the networks of published shapes."""
    filters = {layer.replace("__", "."): count for layer, count in kept.items()}
    return Case(CASES[name].make, CASES[name].inputs, filters)


STREAMS: dict[str, Case] = {
    "written-width": published("vit-fused-fixed", patches=17),
    "width-of-heads": Case(
        lambda: Vit(lambda: TransformerBlock(24, WidthAttention(24, 4))), IMAGE, {"patches": 13}
    ),
    "torch": published("vit-torch", patches=13),
    "encoder": published("encoder-layer-post", patches=13),
    "rms": Case(lambda: Vit(rms_block), IMAGE, {"patches": 13}),
    "swin": published("swin", patches=11, layers__2__reduction=19),
    "mobilevit": published("mobilevit", into=17),
    "llama": published("llama", layers__0__mlp__down_proj=21),
    "words": Case(Words, TEXT, {"block.fc2": 13}),
    "convnext": Case(networks.ConvNext, IMAGE, {"stem": 7}),
    "channels-first": Case(lambda: Map(ChannelNorm), IMAGE, {"stem": 7}),
    "one-group": Case(lambda: Map(lambda n: nn.GroupNorm(1, n)), IMAGE, {"stem": 7}),
}


@cache
def analysed(name: str) -> tuple[nn.Module, Analysis]:
    """A network and its analysis, which several tests read."""
    torch.manual_seed(0)
    model = lively(STREAMS[name].make())
    return model, analyse(model, STREAMS[name].inputs)


@cache
def narrowed(name: str) -> PruningResult:
    """Only the streams, as they are: no repair."""
    model, analysis = analysed(name)
    return prune(
        model,
        analysis,
        calibrate=[STREAMS[name].inputs],
        method="l1",
        repair="none",
        scope="all",
        constraints=Constraints(n_filters=dict(STREAMS[name].kept)),
    )


def over_those_that_stay(model: nn.Module, plan: Plan) -> nn.Module:
    """The full network: norms are taken over what stays, and nothing reads the rest."""

    def over(kept: Tensor) -> Callable[..., Tensor]:
        def hook(norm: Any, args: tuple[Tensor], output: Tensor) -> Tensor:
            dim = -1 if isinstance(norm, (nn.LayerNorm, nn.RMSNorm, PlainNorm, RmsNorm)) else 1
            dim = 1 if isinstance(norm, ChannelNorm) else dim
            dims = (1, 2, 3) if isinstance(norm, nn.GroupNorm) else (dim,)
            x = args[0].index_select(dim, kept)
            if not isinstance(norm, (RmsNorm, nn.RMSNorm)):
                x = x - x.mean(dims, keepdim=True)
            x = x / (x.square().mean(dims, keepdim=True) + norm.eps).sqrt()
            shape = [-1 if d == dim % x.dim() else 1 for d in range(x.dim())]
            x = x * norm.weight[kept].view(shape)
            if getattr(norm, "bias", None) is not None:
                x = x + norm.bias[kept].view(shape)
            return torch.zeros_like(output).index_copy(dim, kept, x)

        return hook

    full = silenced(counterpart(model, plan.modules), plan)
    for name, module in full.named_modules():
        part = plan.modules.get(f"{name}.weight") or plan.modules.get(name)
        if hasattr(module, "eps") and part is not None and part.out is not None:
            module.register_forward_hook(over(torch.tensor(part.out)))
    return full


@pytest.mark.parametrize("name", STREAMS)
def test_slicing_is_taking_norms_over_what_stays(name: str) -> None:
    case, (model, _), small = STREAMS[name], analysed(name), narrowed(name).model
    for layer, count in case.kept.items():
        assert len(small.get_submodule(layer).weight) == count  # type: ignore[arg-type]
    with torch.no_grad():
        got, whole = small(case.inputs), model(case.inputs)
        expected = over_those_that_stay(model, narrowed(name).plan)(case.inputs)
    assert difference(got, expected) <= 1e-5
    assert difference(got, whole) > 1e-2


@pytest.mark.parametrize("name", STREAMS)
def test_the_saved_network_gives_the_same_bits(name: str, tmp_path: Path) -> None:
    case, result = STREAMS[name], narrowed(name)
    save(result, tmp_path / "small.safetensors")
    loaded = load(case.make().eval(), tmp_path / "small.safetensors")
    with torch.no_grad():
        assert torch.equal(loaded(case.inputs), result.model(case.inputs))


@pytest.mark.parametrize("name", STREAMS)
def test_what_is_counted_is_there(name: str) -> None:
    result = narrowed(name)
    counted = analyse(result.model, STREAMS[name].inputs).costs.totals()
    assert (result.report.after.macs, result.report.after.params) == (counted.macs, counted.params)


def test_a_budget_of_parameters_knows_tables() -> None:
    model, analysis = analysed("words")
    plan = analysis.select(params=0.7, method="l1", scope="all", calibrate=[TEXT])
    params, small = (
        sum(tensor.numel() for tensor in network.parameters())
        for network in (model, plan.apply(model))
    )
    assert 0.68 < small / params <= 0.7


def test_modules_say_how_wide_they_are() -> None:
    swin: Any = narrowed("swin").model
    words: Any = narrowed("words").model
    one_group: Any = narrowed("one-group").model
    assert swin.layers[1].norm2.normalized_shape == (11,)
    assert swin.layers[2].norm.normalized_shape == (44,)
    assert (words.words.embedding_dim, words.width) == (13, 13)
    assert narrowed("words").plan.attributes[""] == {"embedding_dim": (24, 13), "width": (24, 13)}
    assert one_group.norm1.num_channels == 7
    other: Any = CASES["vit-fused-fixed"].make()
    other.norm.normalized_shape = (25,)
    with pytest.raises(
        ValueError, match=r"'norm.normalized_shape\[0\]' from 24 to 17, which this model"
    ):
        narrowed("written-width").plan.apply(other)


def test_an_approximation_has_to_be_asked_for() -> None:
    model, analysis = analysed("llama")
    inner = prune(model, analysis, macs=0.8, calibrate=[TEXT], method="l1", repair="none").report
    alone = prune(model, analysis, macs=0.8, method="l1", repair="none", scope="all").report
    paper = prune(model, analysis, macs=0.8, calibrate=[TEXT], method="paper", scope="all").report
    name = "layers.0.mlp.down_proj"
    why = "'layers.0.input_layernorm' takes a norm over its channels, so that removing some is an"
    for report in (inner, alone, paper):
        (reason,) = (s.reason for s in report.skipped if s.name == name)
        assert reason.startswith(why)
        assert not any("approximation" in note for note in report.notes)
    assert "(norms: scope='all', calibrate=)" in str(analysis)


def test_the_report_says_what_is_not_exact_and_how_far_off_it_is() -> None:
    model, analysis = analysed("width-of-heads")
    images = torch.randn(160, *IMAGE.shape[1:])
    result = prune(
        model,
        analysis,
        calibrate=images,
        scope="all",
        constraints=Constraints(n_filters={"patches": 17}),
    )
    (note,) = (note for note in result.report.notes if "approximation" in note)
    assert "'blocks.0.norm1', 'blocks.0.norm2', 'blocks.1.norm1' and 2 more" in note
    assert result.report.repair is not None
    assert result.report.repair.held_back > 0
    assert result.report.repair.after < 0.5 * result.report.repair.before


def test_what_is_returned_keeps_its_channels() -> None:
    case = CASES["bert"]
    skipped = {s.name: s.reason for s in analyse(case.network(), case.inputs).skipped}
    assert skipped["layer.0.output"] == "its channels are the output of the model"


def test_norms_within_heads_leave_them_whole() -> None:
    class Normed(WidthAttention):
        def __init__(self) -> None:
            super().__init__(24, 4)
            self.norm = nn.LayerNorm(6)

        def forward(self, x: Tensor) -> Any:
            q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.num_heads, 6).unbind(2)
            y = F.scaled_dot_product_attention(
                *(part.transpose(1, 2) for part in (self.norm(q), self.norm(k), v))
            )
            return self.proj(y.transpose(1, 2).flatten(2))

    torch.manual_seed(0)
    model = lively(Vit(lambda: TransformerBlock(24, Normed())))
    groups = {g.name: g for g in analyse(model, IMAGE).groups}
    assert groups["blocks.0.attn.qkv"].channels == 4
    assert not groups["blocks.0.attn.qkv"].norms
    assert len(groups["patches"].norms) == 5


def test_one_norm_of_different_channels_keeps_them() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(6, 12), nn.Linear(6, 12)
            self.norm = nn.LayerNorm(12, elementwise_affine=False)
            self.hidden, self.head = nn.Linear(24, 12), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Any:
            x = torch.cat([self.norm(self.one(x)), self.norm(self.other(x))], -1)
            return self.head(self.hidden(x).relu())

    torch.manual_seed(0)
    skipped = {s.name: s.reason for s in analyse(Twice().eval(), (4, 6)).skipped}
    assert skipped["one"] == "'norm' takes norms over different channels"
