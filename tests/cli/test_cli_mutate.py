"""`sagaz mutate`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Ran

    Cli = Callable[..., Ran]

SHOP = """
from sagaz_core import Saga, StepRejected, World, action, compensate


class Till:
    def __init__(self):
        self.paid, self.closed = {}, []


class Shop(Saga):
    saga_name = "shop"

    def __init__(self):
        super().__init__()
        self.till = Till()

    @action("pay", in_doubt="compensate", retries=1)
    async def pay(self, ctx):
        if ctx["order"] in self.till.closed:
            raise StepRejected
        self.till.paid[ctx["order"]] = 5

    @compensate("pay")
    async def refund(self, ctx):
        self.till.closed.append(ctx["order"])
        self.till.paid.pop(ctx["order"], None)

    @action("tell", retries=1)
    async def tell(self, ctx):
        pass


class Lazy(Shop):
    async def refund(self, ctx):
        pass


def fakes(shop):
    world = World()
    world.fake(shop.till, append_only=["closed"])
    return world


def nothing():
    return None


def broken(shop):
    raise ValueError("no fakes today")


not_a_function = 5
"""


@pytest.fixture(autouse=True)
def shop(place: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    name = f"mutated_{abs(hash(request.node.name))}"  # a module of its own, for each test
    (place / f"{name}.py").write_text(SHOP)
    monkeypatch.syspath_prepend(str(place))
    return name


CONTEXT = ("--context", '{"order": "1"}')


def test_it_counts_what_is_found(cli: Cli, shop: str) -> None:
    out = cli("mutate", f"{shop}:Shop", *CONTEXT, "--world", f"{shop}:fakes").ok()
    assert out.splitlines()[0] == "saga 'shop': 3 of 3 mutants caught (100 %), in 1 run (median)"
    assert "nobody notices" not in out


def test_every_mutant_can_be_listed_with_what_found_it(cli: Cli, shop: str) -> None:
    out = cli("mutate", f"{shop}:Shop", *CONTEXT, "--world", f"{shop}:fakes", "--list").ok()
    assert "lose-edge:pay->tell  no difference" in out.splitlines()
    assert out.splitlines()[0].startswith("skip:pay  found by tell@after: the saga says rolled back, but the world")


def test_without_a_world_it_says_what_cannot_be_seen(cli: Cli, shop: str) -> None:
    out = cli("mutate", f"{shop}:Shop", *CONTEXT).ok()
    assert "nobody notices that the compensation of 'pay' does nothing  (skip:pay)" in out
    assert out.splitlines()[-1].startswith("without a world only the ledger watches: it sees that a compensation ret")


def test_a_score_below_the_limit_fails(cli: Cli, shop: str) -> None:
    ran = cli("mutate", f"{shop}:Shop", *CONTEXT, "--fail-under", "90")
    assert ran.code == 1
    assert ran.err == "sagaz: 20 % of the mutants were caught, less than 90 %\n"
    assert cli("mutate", f"{shop}:Shop", *CONTEXT, "--fail-under", "20").code == 0


def test_a_saga_that_is_not_sound_has_no_score(cli: Cli, shop: str) -> None:
    line = cli("mutate", f"{shop}:Lazy", *CONTEXT, "--world", f"{shop}:fakes").fails(2)
    assert line.startswith("saga 'shop' is not sound itself, under tell@after: the saga says rolled back, but the wo")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            ["--world", "{shop}"],
            "--world '{shop}' does not name a function: write MODULE:FUNCTION, such as shop.fakes:",
        ),
        (["--world", "{shop}:fake"], "module '{shop}' has no 'fake' (did you mean 'fakes'?)"),
        (["--world", "{shop}:nothing"], "--world '{shop}:nothing' gives NoneType, not a World: return sagaz_core."),
        (["--world", "{shop}:broken"], "--world '{shop}:broken' made no world: ValueError: no fakes today"),
        (["--world", "{shop}:not_a_function"], "--world '{shop}:not_a_function' made no world: TypeError: "),
        (["--world", "no_such_module:world"], "there is no module 'no_such_module'"),
        (["--kinds", "befor"], "there is no kind of fault 'befor' (did you mean 'before'?)"),
        (["--only", "skp"], "there is no operator 'skp' (did you mean 'skip'?)"),
        (["--fail-under", "101"], "Invalid value for '--fail-under'"),
        (["--fail-under", "nan"], "'nan' is no number"),
        (["--context", "[]"], "--context is not a JSON object"),
        (["--context", "{{}}"], "saga 'shop' ended failed without any fault: KeyError: 'order'"),
    ],
)
def test_what_is_wrong_is_one_line(cli: Cli, shop: str, options: list[str], line: str) -> None:
    given = [option.format(shop=shop) for option in options]
    assert line.format(shop=shop) in cli("mutate", f"{shop}:Shop", *CONTEXT, *given).fails(2)


def test_it_is_in_the_list_of_commands(cli: Cli) -> None:
    assert "mutate     Break a rollback on purpose, and see whether it is noticed." in cli("--help").ok()
