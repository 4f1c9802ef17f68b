"""Slicing does what silencing does, on every family, and changes nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
import torch
import wheels
from networks import cut, difference, silenced, stirred, trained_resnet
from pytorchcv.model_provider import get_model
from torch import Tensor, nn

from epruner.pruning import Constraints, Method, Plan, PruningResult
from epruner.pruning.network.layers import take

TOLERANCE = 1e-5
TOKENS = {
    "input_ids": torch.arange(14).view(2, 7),
    "attention_mask": torch.ones(2, 7),
}
# network, inputs, whether scope="all" prunes more than scope="inner"
SMALL: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "vgg": (networks.Vgg, torch.randn(2, 3, 16, 16)),
    "grouped-se": (networks.GroupedSqueezeExcite, torch.randn(2, 3, 16, 16)),
    "convnext": (networks.ConvNext, torch.randn(2, 3, 16, 16)),
    "vit": (networks.Vit, torch.randn(2, 3, 16, 16)),
    "bert": (networks.BertLayer, TOKENS),
    "swiglu": (networks.GatedMlp, torch.randn(3, 12)),
    "shuffle": (networks.ChannelShuffle, torch.randn(2, 3, 16, 16)),
    "shuffle2": (networks.SplitNet, torch.randn(2, 3, 16, 16)),
    "shared": (networks.Shared, torch.randn(2, 3, 16, 16)),
    "upsampler": (networks.Upsampler, torch.randn(2, 3, 16, 16)),
    "two-inputs": (networks.TwoInputs, (torch.randn(2, 3, 8, 8), torch.randn(2, 1, 8, 8))),
    "thrown-away": (networks.ThrownAway, torch.randn(2, 3, 16, 16)),
    "input-concat": (networks.InputConcat, torch.randn(2, 3, 16, 16)),
    "grouped-upsampler": (networks.GroupedUpsampler, torch.randn(2, 3, 16, 16)),
    "resnet20": (networks.resnet20, torch.randn(2, 3, 32, 32)),
}
PUBLIC = {
    "resnet10": 64, "resnet18": 64, "resnet50": 64, "bn_vgg16": 224, "densenet121": 64,
    "mobilenetv2_wd4": 64, "efficientnet_b0": 224, "resnext26_32x4d": 64, "seresnext50_32x4d": 64,
    "inceptionv3": 299, "resnet56_cifar10": 32, "preresnet20_cifar10": 32,
    # with splits, shuffles, partial concatenations, several branches: some of it is left alone
    "shufflenetv2_wd2": 64, "ghostnet": 224, "dla46xc": 64, "hrnet_w18_small_v1": 64,
    "nasnet_4a1056": 224, "darknet53": 64, "squeezenet_v1_1": 224, "mnasnet_small": 64,
    "mobilenetv3_small_wd2": 64, "senet16": 64, "xception": 299, "peleenet": 224,
    "irevnet301": 224,
}  # fmt: skip


def run(model: nn.Module, inputs: Any) -> Any:
    """Forward in eval mode."""
    model.eval()
    with torch.no_grad():
        if isinstance(inputs, dict):
            return model(**inputs)["logits"]
        return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def check_exact(model: nn.Module, inputs: Any, result: PruningResult) -> None:
    """The pruned network is the silenced one, is smaller, and rebuilds bit for bit from JSON."""
    assert result.report.after.params < result.report.before.params
    got = run(result.model, inputs)
    assert difference(got, run(silenced(model, result.plan), inputs)) <= TOLERANCE
    rebuilt = Plan.from_json(result.plan.to_json()).apply(model)
    assert torch.equal(run(rebuilt, inputs), got)


@pytest.mark.filterwarnings("ignore:the budget is")  # too coarse, some of them
@pytest.mark.parametrize("scope", ["inner", "all"])
@pytest.mark.parametrize("name", SMALL)
def test_small_networks(name: str, scope: str) -> None:
    torch.manual_seed(0)
    make, inputs = SMALL[name]
    model = stirred(make())
    check_exact(model, inputs, cut(model, inputs, params=0.8, scope=scope))


@pytest.mark.filterwarnings("ignore:the budget is")  # out of reach where much is left alone
@pytest.mark.parametrize("scope", ["inner", "all"])
@pytest.mark.parametrize(
    "name",
    [
        name if name in {"resnet10", "mobilenetv2_wd4"} else
        pytest.param(name, marks=pytest.mark.slow)
        for name in PUBLIC
    ],
)  # fmt: skip
def test_public_networks(name: str, scope: str) -> None:
    torch.manual_seed(0)
    size = PUBLIC[name]
    model = get_model(name, **({"in_size": (64, 64)} if size == 64 else {}))
    for module in model.modules():  # pooling made for 224 pixels
        if isinstance(module, nn.AvgPool2d) and size == 64 and module.kernel_size == 7:
            module.kernel_size = module.stride = 2
    stirred(model)
    inputs = torch.randn(1, 3, size, size)
    check_exact(
        model,
        inputs,
        cut(
            model,
            inputs,
            method=Method("uniform", "exemplar", repair="none"),
            params=0.5,
            scope=scope,
        ),
    )


@pytest.mark.parametrize("which", ["theo", "akamaster", "akamaster20"])
def test_trained_residual_networks(which: str, data_dir: Path) -> None:
    model = trained_resnet(data_dir, which)
    inputs = torch.randn(4, 3, 32, 32)
    check_exact(model, inputs, cut(model, inputs, beta=0.76))


@pytest.mark.parametrize(
    "name",
    wheels.networks(
        "pnet", "rnet", "onet", "mobilenetv2", "efficientnet-lite0", slow=("mobilenetv2",)
    ),
)
@pytest.mark.parametrize("scope", ["inner", "all"])
def test_trained_networks_from_wheels(name: str, scope: str) -> None:
    model, shape = wheels.trained(name)
    inputs = torch.randn(shape)
    check_exact(model, inputs, cut(model, inputs, beta=0.6, scope=scope))


def test_equal_numbers_stay_in_every_group_of_a_grouped_convolution() -> None:
    torch.manual_seed(0)
    model = stirred(networks.GroupedSqueezeExcite())
    result = cut(
        model, (1, 3, 16, 16), constraints=Constraints(n_filters={"reduce": 0.5, "grouped": 0.5})
    )
    part = result.plan.modules["grouped"]
    for kept in (part.in_, part.out):
        assert kept is not None
        assert np.bincount(np.asarray(kept) // 6).tolist() == [3, 3, 3, 3]
    # each group has its own exemplars, not the same places in all
    assert len({tuple(np.asarray(part.out)[g * 3 : g * 3 + 3] % 6) for g in range(4)}) > 1
    assert result.model.get_submodule("grouped").weight.shape == (12, 3, 3, 3)


def test_the_model_passed_in_is_untouched() -> None:
    model = networks.Vgg().train()
    model.features[1].eval()
    model.features[0].requires_grad_(False)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    before = copy.deepcopy(model.state_dict())
    flags = [p.requires_grad for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    result = cut(model, (1, 3, 16, 16), params=0.5)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert [p.requires_grad for p in model.parameters()] == flags
    assert [m.training for m in model.modules()] == modes
    for module, count in zip(model.modules(), hooks, strict=True):
        assert len(module._forward_hooks) + len(module._forward_pre_hooks) == count
    assert all(p.grad is None for p in model.parameters())
    # and the small one is like it
    assert [p.requires_grad for p in result.model.parameters()] == flags
    assert [m.training for m in result.model.modules()] == modes


def test_parametrizations_of_the_model_passed_in_survive() -> None:
    model = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), nn.Conv2d(8, 8, 3),
        nn.Conv2d(8, 9, 3), nn.Conv2d(9, 2, 3),
    )  # fmt: skip
    x = torch.randn(1, 3, 16, 16)
    before = run(model, x)
    result = cut(model, x, beta=0.9)
    assert torch.equal(run(model, x), before)
    assert nn.utils.parametrize.is_parametrized(result.model[0])  # type: ignore[index]


def test_channels_last_stays() -> None:
    model = networks.Vgg()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    small = cut(model, (1, 3, 16, 16), params=0.5).model
    for (_, a), (_, b) in zip(model.named_parameters(), small.named_parameters(), strict=True):
        if a.dim() == 4:
            assert b.is_contiguous(memory_format=torch.channels_last)
            assert not b.is_contiguous()
    point = nn.Conv2d(6, 8, 1)
    point.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert take(point.weight, 0, (0, 3)).stride() == (6, 1, 6, 6)
    assert take(nn.Conv2d(6, 8, 1).weight, 0, (0, 3)).stride() == (6, 1, 1, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_stay(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = stirred(networks.Vgg()).to(dtype)
    result = cut(model, (1, 3, 16, 16), params=0.5)
    assert {t.dtype for t in result.model.state_dict().values() if t.is_floating_point()} == {dtype}
    wide = result.plan.apply(copy.deepcopy(model).float())
    for a, b in zip(result.model.parameters(), wide.parameters(), strict=True):
        assert torch.equal(a.to(b.dtype), b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_takes_float32_examples(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, x = stirred(networks.Vgg()).to(dtype), torch.randn(1, 3, 16, 16)
    result = cut(model, x, params=0.5)
    assert result.plan == cut(model, x.to(dtype).float(), params=0.5).plan
    assert run(result.model, x.to(dtype)).dtype == dtype


def test_the_small_network_trains() -> None:
    torch.manual_seed(0)
    model = networks.GroupedSqueezeExcite()
    small = cut(model, (2, 3, 16, 16), beta=1.0).model.train()
    optimiser = torch.optim.SGD(small.parameters(), 0.05)
    x, y = torch.randn(8, 3, 16, 16), torch.randint(0, 5, (8,))
    losses = []
    for _ in range(8):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(small(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_random_initialisation_is_of_the_seed() -> None:
    model = stirred(networks.Vgg())
    x = torch.randn(1, 3, 16, 16)
    plan = cut(model, x, params=0.5).plan
    results = [
        plan.apply(model, init="random", bn="reset", random_state=seed) for seed in (0, 0, 1)
    ]
    outputs = [run(small, x) for small in results]
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    norm = results[0].get_submodule("features.1")
    assert isinstance(norm, nn.BatchNorm2d)
    assert torch.equal(norm.weight, torch.ones_like(norm.weight))
    assert norm.running_mean is not None
    assert torch.equal(norm.running_mean, torch.zeros_like(norm.weight))
    state = torch.random.get_rng_state()
    plan.apply(model, init="random")
    assert torch.equal(torch.random.get_rng_state(), state)


def test_random_projection_keeps_the_weights_on_average() -> None:
    model = nn.Sequential(nn.Linear(4, 400), nn.Linear(400, 300), nn.Linear(300, 2))
    plan = cut(model, (1, 4), constraints=Constraints(n_filters={"0": 100})).plan
    projected = plan.apply(model, init="random_projection")
    full, small = model.get_parameter("1.weight"), projected.get_parameter("1.weight")
    assert small.shape == (300, 100)
    # a projection keeps the length of vectors
    assert float(small.detach().norm() / full.detach().norm()) == pytest.approx(1, abs=0.1)
    assert not torch.equal(small, full[:, list(plan.modules["1"].in_ or ())])


def test_bare_parameters_on_the_channels_are_sliced() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Linear(6, 20)
            self.scale = nn.Parameter(torch.rand(20))
            self.down = nn.Linear(20, 3)

        def forward(self, x: Tensor) -> Any:
            return self.down(torch.relu(self.up(x)) * self.scale)

    model, x = Scaled(), torch.randn(5, 6)
    result = cut(model, x, constraints=Constraints(n_filters={"up": 7}))
    assert result.model.scale.shape == (7,)
    check_exact(model, x, result)
