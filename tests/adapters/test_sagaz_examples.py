"""Every example saga that the `sagaz` package carries, described, run and made to fail, in virtual time."""

from __future__ import annotations

import ast
import importlib
import inspect
import logging
import random
import time
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

pytest.importorskip("sagaz")

import sagaz.core.decorators
import sagaz.core.saga
import sagaz.examples

from sagaz_core.adapters.sagaz import SagazAdapter
from sagaz_core.engine.run import RunOptions
from sagaz_core.faults.inject import Injector
from sagaz_core.faults.plan import FaultPlan, single_fault_plans
from sagaz_core.model import SagaModel
from sagaz_core.saga.config import ReplayConfig
from sagaz_core.state import SagaState, SagaStatus
from sagaz_core.storage.memory import InMemorySnapshotStorage
from sagaz_core.virtual_time import VirtualRunner

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from sagaz_core.engine.journal import Journal
    from sagaz_core.engine.result import SagaResult
    from sagaz_core.interceptor import Proceed, StepCall

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


REQUEST = {"order_id": "ORD-1", "amount": 10}
"""What the web examples, which hold no context of their own, are sent."""


@cache
def best_context(name: str) -> dict[str, Any]:
    """Return the first of the module's own contexts with which the saga completes, or the first one, or nothing."""
    kind = example_classes()[name]
    contexts = [*literal_contexts(kind), {}, REQUEST]
    for context in contexts:
        if run(kind, context).state.status is SagaStatus.COMPLETED:
            return context
    return contexts[0]


# ---- what must hold

# The package, on Python 3.14:
pytestmark = pytest.mark.filterwarnings("ignore:.*iscoroutinefunction:DeprecationWarning")

NOT_IMPORTABLE = {
    # module: the package that it needs; two of them hold a saga class each, `OrderSaga`
    "sagaz.examples.integrations.django_app.config.urls": "django",
    "sagaz.examples.integrations.django_app.config.wsgi": "django",
    "sagaz.examples.integrations.django_app.orders.apps": "django",
    "sagaz.examples.integrations.django_app.orders.urls": "django",
    "sagaz.examples.integrations.django_app.orders.views": "django",
    "sagaz.examples.integrations.fastapi_app.main": "fastapi",
    "sagaz.examples.integrations.flask_app.main": "flask",
}
NOT_ALWAYS_HERE = ("integrations.fastapi_app", "integrations.flask_app")
NEVER_COMPLETE = {
    # These import without the package that they need, and fail in their first step that uses it.
    "ai_and_data.ai_content_pipeline:ContentPipelineSaga": "pydantic-ai not installed",
    "ai_and_data.langgraph_support_agent:CustomerSupportSaga": "langgraph not installed",
    "ai_and_data.pydantic_ai_research:AIResearchSaga": "pydantic-ai not installed",
}
NAMES = tuple(example_classes())


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)  # they log each step
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def real_sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    sleeps: list[float] = []
    monkeypatch.setattr(time, "sleep", sleeps.append)
    return sleeps


def test_the_package_has_so_many_example_sagas() -> None:
    modules, missing = imported()
    assert missing.items() <= NOT_IMPORTABLE.items()
    assert len(modules) + len(missing) == 106
    with_a_saga = [name for name in missing if name.removeprefix("sagaz.examples.").startswith(NOT_ALWAYS_HERE)]
    assert len(NAMES) + len(with_a_saga) == 53
    kinds = [next(base for base in BASES if issubclass(kind, base)) for kind in example_classes().values()]
    assert kinds.count(sagaz.core.saga.Saga) == 3


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_described(name: str) -> None:
    kind = example_classes()[name]
    assert ADAPTER.accepts(kind)
    model = model_of(kind)
    assert len(model.names) >= 2
    assert SagaModel.from_dict(model.to_dict()) == model
    assert all(step.in_doubt == "ignore" and not step.has_recovery for step in model.steps)
    saga = made(kind)
    if isinstance(saga, sagaz.core.decorators.Saga):
        assert model.names == tuple(step.step_id for step in saga.get_steps())
        level = {step.step_id: n for n, steps in enumerate(saga.get_execution_order()) for step in steps}
        assert all(level[other] < level[step.name] for step in model.steps for other in step.depends_on)


@pytest.mark.parametrize("name", NAMES)
def test_an_example_runs_to_its_end_without_any_real_time(name: str, real_sleeps: list[float]) -> None:
    ended = run(example_classes()[name], best_context(name))
    assert real_sleeps == []
    if name in NEVER_COMPLETE:
        assert ended.state.status is SagaStatus.ROLLED_BACK
        assert NEVER_COMPLETE[name] in str(ended.state.error)
        return
    assert ended.result.status is ended.state.status is SagaStatus.COMPLETED
    assert set(ended.result.completed_steps) == set(model_of(example_classes()[name]).names)
    assert not [key for key in ended.state.context if key == "saga_id" or key.startswith("__")]


def test_of_the_example_sagas_all_run_to_an_end_and_48_complete() -> None:
    here = {name: kind for name, kind in example_classes().items() if not name.startswith(NOT_ALWAYS_HERE)}
    statuses = [run(kind, best_context(name)).state.status for name, kind in here.items()]
    assert (statuses.count(SagaStatus.COMPLETED), statuses.count(SagaStatus.ROLLED_BACK)) == (48, 3)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NEVER_COMPLETE])
def test_every_single_fault_of_an_example_strikes_and_is_told_as_it_was(name: str, real_sleeps: list[float]) -> None:
    kind = example_classes()[name]
    model = model_of(kind)
    plans = single_fault_plans(model)
    assert plans
    for plan in plans:
        injector, ledger = Injector(plan), Ledger()
        ended = run(kind, best_context(name), interceptors=(injector, ledger), observers=(injector.observe,))
        assert injector.missed == [], plan
        check(model, plan, ended, ledger)
    assert real_sleeps == []


def check(model: SagaModel, plan: FaultPlan, ended: Run, ledger: Ledger) -> None:
    state, result, left = ended.state, ended.result, set(ledger.left())
    pivots = {step.name for step in model.steps if step.pivot and step.name in state.results}
    kept = pivots.union(*(model.ancestors[pivot] for pivot in pivots))
    may_stay = kept | {step.name for step in model.steps if not step.has_compensation}
    struck = {fault.step for fault in plan if fault.kind in ("after", "undo-fail")}
    assert left - may_stay == struck - may_stay, plan
    assert state.results.keys() - may_stay == {fault.step for fault in plan if fault.kind == "undo-fail"}
    if any(fault.kind == "undo-fail" for fault in plan):
        declarative = model.step(plan.faults[-1].step).compensation_retries == 0
        assert state.status is SagaStatus.FAILED
        assert result.stuck == (plan.faults[-1].step,)
        assert result.status is (SagaStatus.ROLLED_BACK if declarative else SagaStatus.FAILED), "the engine's claim"
    else:
        assert state.status is (SagaStatus.FAILED if pivots else SagaStatus.ROLLED_BACK)
        assert result.status is SagaStatus.ROLLED_BACK
    if state.status is SagaStatus.ROLLED_BACK:
        assert state.context == state.initial


def test_a_lost_payment_acknowledgement_of_the_order_example_leaves_the_payment() -> None:
    kind = example_classes()["commerce.order_processing.main:OrderProcessingSaga"]
    context = {
        "order_id": "ORD-1",
        "user_id": "U-1",
        "items": [{"id": "I-1", "name": "Laptop", "quantity": 1}],
        "total_amount": 99.5,
    }
    injector, ledger = Injector(FaultPlan.parse("process_payment@after")), Ledger()
    ended = run(kind, context, interceptors=(injector, ledger))
    assert ledger.calls == [
        ("action", "reserve_inventory"),
        ("action", "process_payment"),
        ("compensation", "reserve_inventory"),
    ]
    assert ledger.left() == ["process_payment"]
    assert ended.result.status is ended.state.status is SagaStatus.ROLLED_BACK
    assert ended.state.context == context
