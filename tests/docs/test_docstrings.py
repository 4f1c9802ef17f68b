"""Public names: what their docstrings say, that their examples run, that the reference has them."""

from __future__ import annotations

import doctest
import inspect
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache, cached_property
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules, walk_packages
from types import ModuleType
from typing import Any

import pytest

import epruner

pytest.importorskip("matplotlib", reason="needs matplotlib (extra plot)")
pytest.importorskip("torch_pruning", reason="needs Torch-Pruning (extra torch-pruning)")

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
LEFT_OUT = 0  # examples that a doctest cannot run
# Of numpydoc.validate: no text, no summary, parameters that the signature has not or that have no
# text, values without, sections out of order or unknown.
FAULTS = {"GL06", "GL07", "GL08", "SS01", "SS03", "PR01", "PR02", "PR03", "RT03", "YD01"}
CANNOT_BE_WRONG = {
    "epruner.accel.load_ipython_extension",  # what IPython gives is not looked at
    "epruner.accel.unload_ipython_extension",
    "epruner.pruning.graph.costs.Cost.macs_at",  # sizes are taken as they are
    "epruner.pruning.graph.costs.Cost.norm_at",
    "epruner.pruning.graph.costs.Cost.params_at",
    "epruner.pruning.graph.costs.Costs.totals",
}


def _imported(name: str) -> ModuleType | None:
    try:
        return import_module(name)
    except ImportError:  # of an extra that is not installed
        return None


@cache
def public_modules() -> Mapping[str, ModuleType]:
    """The package, its parts that list names, the modules among these, and the integrations."""
    found = {"epruner": epruner}
    for part in iter_modules(epruner.__path__, "epruner."):
        if not part.name.rpartition(".")[2].startswith("_"):
            module = import_module(part.name)
            if hasattr(module, "__all__"):
                found[part.name] = module
    for name, module in list(found.items()):
        for entry in module.__all__:
            if inspect.ismodule(x := getattr(module, entry)):
                found[f"{name}.{entry}"] = x
    inside = import_module("epruner.integrations").__path__
    for part in iter_modules(inside, "epruner.integrations."):
        found[part.name] = import_module(part.name)
    once = {id(module): name for name, module in reversed(found.items())}
    return {name: module for name, module in found.items() if once[id(module)] == name}


def _names(module: ModuleType) -> list[str]:
    """What a module lists, or else the functions and classes that it defines."""
    if hasattr(module, "__all__"):
        return [name for name in module.__all__ if not inspect.ismodule(getattr(module, name))]
    return [
        name
        for name, x in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(x) or inspect.isclass(x))
        and x.__module__ == module.__name__
    ]


@cache
def _classes() -> Mapping[str, list[type]]:
    """All classes of the package by their names."""
    found: dict[str, list[type]] = {}
    for part in walk_packages(epruner.__path__, "epruner."):
        if part.name.endswith("__main__") or part.name.startswith("epruner.cluster._native"):
            continue
        if (module := _imported(part.name)) is None:
            continue
        for name, x in vars(module).items():
            if inspect.isclass(x) and x.__module__ == part.name:
                found.setdefault(name, []).append(x)
    return found


def sections(doc: str | None) -> dict[str, list[str]]:
    """Lines of a docstring by the heading that they stand under; "" is what comes before."""
    lines = inspect.cleandoc(doc or "").splitlines()
    found: dict[str, list[str]] = {"": []}
    heading = ""
    for line, rule in zip(lines, [*lines[1:], ""], strict=True):
        if line and rule == "-" * len(line):
            heading = line
            found[heading] = []
        elif set(line) != {"-"}:
            found[heading].append(line)
    return found


def _is_ours(cls: type) -> bool:
    """Whether it is a class of the package, and more than a description of others."""
    return cls.__module__.startswith("epruner.") and not getattr(cls, "_is_protocol", False)


def _named_classes(doc: str | None, module: str) -> Iterator[type]:
    """Classes of the package that a docstring has for types, or names in full."""
    parts = sections(doc)
    for heading in ("Parameters", "Attributes", "Returns", "Yields"):
        for line in parts.get(heading, []):
            if line and not line.startswith(" "):
                for word in re.findall(r"[A-Z]\w+", line.rpartition(" : ")[2]):
                    here = vars(sys.modules[module]).get(word)
                    found = [here] if inspect.isclass(here) else _classes().get(word, [])
                    if len(found) == 1 and _is_ours(found[0]):
                        yield found[0]
    for name in re.findall(r"`(epruner\.[\w.]+)`", doc or ""):
        home, _, word = name.rpartition(".")
        yield from (c for c in _classes().get(word, []) if c.__module__ == home)


def _is_property(x: object) -> bool:
    return isinstance(x, property | cached_property)


def members(cls: type) -> dict[str, Any]:
    """What a class itself defines for those who use it: methods as functions, and properties."""
    found = {}
    for name, x in vars(cls).items():
        if name.startswith("_") and name != "__call__":
            continue
        x = getattr(x, "__func__", x)  # of a class method
        is_member = inspect.isfunction(x) or _is_property(x)
        if is_member and ":meta private:" not in (x.__doc__ or ""):
            found[name] = x
    return found


@cache
def public_objects() -> Mapping[str, Any]:
    """Public functions, classes and values by name, and the classes that their docstrings name."""
    waiting = [
        (f"{path}.{name}", getattr(module, name))
        for path, module in public_modules().items()
        for name in _names(module)
    ]
    found: dict[str, Any] = {}
    known: set[int] = set()
    while waiting:
        path, x = waiting.pop(0)
        if id(x) in known:
            continue
        known.add(id(x))
        found[path] = x
        if not callable(x):
            continue
        inside = members(x).values() if inspect.isclass(x) else []
        for doc in [x.__doc__, *(member.__doc__ for member in inside)]:
            named = _named_classes(doc, x.__module__)
            waiting += [(f"{cls.__module__}.{cls.__qualname__}", cls) for cls in named]
    return found


@cache
def documented() -> Mapping[str, Any]:
    """All that has a docstring to check: functions, classes and what these define."""
    found = {}
    for path, x in public_objects().items():
        if callable(x):
            found[path] = x
        if inspect.isclass(x):
            found |= {f"{path}.{name}": member for name, member in members(x).items()}
    return found


def _takes(x: Any) -> bool:
    """Whether it is given anything besides itself."""
    names = list(inspect.signature(x).parameters)
    return any(name not in ("self", "cls") for name in names)


def _gives(x: Any) -> bool:
    """Whether a function returns something."""
    return inspect.signature(x).return_annotation not in (None, "None")


@pytest.mark.parametrize("path", [p for p, x in documented().items() if inspect.isfunction(x)])
def test_function_says_what_it_takes_gives_and_refuses(path: str) -> None:
    """Only what takes nothing refuses nothing."""
    function = documented()[path]
    parts = sections(function.__doc__)
    assert "Examples" in parts
    assert ("Parameters" in parts) == _takes(function)
    assert ("Returns" in parts or "Yields" in parts) == _gives(function)
    if _takes(function) and path not in CANNOT_BE_WRONG:
        assert "Raises" in parts


@pytest.mark.parametrize("path", [p for p, x in documented().items() if inspect.isclass(x)])
def test_class_says_what_it_holds_and_refuses(path: str) -> None:
    """Fields of records, too; what checks itself says what it refuses."""
    cls = documented()[path]
    parts = sections(cls.__doc__)
    assert "Examples" in parts
    described = "\n".join([*parts.get("Parameters", []), *parts.get("Attributes", [])])
    if is_dataclass(cls):
        missing = [f.name for f in fields(cls) if not re.search(rf"\b{f.name}\b", described)]
        assert not missing
        if hasattr(cls, "__post_init__") and fields(cls):
            assert "Raises" in parts


@pytest.mark.parametrize("path", [p for p, x in documented().items() if _is_property(x)])
def test_property_says_what_it_is(path: str) -> None:
    assert sections(documented()[path].__doc__)[""][0].endswith(".")


def _is_made_by_users(x: Any) -> bool:
    """Whether it is a function, or a class whose docstring has its parameters."""
    if inspect.isclass(x):
        return not is_dataclass(x) and "Parameters" in sections(x.__doc__)
    return inspect.isfunction(x)


@pytest.mark.parametrize("path", [p for p, x in documented().items() if _is_made_by_users(x)])
def test_docstring_is_numpydoc_and_fits_the_signature(path: str) -> None:
    validate = pytest.importorskip("numpydoc.validate")
    found = validate.validate(validate.get_doc_object(documented()[path]))["errors"]
    assert not [(code, text) for code, text in found if code in FAULTS]


def _examples(path: str) -> doctest.DocTest:
    doc = inspect.getdoc(documented()[path]) or ""
    return doctest.DocTestParser().get_doctest(doc, {"__name__": "__main__"}, path, path, 0)


@pytest.mark.slow  # the build of the site runs them all
@pytest.mark.parametrize("path", [p for p in documented() if _examples(p).examples])
def test_examples_run(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if path == "epruner.export_onnx":
        pytest.importorskip("onnxscript", reason="needs onnxscript (extra onnx)")
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=OPTIONS, verbose=False)
    result = runner.run(_examples(path), out=said.append)
    assert result.attempted > 0
    assert result.failed == 0, "".join(said)


def test_hardly_an_example_is_left_out() -> None:
    skipped = [
        f"{path}: {example.source}"
        for path in documented()
        for example in _examples(path).examples
        if doctest.SKIP in example.options
    ]
    assert len(skipped) == LEFT_OUT, skipped


def _resolved(name: str) -> Any:
    """What a dotted name stands for: an attribute before a module of the same name."""
    first, *rest = name.split(".")
    found: Any = import_module(first)
    for part in rest:
        if not hasattr(found, part):
            import_module(f"{found.__name__}.{part}")
        found = getattr(found, part)
    return found


def _entries() -> tuple[list[Any], list[Any]]:
    """What the tables of the reference name, and modules whose text stands on its pages."""
    objects: list[Any] = []
    modules: list[Any] = []
    for page in sorted(REFERENCE.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        modules += re.findall(r"^\.\. automodule:: (\S+)$", text, re.MULTILINE)
        for table in re.findall(r"^\.\. autosummary::\n((?:(?: +.*)?\n)*)", text, re.MULTILINE):
            found = re.findall(r"^ +~?(\w[\w.]*)$", table, re.MULTILINE)
            objects += [f"epruner.{name}" for name in found]  # the current module of all pages
        objects += re.findall(r"^\.\. py:data:: (\S+)$", text, re.MULTILINE)
    return [_resolved(name) for name in objects], [_resolved(name) for name in modules]


def test_reference_has_all_that_is_public_once() -> None:
    objects, modules = _entries()
    for there, public in ((objects, public_objects()), (modules, public_modules())):
        ids = Counter(id(x) for x in there)
        assert [path for path, x in public.items() if ids[id(x)] != 1] == []
        known = {id(x) for x in public.values()}
        assert [x for x in there if id(x) not in known] == []
