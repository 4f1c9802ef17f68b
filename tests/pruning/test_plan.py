"""Plans as data: JSON there and back, and what does not pass for one."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from epruner.pruning.plan.parts import ModulePlan
from epruner.pruning.plan.plan import Plan


@st.composite
def sides(draw: st.DrawFn) -> tuple[tuple[int, ...], int]:
    """Kept channels and the size they are of."""
    size = draw(st.integers(1, 40))
    kept = draw(st.sets(st.integers(0, size - 1), min_size=1))
    return tuple(sorted(kept)), size


@st.composite
def module_plans(draw: st.DrawFn) -> ModulePlan:
    """Plans of modules with either side, both or none."""
    out = draw(st.none() | sides())
    in_ = draw(st.none() | sides())
    return ModulePlan(
        out=out and out[0],
        out_before=out and out[1],
        in_=in_ and in_[0],
        in_before=in_ and in_[1],
    )


names = st.text(max_size=12)
counts = st.dictionaries(names, st.tuples(st.integers(), st.integers()), min_size=1, max_size=3)


@settings(deadline=None)
@given(
    st.builds(
        Plan,
        st.dictionaries(names, module_plans(), max_size=4),
        st.dictionaries(names, counts, max_size=2),
    )
)
def test_a_plan_survives_json_copying_and_pickling(plan: Plan) -> None:
    assert Plan.from_json(plan.to_json()) == plan
    assert copy.deepcopy(plan) == plan
    assert pickle.loads(pickle.dumps(plan)) == plan


def test_a_plan_cannot_be_changed() -> None:
    plan = Plan({"conv": ModulePlan(out=(0,), out_before=2)})
    with pytest.raises(TypeError):
        plan.modules["other"] = ModulePlan()  # type: ignore[index]
    plan = Plan({}, {"attention": {"num_heads": (4, 2)}})
    with pytest.raises(TypeError):
        plan.attributes["attention"]["num_heads"] = (4, 3)  # type: ignore[index]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a pruning plan"),
        ("[]", "not a pruning plan"),
        ('{"format": "other"}', "not a pruning plan"),
        ('{"format": "epruner-plan", "version": 99, "modules": {}}', "version 99"),
        ('{"format": "epruner-plan", "version": 1, "modules": []}', "map names"),
        (
            '{"format": "epruner-plan", "version": 1, "modules": {}, "attributes": {"a": 1}}',
            "'attributes' must map names",
        ),
    ],
)
def test_what_is_not_a_plan_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan.from_json(text)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ({"out": [0, 1]}, "out_before"),
        ({"out": [], "out_before": 3}, "at least one"),
        ({"out": [1, 0], "out_before": 3}, "ascend"),
        ({"out": [0, 3], "out_before": 3}, "ascend"),
        ({"in": [-1, 1], "in_before": 3}, "ascend"),
        ({"in": ["0"], "in_before": 3}, "integers"),
        ({"in": [True], "in_before": 3}, "integers"),
        ({"weights": [0]}, "unknown keys"),
    ],
)
def test_impossible_module_plans_are_refused(module: dict[str, object], message: str) -> None:
    text = json.dumps({"format": "epruner-plan", "version": 1, "modules": {"conv": module}})
    with pytest.raises(ValueError, match=message):
        Plan.from_json(text)


def test_a_plan_needs_a_model_that_fits() -> None:
    plan = Plan({"0": ModulePlan(out=(0, 2), out_before=4)})
    small = plan.apply(nn.Sequential(nn.Linear(3, 4)))
    assert small(torch.ones(1, 3)).shape == (1, 2)
    with pytest.raises(ValueError, match="4 output channels, this one has 5"):
        plan.apply(nn.Sequential(nn.Linear(3, 5)))
    with pytest.raises(ValueError, match="'0', which this model has not"):
        plan.apply(nn.Linear(3, 4))
    with pytest.raises(ValueError, match="no rule resizes '0', a LayerNorm"):
        plan.apply(nn.Sequential(nn.LayerNorm(4)))


class Counting(nn.Module):
    """A module that no rule knows, with numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.split, self.scale = 4, True, 0.5


def test_numbers_that_modules_hold_change() -> None:
    model = nn.Sequential(nn.Linear(3, 4), Counting())
    plan = Plan({}, {"1": {"heads": (4, 2)}})
    small: Any = plan.apply(model).get_submodule("1")
    assert (small.heads, vars(model[1])["heads"]) == (2, 4)
    assert "1.heads" in str(plan)
    assert "2 of 4" in str(plan)
    assert "attributes" not in Plan({}).to_json()


@pytest.mark.parametrize(
    ("module", "attribute", "pair", "message"),
    [
        ("1", "heads", (5, 2), "'1.heads' from 5 to 2, which this model has as 4"),
        ("1", "other", (4, 2), "'1.other' from 4 to 2, which this model has not"),
        ("2", "heads", (4, 2), "'2.heads' from 4 to 2, which this model has not"),
        ("", "heads", (4, 2), "'heads' from 4 to 2, which this model has not"),
        ("1", "heads[0]", (4, 2), r"'1.heads\[0\]' from 4 to 2, which this model has not"),
        ("1", "split", (1, 0), "has as True"),
        ("1", "scale", (1, 0), "has as 0.5"),
    ],
)
def test_numbers_must_be_as_they_were(
    module: str, attribute: str, pair: tuple[int, int], message: str
) -> None:
    plan = Plan({}, {module: {attribute: pair}})
    with pytest.raises(ValueError, match=message):
        plan.apply(nn.Sequential(nn.Linear(3, 4), Counting()))


@pytest.mark.parametrize("pair", [(1,), (1, 2.0), (True, 2), "12", 3])
def test_numbers_that_change_are_pairs_of_integers(pair: Any) -> None:
    with pytest.raises(ValueError, match="'heads' of 'a' must be"):
        Plan({}, {"a": {"heads": pair}})
