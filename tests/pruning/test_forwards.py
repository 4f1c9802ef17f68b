"""Forward passes as people write them: values that are read, outputs with names, checkpoints."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from networks import silenced
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import epruner
from epruner.pruning import Constraints
from epruner.pruning.errors import RepairWarning, TraceError
from epruner.pruning.network.batches import Batches
from epruner.pruning.network.outputs import output_error
from epruner.pruning.network.tree import tensors_in
from epruner.pruning.trace.record import record_all
from epruner.pruning.trace.replay import Replay

pytestmark = pytest.mark.filterwarnings("ignore::epruner.pruning.errors.BudgetWarning")
TOKENS = 6


class ModelOutput(OrderedDict[str, Tensor]):
    """Its entries are attributes, and stand at positions."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else tuple(self.values())[key]


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.dense = nn.Linear(width, width)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        def split(x: Tensor) -> Tensor:
            return x.view(*x.shape[:-1], self.heads, -1).transpose(1, 2)

        q, k, v = (split(layer(hidden)) for layer in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.dense(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class BertBlock(nn.Module):
    def __init__(self, width: int, heads: int, reentrant: bool | None) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.attention = SelfAttention(width, heads)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.intermediate, self.output = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def chunk(self, hidden: Tensor) -> Tensor:
        return self.output(F.gelu(self.intermediate(hidden)))  # type: ignore[no-any-return]

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        hidden = self.norm1(hidden + self.attention(hidden, mask))
        if self.reentrant is None:
            return self.norm2(hidden + self.chunk(hidden))  # type: ignore[no-any-return]
        fed = checkpoint(self.chunk, hidden, use_reentrant=self.reentrant)
        return self.norm2(hidden + fed)  # type: ignore[no-any-return]


class Bert(nn.Module):
    """An encoder with the habits of Hugging Face's."""

    position_ids: Tensor

    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        self.word, self.position = nn.Embedding(50, 16), nn.Embedding(TOKENS + 2, 16)
        self.register_buffer("position_ids", torch.arange(TOKENS + 2)[None])
        self.blocks = nn.ModuleList(BertBlock(16, 2, reentrant) for _ in range(2))
        self.pooler = nn.Linear(16, 16)

    def get_extended_attention_mask(self, mask: Tensor, dtype: torch.dtype) -> Tensor:
        if mask.dim() == 3:
            extended = mask[:, None]
        elif mask.dim() == 2:
            extended = mask[:, None, None]
        else:
            raise ValueError(f"wrong shape for attention_mask: {mask.shape}")
        return (1.0 - extended.to(dtype)) * torch.finfo(dtype).min

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, return_dict: bool = True
    ) -> Any:
        if attention_mask is None:
            attention_mask = torch.ones(input_ids.shape, dtype=torch.long)
        length = input_ids.shape[1]
        if int(self.position_ids[:, :length].max().item()) >= self.position.num_embeddings:
            raise ValueError("too long")
        hidden = self.word(input_ids) + self.position(self.position_ids[:, :length])
        mask: Tensor | None = attention_mask
        tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        if attention_mask.dim() == 2 and not tracing and bool(attention_mask.all()):
            mask = None
        else:
            mask = self.get_extended_attention_mask(attention_mask, hidden.dtype)
        for block in self.blocks:
            hidden = block(hidden, mask)
        pooled = torch.tanh(self.pooler(hidden[:, 0]))
        if not return_dict:
            return hidden, pooled
        return ModelOutput(last_hidden_state=hidden, pooler_output=pooled)


def sentences(n: int, seed: int, *, full: bool = False) -> dict[str, Tensor]:
    """Tokens that occur as if they had topics, and masks of lengths that differ."""
    generator = torch.Generator().manual_seed(seed)
    topic = torch.randint(5, (n, 1), generator=generator)
    ids = 10 * topic + torch.randint(10, (n, TOKENS), generator=generator)
    lengths = torch.randint(3, TOKENS + 1, (n, 1), generator=generator)
    mask = (torch.arange(TOKENS) < lengths).long()
    return {"input_ids": ids, "attention_mask": torch.ones_like(mask) if full else mask}


@pytest.mark.parametrize("full", [True, False], ids=["ones", "padded"])
def test_plain_encoders_are_ranked_and_repaired(full: bool) -> None:
    torch.manual_seed(0)
    model = Bert(reentrant=None if full else False).eval()
    x, held = sentences(200, 0, full=full), sentences(50, 1, full=full)
    example = {key: value[:2] for key, value in x.items()}
    half = Constraints(n_filters={"blocks.*.intermediate": 0.5})
    result = epruner.prune(model, example, constraints=half, method="reconstruction", calibrate=x)
    assert result.report.repair is not None
    assert {"blocks.0.output", "blocks.1.output"} <= {x.name for x in result.report.repair.layers}
    with torch.no_grad():
        got, expected = result.model(**held), model(**held)
        cut = silenced(model, result.plan)(**held)
    assert isinstance(got, ModelOutput)
    assert got.pooler_output.shape == (50, 16)
    answers = [[list(answer.values())] for answer in (got, cut, expected)]
    assert output_error(answers[0], answers[2]) < 0.7 * output_error(answers[1], answers[2])


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_are_followed(reentrant: bool) -> None:
    torch.manual_seed(0)
    model = Bert(reentrant).eval()
    batches: list[Any] = [((), sentences(4, seed)) for seed in (0, 1)]
    traces = record_all(model, Batches(batches))
    run = Replay(traces, batches)
    for batch, (_, kwargs) in enumerate(batches):
        run.advance(batch, len(traces[0].ops))
        torch.testing.assert_close(run.outputs(batch), list(model(**kwargs).values()))


def test_batches_of_which_only_some_are_padded_take_two_courses() -> None:
    torch.manual_seed(0)
    model, x = Bert().eval(), sentences(60, 0)
    x["attention_mask"][12:] = 1  # the later batches hold no padding
    example = {key: value[:2] for key, value in x.items()}
    message = (
        r"least squares left off.*another course.*the model's own forward reads False "
        r"\(aten::_local_scalar_dense\) off one batch and True .*then come aten::\w+ and "
    )
    half = Constraints(n_filters={"blocks.*.intermediate": 0.5})
    with pytest.warns(RepairWarning, match=message):
        epruner.prune(model, example, constraints=half, method="l1", calibrate=x)


class Scaled(nn.Module):
    """Divides by a number that it reads off its inputs, or off what it makes of them."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.stem, self.head = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.stem(x))
        if self.how == "item":
            y = y / x.abs().max().item()
        elif self.how == "tolist":
            y = y / torch.tensor(x.abs().amax(1).tolist())[:, None]
        elif self.how == "numpy":
            y = y * torch.from_numpy(x.numpy()[:, :1] ** 2)
        elif self.how == "rows":
            y = y[x[:, 0] > 0]
        else:
            y = y / y.abs().max().item()
        return self.head(y)  # type: ignore[no-any-return]


@pytest.mark.parametrize("how", ["item", "tolist", "numpy", "rows"])
def test_what_is_read_off_a_batch_counts_for_that_batch(how: str) -> None:
    torch.manual_seed(0)
    model, parts = Scaled(how).eval(), torch.randn(12, 8).split(4)  # type: ignore[no-untyped-call]
    batches: list[Any] = [((part,), {}) for part in parts]
    traces = record_all(model, Batches(batches))
    assert len({id(trace) for trace in traces}) == 3
    run = Replay(traces, batches)
    for batch, part in enumerate(parts):
        run.advance(batch, len(traces[0].ops))
        torch.testing.assert_close(run.outputs(batch)[0], model(part))
    other = Replay(traces[:1], batches[1:2])
    with pytest.raises(TraceError, match="the model's own forward reads values that"):
        other.advance(0, len(traces[0].ops))


class Longer(nn.Module):
    """Does more for some inputs than for others, after all that it does for these."""

    def forward(self, x: Tensor) -> Any:
        y = x * 2
        return (y, y + 1) if x.max() > 5 else (y, y)


def test_more_ops_for_some_batches_are_another_course() -> None:
    model, x = Longer().eval(), torch.zeros(2, 3)
    batches: list[Any] = [((part,), {}) for part in (x, x + 9)]
    with pytest.raises(TraceError, match=r"reads False .* and True .*nothing and aten::add"):
        record_all(model, Batches(batches))


def test_layers_whose_weights_decide_what_is_read_are_not_refit() -> None:
    torch.manual_seed(0)
    mixing = torch.randn(3, 8)
    x = torch.randn(100, 3) @ mixing
    model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8), Scaled("weights")).eval()
    half = Constraints(n_filters={"0": 0.5})
    with pytest.warns(RepairWarning, match=r"left off.*'3' reads values that the weights decide"):
        epruner.prune(model, x[:1], constraints=half, method="l1", calibrate=x)


@dataclass
class Boxes:
    scores: Tensor
    boxes: dict[str, Tensor]


class Levels(NamedTuple):
    low: Tensor
    high: Tensor


class Detector(nn.Module):
    """Two inputs, and outputs that are nested."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.more = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, 2, 1)
        self.sizes = nn.Linear(2, 8)
        self.scores, self.boxes = nn.Conv2d(16, 2, 1), nn.Conv2d(16, 4, 1)

    def forward(self, image: Tensor, sizes: Tensor) -> tuple[Boxes, list[Levels]]:
        low = F.relu(self.stem(image))
        high = F.relu(self.more(low))
        scale = self.sizes(F.relu(sizes))[:, :4, None, None]
        boxes = Boxes(self.scores(low), {"box": self.boxes(high) * scale})
        return boxes, [Levels(boxes.scores.mean((2, 3)), boxes.boxes["box"].mean((2, 3)))]


def test_several_inputs_and_nested_outputs() -> None:
    torch.manual_seed(0)
    model = Detector().eval()
    x = F.avg_pool2d(torch.randn(60, 3, 8, 8), 3, 1, 1), torch.rand(60, 2)
    half = Constraints(n_filters={"stem": 0.5, "more": 0.5})
    one = tuple(part[:1] for part in x)
    sliced = epruner.prune(model, one, constraints=half, method="l1", repair="none")
    repaired = epruner.prune(model, one, constraints=half, method="l1", calibrate=[x])
    assert repaired.report.repair is not None
    with torch.no_grad():
        boxes, levels = repaired.model(*x)
        assert isinstance(boxes, Boxes)
        assert isinstance(levels[0], Levels)
        got, cut, wanted = (
            tensors_in(network(*x)) for network in (repaired.model, sliced.model, model)
        )
        errors = [output_error([answers], [wanted]) for answers in (got, cut)]
    assert errors[0] < 0.8 * errors[1]


class Compiled(nn.Module):
    """What torch.compile returns, as far as one can tell from outside, without a compiler."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._orig_mod = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._orig_mod(*args, **kwargs)


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    parts = [nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 8)) for _ in range(2)]
    return nn.Sequential(*parts, nn.Linear(8, 3))


@pytest.mark.parametrize("whole", [False, True])
def test_compiled_parts_are_taken_out_of_their_wrappers(whole: bool) -> None:
    plain, model, x = mlp(), mlp(), torch.randn(100, 8)
    model[0], model[1][2] = Compiled(model[0]), Compiled(model[1][2])  # type: ignore[index,operator]
    tied = model[2].weight
    options: dict[str, Any] = {"macs": 0.6, "calibrate": x}
    wrapped = Compiled(model) if whole else model
    result = epruner.prune(wrapped, x[:1], ignore=[model[1]], **options)
    expected = epruner.prune(plain, x[:1], ignore=["1"], **options)
    assert result.plan == expected.plan
    for key, value in expected.model.state_dict().items():
        assert torch.equal(result.model.state_dict()[key], value), key
    note = "torch.compile is undone around {}; compile what comes back"
    names = ["the model"] * whole + [("_orig_mod." if whole else "") + n for n in ("0", "1.2")]
    assert result.report.notes == (*map(note.format, names), *expected.report.notes)
    assert isinstance(model[0], Compiled)
    assert model[2].weight is tied
    assert epruner.analyse(wrapped, x[:1]).check(plain) is None  # type: ignore[func-returns-value]
    small = result.plan.apply(wrapped)
    again, _ = epruner.repair(wrapped, Compiled(small), result.plan, calibrate=x)
    assert isinstance(again, nn.Sequential)
