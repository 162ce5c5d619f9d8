"""Every example saga that the `sagaz` package carries, described, run and made to fail, in virtual time."""

from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
import logging
import random
import time
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

pytest.importorskip("sagaz")

import sagaz.core.decorators
import sagaz.core.saga
import sagaz.examples

from sagaz_core.adapters.sagaz import SagazAdapter
from sagaz_core.engine.journal import Journal
from sagaz_core.engine.result import SagaResult
from sagaz_core.engine.run import RunOptions
from sagaz_core.faults.inject import Injector
from sagaz_core.faults.plan import FaultPlan, single_fault_plans
from sagaz_core.interceptor import Proceed, StepCall
from sagaz_core.model import SagaModel
from sagaz_core.saga.config import ReplayConfig
from sagaz_core.state import SagaState, SagaStatus
from sagaz_core.storage.memory import InMemorySnapshotStorage
from sagaz_core.virtual_time import VirtualRunner

ROOT = Path(next(iter(sagaz.examples.__path__)))
BASES = (sagaz.core.decorators.Saga, sagaz.core.saga.Saga)
ADAPTER = SagazAdapter()


# ---- finding them


def module_names() -> Iterator[str]:
    """Walk the files: most folders of the examples have no `__init__.py`, so that `pkgutil` does not see them."""
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(("sagaz.examples", *(part for part in parts if part != "__init__")))


@cache
def imported() -> tuple[dict[str, ModuleType], dict[str, str]]:
    """Import every module of the examples; those that cannot be imported are returned with the reason."""
    modules, missing = {}, {}
    level = logging.getLogger().level
    handlers = logging.getLogger().handlers[:]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in module_names():
            try:
                modules[name] = importlib.import_module(name)
            except ModuleNotFoundError as error:
                missing[name] = error.name or str(error)
    # Most of them configure logging when they are imported.
    logging.getLogger().setLevel(level)
    logging.getLogger().handlers[:] = handlers
    return modules, missing


@cache
def example_classes() -> dict[str, type]:
    found = {}
    for module in imported()[0].values():
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, BASES) and value not in BASES:
                found[f"{value.__module__.removeprefix('sagaz.examples.')}:{value.__qualname__}"] = value
    return dict(sorted(found.items()))


# ---- what each is run with


def literal_contexts(kind: type) -> list[dict[str, Any]]:
    """Return the contexts that the module itself runs sagas with, as its source has them, in order."""
    module = inspect.getmodule(kind)
    assert module is not None
    tree = ast.parse(inspect.getsource(module))
    named: dict[str, ast.Dict] = {}
    found: list[ast.Dict] = []
    for node in sorted(
        (node for node in ast.walk(tree) if isinstance(node, ast.Assign | ast.AnnAssign | ast.Call)),
        key=lambda node: (node.lineno, node.col_offset),
    ):
        if isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and isinstance(node.value, ast.Dict):
                named[target.id] = node.value
                if target.id.endswith("_context"):
                    found.append(node.value)
        elif getattr(node.func, "attr", getattr(node.func, "id", "")) in ("run", "execute_saga", "fire_event"):
            for argument in node.args:
                value = named.get(argument.id) if isinstance(argument, ast.Name) else argument
                if isinstance(value, ast.Dict):
                    found.append(value)
        else:  # replays of a saga that failed
            overrides = [keyword.value for keyword in node.keywords if keyword.arg == "context_override"]
            found += [value for value in overrides if isinstance(value, ast.Dict)]
    contexts = []
    for literal in found:
        try:
            code = compile(ast.Expression(literal), module.__file__ or "", "eval")
            contexts.append({**(contexts[0] if contexts else {}), **eval(code, {**vars(module)})})
        except NameError:  # it needs a local variable
            continue
    return contexts


def made(kind: type) -> Any:
    saga = ADAPTER.create(kind)
    if kind is example_classes().get("environment_variables_example:OrderSaga"):
        # It has no decorators; its examples add the steps to the instance.
        saga.add_step("create_order", saga.create_order)
        saga.add_step("charge_payment", saga.charge_payment, depends_on=["create_order"])
        saga.add_step("send_confirmation", saga.send_confirmation, depends_on=["charge_payment"])
    return saga


class Run(NamedTuple):
    result: SagaResult
    state: SagaState
    jumps: int


class Ledger:
    """Which effects happened: it is closest to the functions."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

    async def intercept(self, call: StepCall, proceed: Proceed) -> Any:
        result = await proceed()
        self.calls.append((call.kind, call.step))
        return result

    def left(self) -> list[str]:
        """The effects that nothing undid afterwards."""
        left: list[str] = []
        for kind, step in self.calls:
            if kind == "action":
                left.append(step)
            elif step in left:
                left.remove(step)
        return left


def run(kind: type, context: dict[str, Any], **options: Any) -> Run:
    random.seed(7)  # some examples fail at random
    journals: list[Journal] = []
    options = {"storage": InMemorySnapshotStorage(), "replay_config": ReplayConfig(compression=None)} | options
    with VirtualRunner() as runner:
        work = ADAPTER.run(made(kind), context, options=RunOptions(on_journal=journals.append, **options))
        result = runner.run(work)
        return Run(result, journals[0].state, runner.loop.jumps)


def model_of(kind: type) -> SagaModel:
    with VirtualRunner() as runner:
        return runner.run(ADAPTER.describe(made(kind)))


@cache
def best_context(name: str) -> dict[str, Any]:
    """Return the first of the module's own contexts with which the saga completes, or the first one, or nothing."""
    kind = example_classes()[name]
    contexts = [*literal_contexts(kind), {}]
    for context in contexts:
        if run(kind, context).state.status is SagaStatus.COMPLETED:
            return context
    return contexts[0]
