"""torch's attention unfolded: the same results in every call, and heads that go."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import difference
from torch import Tensor, nn

import epruner
from epruner.pruning.graph.costs import measure
from epruner.pruning.network.attention import UnfoldedAttention, unfolded
from epruner.pruning.network.copies import owners, tracing_copy
from epruner.pruning.plan.parts import ModulePlan
from epruner.pruning.plan.plan import Plan

L, S, N, HEADS, WIDTH = 5, 7, 3, 4, 24


def attention(**options: Any) -> nn.MultiheadAttention:
    """torch's, with biases that are not zero."""
    made = nn.MultiheadAttention(WIDTH, HEADS, **options)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


def heads_plan(name: str, kept: tuple[int, ...], heads: int = HEADS, width: int = WIDTH) -> Plan:
    """The plan that keeps some heads of one attention."""
    rows = tuple(np.arange(width).reshape(heads, -1)[list(kept)].reshape(-1).tolist())
    modules = {f"{name}.{x}_proj": ModulePlan(out=rows, out_before=width) for x in ("q", "k", "v")}
    modules[f"{name}.out_proj"] = ModulePlan(in_=rows, in_before=width)
    return Plan(modules, {name: {"num_heads": (heads, len(kept))}})


def without_heads(module: nn.MultiheadAttention, gone: tuple[int, ...]) -> nn.MultiheadAttention:
    """torch's attention, whose output projection ignores some heads."""
    silent = copy.deepcopy(module)
    with torch.no_grad():
        silent.out_proj.weight.view(WIDTH, HEADS, -1)[:, list(gone)] = 0
    return silent


DRAW = torch.Generator().manual_seed(0)  # under which no query has all its keys masked: NaN
MASKS: dict[str, dict[str, Any]] = {
    "none": {},
    "bool": {"attn_mask": torch.rand(L, S, generator=DRAW) < 0.3},
    "float": {"attn_mask": torch.randn(L, S, generator=DRAW)},
    "by head": {"attn_mask": torch.rand(N * HEADS, L, S, generator=DRAW) < 0.3},
    "padding": {"key_padding_mask": torch.arange(S) >= torch.tensor([[4], [S], [2]])},
    "both": {
        "attn_mask": torch.randn(N * HEADS, L, S, generator=DRAW),
        "key_padding_mask": torch.randn(N, S, generator=DRAW),
    },
}


@torch.no_grad()
@pytest.mark.parametrize("needs", [False, True, "by head"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_first": True},
        {"bias": False, "kdim": 10, "vdim": 6},
        {"dropout": 0.5, "batch_first": True},
    ],
    ids=["plain", "batch first", "other widths", "dropout"],
)
def test_the_same_in_every_call(options: dict[str, Any], mask: str, needs: bool | str) -> None:
    whole = attention(**options)
    parts: Any = unfolded(copy.deepcopy(whole))
    assert isinstance(parts, UnfoldedAttention)
    shapes = [(L, N, WIDTH), (S, N, whole.kdim), (S, N, whole.vdim)]
    tensors = [torch.randn(shape) for shape in shapes]
    if whole.batch_first:
        tensors = [x.transpose(0, 1) for x in tensors]
    call = {**MASKS[mask], "need_weights": bool(needs), "average_attn_weights": needs is True}
    results = []
    for module in (whole, parts):
        torch.manual_seed(0)
        results.append(module(*tensors, **call))
    (expected, their), (got, mine) = results
    assert difference(got, expected) <= 1e-5
    assert (mine is None) == (their is None) == (not needs)
    if needs:
        assert mine.shape == their.shape
        assert difference(mine, their) <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("needs", [False, True])
def test_unbatched_and_causal(needs: bool) -> None:
    whole = attention()
    parts: Any = unfolded(copy.deepcopy(whole))
    x = torch.randn(L, WIDTH)
    call: dict[str, Any] = {
        "attn_mask": nn.Transformer.generate_square_subsequent_mask(L),
        "is_causal": True,
        "need_weights": needs,
    }
    for more in (
        {},
        {"key_padding_mask": torch.zeros(L).masked_fill(torch.arange(L) > 3, -torch.inf)},
    ):
        results = [module(x, x, x, **call, **more) for module in (whole, parts)]
        for expected, got in zip(*results, strict=True):
            if expected is not None:
                assert got.shape == expected.shape
                assert difference(got, expected) <= 1e-5
    with pytest.raises(ValueError, match="give attn_mask"):
        parts(x, x, x, is_causal=True)


@pytest.mark.parametrize("options", [{"add_bias_kv": True}, {"add_zero_attn": True}], ids=str)
def test_what_adds_keys_stays_whole(options: dict[str, bool]) -> None:
    assert type(unfolded(attention(**options))) is nn.MultiheadAttention
    plan = heads_plan("0", (0, 2))
    with pytest.raises(ValueError, match=r"'0\.q_proj'"):
        plan.apply(nn.Sequential(attention(**options)))


def refuse(*_: object) -> None:
    """A hook."""
    raise NotImplementedError("hooked")


def test_what_is_shared_stays_shared_and_flags_stay() -> None:
    first, tied = attention(), attention()
    tied.in_proj_weight = first.in_proj_weight
    first.in_proj_weight.requires_grad_(False)
    model = nn.ModuleDict({"a": first, "b": nn.Sequential(first), "c": tied}).double()
    model["a"].eval()
    first.register_forward_pre_hook(refuse)
    got: Any = unfolded(copy.deepcopy(model))
    assert got["a"] is got["b"][0]
    assert [got[x].k_proj.training for x in "ac"] == [False, True]
    assert [x.requires_grad for x in (got["a"].v_proj.weight, got["a"].v_proj.bias)] == [
        False,
        True,
    ]
    assert {x.dtype for x in got.parameters()} == {torch.float64}
    assert {tuple(names) for names in owners(got).values() if len(names) > 1} == {
        (f"a.{x}_proj", f"c.{x}_proj") for x in "qkv"
    }
    names = [name for name, _ in got["a"].named_children()]
    assert names == ["q_proj", "k_proj", "v_proj", "out_proj"]
    with pytest.raises(NotImplementedError, match="hooked"):
        pickle.loads(pickle.dumps(got))["b"](torch.zeros(1))


def test_the_copy_to_trace_is_unfolded() -> None:
    model = nn.Sequential(attention(), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    model.half()
    traced: Any = tracing_copy(model)[0]
    assert isinstance(traced[0], UnfoldedAttention)
    assert not traced.training
    assert {x.dtype for x in traced.parameters()} == {torch.float32}


@torch.no_grad()
@torch.no_grad()
def test_heads_go() -> None:
    whole = attention(batch_first=True, dropout=0.1).eval()
    model = nn.Sequential(whole)
    small: Any = heads_plan("0", (0, 3)).apply(model).get_submodule("0")
    assert model[0] is whole
    assert type(whole) is nn.MultiheadAttention
    assert (small.num_heads, small.head_dim, small.embed_dim) == (2, 6, WIDTH)
    assert small.q_proj.weight.shape == (12, WIDTH)
    assert small.out_proj.weight.shape == (WIDTH, 12)
    silent, x = without_heads(whole, (1, 2)), torch.randn(N, L, WIDTH)
    assert difference(small(x, x, x)[0], silent(x, x, x)[0]) <= 1e-5
    projected = heads_plan("0", (0, 3)).apply(model, init="random_projection")
    assert torch.equal(projected.get_parameter("0.q_proj.weight"), small.q_proj.weight)
    assert not torch.equal(projected.get_parameter("0.out_proj.weight"), small.out_proj.weight)
    mask = torch.randn(N, HEADS, L, L)
    expected = silent(x, x, x, attn_mask=mask.flatten(0, 1))[0]
    got = small(x, x, x, attn_mask=mask[:, [0, 3]].flatten(0, 1))[0]
    assert difference(got, expected) <= 1e-5
    with pytest.raises(RuntimeError, match="invalid for input"):  # a mask for heads that are gone
        small(x[:1], x[:1], x[:1], attn_mask=mask[0])


class Seq2Seq(nn.Module):
    """torch's encoder and decoder."""

    def __init__(self) -> None:
        super().__init__()
        options: dict[str, Any] = {"dim_feedforward": 16, "batch_first": True}
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, HEADS, **options), 2)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(WIDTH, HEADS, **options), 1)

    def forward(self, source: Tensor, target: Tensor, padding: Tensor | None = None) -> Any:
        memory = self.encoder(source, src_key_padding_mask=padding)
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        return self.decoder(target, memory, tgt_mask=mask, memory_key_padding_mask=padding)


def transformer_plan() -> Plan:
    plans = [
        heads_plan("encoder.layers.0.self_attn", (1, 2)),
        heads_plan("decoder.layers.0.self_attn", (0,)),
        heads_plan("decoder.layers.0.multihead_attn", (0, 1, 3)),
    ]
    return Plan(
        {name: part for plan in plans for name, part in plan.modules.items()},
        {name: part for plan in plans for name, part in plan.attributes.items()},
    )


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_transformers_lose_heads_and_are_saved(tmp_path: Path) -> None:
    model, plan = Seq2Seq().eval(), transformer_plan()
    source, target = torch.randn(2, S, WIDTH), torch.randn(2, L, WIDTH)
    padding = torch.arange(S) >= torch.tensor([[4], [S]])
    silent = copy.deepcopy(model)
    for name in plan.attributes:
        stays = torch.zeros(WIDTH)
        stays[list(plan.modules[f"{name}.out_proj"].in_ or ())] = 1
        weight = silent.get_parameter(f"{name}.out_proj.weight")
        weight.mul_(stays)
    small = plan.apply(model)
    assert type(small.get_submodule("encoder.layers.1.self_attn")) is nn.MultiheadAttention
    for more in ((), (padding,)):
        got, expected = small(source, target, *more), silent(source, target, *more)
        assert difference(got, expected) <= 1e-5
    epruner.save((small, plan), tmp_path / "small.safetensors")
    back = epruner.load(Seq2Seq().eval(), tmp_path / "small.safetensors")
    assert torch.equal(back(source, target, padding), got)
    assert difference(back.train()(source, target, padding), got) > 0.01  # its dropout is at work


def test_what_reads_the_heads_that_stay_is_refit() -> None:
    model = nn.TransformerEncoderLayer(WIDTH, HEADS, 16, batch_first=True).eval()
    plan = heads_plan("self_attn", (0, 1, 3))
    small = plan.apply(model)
    inputs = torch.randn(64, S, WIDTH)
    repaired, record = epruner.repair(model, small, plan, calibrate=inputs, repair="least_squares")
    assert record is not None
    assert "self_attn.out_proj" in [layer.name for layer in record.layers]
    assert record.after < 0.9 * record.before
    x = torch.randn(64, S, WIDTH)
    with torch.no_grad():
        expected, before, after = model(x), small(x), repaired(x)
    assert (after - expected).square().sum() < 0.9 * (before - expected).square().sum()
    assert type(model.self_attn) is nn.MultiheadAttention


@torch.no_grad()
def test_whole_and_unfolded_attention_are_counted_alike() -> None:
    model = Seq2Seq()
    inputs = (torch.randn(2, S, WIDTH), torch.randn(2, L, WIDTH))
    padding = torch.arange(S) >= torch.tensor([[4], [S]])
    totals = measure(model, (*inputs, padding))
    assert totals == measure(unfolded(copy.deepcopy(model)), (*inputs, padding))
    assert totals.params == sum(p.numel() for p in model.parameters())
    # positions that the four projections of each attention read, and the two layers after it
    read = 2 * 4 * S + 4 * L + (2 * L + 2 * S)
    assert totals.macs >= 2 * (read * WIDTH**2 + (2 * S + L) * 2 * WIDTH * 16)
    assert type(model.get_submodule("decoder.layers.0.self_attn")) is nn.MultiheadAttention


@torch.no_grad()
def test_programs_are_exported(tmp_path: Path) -> None:
    model = nn.TransformerEncoderLayer(WIDTH, HEADS, 16, batch_first=True).eval()
    small = heads_plan("self_attn", (1, 3)).apply(model)
    assert epruner.export_program(small, (1, L, WIDTH), tmp_path / "small.pt2")
    x = torch.randn(3, L, WIDTH)
    program = torch.export.load(tmp_path / "small.pt2").module()
    assert difference(program(x), small(x)) <= 1e-5
