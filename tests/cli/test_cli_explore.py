"""`sagaz explore`."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

import pytest

from sagaz_core.prove.failures import FILE, Failures

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Ran

    Cli = Callable[..., Ran]

SHOP = """
import asyncio

from sagaz_core import Saga, StepRejected, World, action, compensate


class Till:
    def __init__(self):
        self.paid, self.closed = {}, []


class Shop(Saga):
    saga_name = "shop"

    def __init__(self):
        super().__init__()
        self.till = Till()

    @action("pay", in_doubt="compensate", timeout=5, retries=1)
    async def pay(self, ctx):
        if ctx["order"] in self.till.closed:
            raise StepRejected
        self.till.paid[ctx["order"]] = 5

    @compensate("pay")
    async def refund(self, ctx):
        if ctx["order"] not in self.till.closed:
            self.till.closed.append(ctx["order"])
        self.till.paid.pop(ctx["order"], None)

    @action("tell")
    async def tell(self, ctx):
        pass


class Lazy(Shop):
    saga_name = "lazy"

    async def refund(self, ctx):
        pass


class Fails(Shop):
    saga_name = "fails"

    async def tell(self, ctx):
        raise ValueError("nobody listens")


class Stubborn(Shop):
    saga_name = "stubborn"

    async def tell(self, ctx):
        while True:
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                pass


def fakes(shop):
    world = World()
    world.fake(shop.till, append_only=["closed"])
    return world


def probes(shop):
    world = World()
    world.probe("paid", lambda: dict(shop.till.paid))
    return world


def nothing():
    return None


async def later(shop):
    return fakes(shop)


def broken(shop):
    raise ValueError("no fakes today")


not_a_function = 5
"""

CONTEXT = ("--context", '{"order": "1"}')


@pytest.fixture(autouse=True)
def shop(place: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    name = f"explored_{abs(hash(request.node.name))}"  # a module of its own, for each test
    (place / f"{name}.py").write_text(SHOP)
    monkeypatch.syspath_prepend(str(place))
    return name


def lazy(shop: str) -> tuple[str, ...]:
    return ("explore", f"{shop}:Lazy", *CONTEXT, "--world", f"{shop}:fakes")


def sound(shop: str) -> tuple[str, ...]:
    return ("explore", f"{shop}:Shop", *CONTEXT, "--world", f"{shop}:fakes")


# ---- how it ends


def test_a_sound_saga_is_two_lines(cli: Cli, shop: str) -> None:
    first, second = cli(*sound(shop)).ok().splitlines()
    assert first.startswith("saga 'shop': 139 of 139 plans of at most 2 faults by ")
    assert first.endswith(" executions, 0 not sound")
    assert second.endswith("(100%) of steps and kinds of faults; merged: forked between steps, equal states merged")


def test_depth_and_kinds_say_what_is_tried(cli: Cli, shop: str) -> None:
    assert "1 of 1 plans of at most 0 faults" in cli(*sound(shop), "--depth", "0").ok()
    assert "3 of 3 plans of at most 1 fault " in cli(*sound(shop), "--depth", "1", "--kinds", "before").ok()


def test_what_is_not_sound_is_shown_with_its_command_and_fails(cli: Cli, shop: str) -> None:
    ran = cli(*lazy(shop))
    assert ran.code == 1
    assert ran.err.startswith("sagaz: ")
    assert ran.err.endswith(" not sound\n")
    assert "saga 'lazy' under tell@before ended rolled_back: LIE" in ran.out
    again = f'sagaz explore {shop}:Lazy --context \'{{"order": "1"}}\' --world {shop}:fakes --plan=tell@before'
    assert again in ran.out


def test_its_command_shows_that_plan_alone(cli: Cli, shop: str) -> None:
    ran = cli(*lazy(shop), "--plan", "tell@before", "--plan", "pay@before")
    assert ran.code == 1
    assert ran.err == "sagaz: 1 of 2 plans is not sound\n"
    assert "saga 'lazy' under tell@before ended rolled_back: LIE" in ran.out
    assert "saga 'lazy' under pay@before ended rolled_back: CLEAN" in ran.out
    assert not (FILE).exists()


def test_a_budget_that_is_used_up_is_no_failure_and_says_how_far_it_came(cli: Cli, shop: str) -> None:
    ran = cli(*sound(shop), "--max-executions", "10")
    assert (ran.code, ran.err) == (0, "")
    assert " of 139 plans of at most 2 faults by 10 executions, 0 not sound, INCOMPLETE\n" in ran.out
    assert "not run: the budget was used up after 10 executions\n" in ran.out
    assert cli(*sound(shop), "--max-executions", "10").out == ran.out
    found = json.loads(cli(*sound(shop), "--max-executions", "10", "--format", "json").ok())
    assert (found["complete"], found["not_run"]["*"]) == (False, "the budget was used up after 10 executions")


def test_a_budget_that_is_too_small_for_any_plan_fails(cli: Cli, shop: str) -> None:
    ran = cli(*sound(shop), "--budget", "0.000001ms")
    assert ran.fails(1).startswith("nothing was tried: the budget was used up after ")
    assert "0 of 139 plans" in ran.out


def test_a_report_of_a_search_that_was_stopped_is_incomplete(cli: Cli, shop: str, place: Path) -> None:
    cli(*sound(shop), "--max-executions", "10", "--report", "out").ok()
    report = json.loads((place / "out" / "sagaz-report.json").read_text())
    assert not report["complete"]
    (line,) = report["incomplete"]
    assert line.startswith("sagaz explore: saga 'shop': the budget was used up after 10 executions, ")
    assert line.endswith(" of 139 plans")


def test_a_budget_is_used_up_without_a_world_too(cli: Cli, shop: str) -> None:
    out = cli("explore", f"{shop}:Shop", *CONTEXT, "--max-executions", "3").ok()
    assert "INCOMPLETE" in out
    assert "not run: the budget was used up after " in out


def test_a_large_budget_changes_nothing(cli: Cli, shop: str) -> None:
    assert "139 of 139 plans" in cli(*sound(shop), "--budget", "1h", "--max-executions", "100000").ok()


def test_a_saga_that_fails_by_itself_says_so_without_a_traceback(cli: Cli, shop: str) -> None:
    ran = cli("explore", f"{shop}:Fails", *CONTEXT, "--world", f"{shop}:fakes")
    assert "not run: without faults the saga ends rolled_back at 'tell' (ValueError: nobody listens)" in ran.out
    assert "Traceback" not in ran.out + ran.err
    assert ran.err.startswith("sagaz: not all was tried: without faults the saga ends rolled_back at 'tell'")
    assert ran.code == 1


def test_it_does_so_too_where_every_plan_that_was_asked_for_was_run(cli: Cli, shop: str) -> None:
    ran = cli("explore", f"{shop}:Fails", *CONTEXT, "--kinds", "before")
    assert ran.fails(1).startswith("not all was tried: without faults the saga ends rolled_back at 'tell'")
    ran = cli("explore", f"{shop}:Fails", *CONTEXT, "--kinds", "before", "--format", "json")
    assert (json.loads(ran.out)["complete"], json.loads(ran.out)["unproved"][:17]) == (False, "not all was tried")


def test_a_plan_under_which_the_saga_does_not_end_is_endless(cli: Cli, shop: str) -> None:
    ran = cli("explore", f"{shop}:Stubborn", *CONTEXT, "--plan", "none", "--plan", "pay@before")
    assert (ran.code, ran.err) == (1, "sagaz: 1 of 2 plans is not sound\n")
    assert "saga 'stubborn' was given up: ENDLESS, the saga does not end" in ran.out
    assert "the action of step 'tell' never ends, and goes on when it is cancelled, it waits at " in ran.out


def test_a_saga_that_is_not_sound_by_itself_is_shown_with_its_command(cli: Cli, shop: str) -> None:
    ran = cli("explore", f"{shop}:Shop", "--world", f"{shop}:fakes")  # the compensation needs the order, too
    assert ran.code == 1
    assert ran.err == "sagaz: 1 thing is not sound\n"
    assert "not run: without faults the saga ends failed at 'pay' (KeyError: 'order')" in ran.out
    assert f"again                sagaz explore {shop}:Shop --world {shop}:fakes --plan=none\n" in ran.out
    assert "STUCK" in cli("explore", f"{shop}:Shop", "--world", f"{shop}:fakes", "--plan=none").out


# ---- modes


def test_without_fakes_the_report_says_why_it_runs_from_the_start(cli: Cli, shop: str) -> None:
    ran = cli("explore", f"{shop}:Shop", *CONTEXT)
    assert "packed: each plan from the start" in ran.ok()
    assert "why packed: no world was given" in ran.out
    ran = cli("explore", f"{shop}:Shop", *CONTEXT, "--world", f"{shop}:probes", "--kinds", "before")
    assert "why packed: the world has probes (paid), which are read but cannot be put back" in ran.out


@pytest.mark.parametrize(("mode", "plans"), [("tree", "139 of 139"), ("packed", "33 of 33")])
def test_a_mode_can_be_asked_for(cli: Cli, shop: str, mode: str, plans: str) -> None:
    out = cli(*sound(shop), "--mode", mode).ok()
    assert f"why {mode}: asked for" in out
    assert f"{plans} plans" in out


# ---- JSON


def test_json_has_everything(cli: Cli, shop: str) -> None:
    ran = cli(*lazy(shop), "--format", "json", "--depth", "1")
    assert ran.code == 1
    found = json.loads(ran.out)
    assert (found["saga"], found["mode"], found["reason"], found["depth"]) == ("lazy", "merged", "", 1)
    assert (found["plans"], found["not_run"], found["blind"]) == (found["possible"], {}, [])
    by_plan = {failure["plan"]: failure for failure in found["failures"]}
    assert by_plan["tell@before"]["status"] == "rolled_back"
    assert by_plan["tell@before"]["findings"][0]["verdict"] == "LIE"
    assert by_plan["tell@before"]["reproduce"].endswith("--plan=tell@before")


def test_json_of_a_sound_saga_has_no_failures(cli: Cli, shop: str) -> None:
    found = json.loads(cli(*sound(shop), "--format", "json").ok())
    assert (found["plans"], found["possible"], found["failures"]) == (139, 139, [])
    assert found["checked"] == found["applicable"]


def test_json_of_a_plan_has_the_shape_of_an_exploration(cli: Cli, shop: str) -> None:
    ran = cli(*lazy(shop), "--format", "json", "--plan", "tell@before")
    assert (ran.code, ran.err) == (1, "sagaz: 1 of 1 plans is not sound\n")
    found = json.loads(ran.out)
    whole = json.loads(cli(*lazy(shop), "--format", "json", "--depth", "1").out)
    assert found.keys() == whole.keys()
    assert (found["saga"], found["plans"], found["possible"], found["depth"], found["checked"]) == ("lazy", 1, 1, 1, 1)
    assert found["reason"] == "only the plans that --plan names"
    assert found["failures"] == found["outcomes"]
    assert found["failures"] == [one for one in whole["failures"] if one["plan"] == "tell@before"]


def test_json_of_a_sound_plan_says_how_it_ended(cli: Cli, shop: str) -> None:
    found = json.loads(cli(*sound(shop), "--format", "json", "--plan", "tell@before").ok())
    assert found["failures"] == []
    (outcome,) = found["outcomes"]
    assert (outcome["status"], outcome["verdict"], outcome["compensated"]) == ("rolled_back", "CLEAN", ["pay"])


def test_single_plans_have_a_report_too(cli: Cli, shop: str, place: Path) -> None:
    cli(*lazy(shop), "--plan", "tell@before", "--report", "out")
    (saga,) = json.loads((place / "out" / "sagaz-report.json").read_text())["sagas"]
    assert [failure["plan"] for failure in saga["failures"]] == ["tell@before"]


# ---- what failed before


def test_what_failed_is_kept_tried_first_and_forgotten_when_it_is_sound(cli: Cli, shop: str, place: Path) -> None:
    cli(*lazy(shop))
    kept = Failures(place / FILE)
    assert "tell@before" in [str(plan) for plan in kept.of("lazy")]
    ran = cli(*lazy(shop), "--budget", "0.000001ms")
    assert ran.code == 1
    assert "saga 'lazy': 0 of 139 plans" in ran.out  # there was no time for anything else
    assert "under tell@before ended rolled_back: LIE" in ran.out
    module = place / f"{shop}.py"
    module.write_text(SHOP.replace("async def refund(self, ctx):\n        pass", "pass"))
    del sys.modules[shop]
    cli(*lazy(shop)).ok()
    assert kept.of("lazy") == []


def test_a_sound_saga_leaves_no_file(cli: Cli, shop: str, place: Path) -> None:
    cli(*sound(shop)).ok()
    assert not (place / FILE).exists()


def test_the_file_is_in_the_project_s_folder(cli: Cli, shop: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "pyproject.toml").write_text("[tool.sagaz]\n")
    (place / "below").mkdir()
    monkeypatch.chdir(place / "below")
    assert cli(*lazy(shop)).code == 1
    assert (place / FILE).is_file()


# ---- what is wrong


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--world", "{shop}"], "--world '{shop}' does not name a function: write MODULE:FUNCTION, such as shop.fakes"),
        (["--world", "{shop}:fake"], "module '{shop}' has no 'fake' (did you mean 'fakes'?)"),
        (["--world", "{shop}:nothing"], "--world '{shop}:nothing' gives NoneType, not a World: return sagaz_core."),
        (["--world", "{shop}:broken"], "--world '{shop}:broken' made no world: ValueError: no fakes today"),
        (["--world", "{shop}:later"], "--world '{shop}:later' is an async function: let it return the World at once"),
        (["--world", "{shop}:not_a_function"], "--world '{shop}:not_a_function' made no world: TypeError: "),
        (["--world", "no_such_module:world"], "there is no module 'no_such_module'"),
        (["--kinds", "befor"], "there is no kind of fault 'befor' (did you mean 'before'?)"),
        (["--kinds", ""], "no kinds of faults"),
        (["--plan", "pay@aftr"], "there is no kind of fault 'aftr' (did you mean 'after'?)"),
        (["--plan", "py@after"], "saga 'shop' has no step 'py' (did you mean 'pay'?)"),
        (["--plan", "pay"], "'pay' is not a fault: write step@kind"),
        (["--budget", "30"], "a budget of '30': write a number and ms, s, m or h, such as 30s"),
        (["--budget", "0s"], "a budget of '0s': write a number and ms, s, m or h, such as 30s"),
        (["--max-executions", "0"], "Invalid value for '--max-executions'"),
        (["--depth", "-1"], "Invalid value for '--depth'"),
        (["--depth", "two"], "Invalid value for '--depth'"),
        (["--mode", "fast"], "Invalid value for '--mode'"),
        (["--context", "[]"], "--context is not a JSON object"),
    ],
)
def test_what_is_wrong_is_one_line(cli: Cli, shop: str, options: list[str], line: str, place: Path) -> None:
    given = [option.format(shop=shop) for option in options]
    assert line.format(shop=shop) in cli("explore", f"{shop}:Shop", *CONTEXT, *given).fails(2)
    assert not (place / ".sagaz").exists()


@pytest.mark.parametrize(
    ("saga", "line"),
    [("Shp", "has no 'Shp' (did you mean 'Shop'?)"), ("not_a_function", "5 is not a saga"), ("", "MODULE:CLASS")],
)
def test_a_saga_that_is_none_is_one_line(cli: Cli, shop: str, saga: str, line: str) -> None:
    assert line in cli("explore", f"{shop}:{saga}").fails(2)


def test_it_is_in_the_list_of_commands(cli: Cli) -> None:
    assert "explore    Try every failure of a saga, and judge each end." in cli("--help").ok()


def test_a_function_that_makes_the_saga_may_be_named(cli: Cli, shop: str, place: Path) -> None:
    with (place / f"{shop}.py").open("a") as module:
        module.write("\n\ndef make():\n    return Shop()\n\n\ndef needs(till):\n    return Shop()\n")
    ran = cli("explore", f"{shop}:make", *CONTEXT, "--world", f"{shop}:fakes")
    assert (ran.code, ran.out) == (0, cli(*sound(shop)).out)
    assert cli("explore", f"{shop}:needs").err == (
        f"sagaz: '{shop}:needs' cannot make a saga (missing a required argument: 'till'): let it need no arguments\n"
    )


# ---- the user's code


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("BrokenSaga", "RuntimeError: no bank at all (BrokenSaga.__init__, "),
        ("BuildSaga", "KeyError: 'config' (BuildSaga.build, "),
        ("CarelessSaga", "TypeError: object of type 'NoneType' has no len() (CarelessSaga.__init__, "),
    ],
)
def test_an_error_of_a_saga_that_is_being_made_says_where_it_comes_from(cli: Cli, name: str, says: str) -> None:
    line = cli("explore", f"cli_shop:{name}").fails()
    assert line.startswith(says)
    file, _, number = line.removesuffix(")").removeprefix(says).rpartition(":")
    assert (file.rpartition("cli_shop")[2], number.isdecimal()) == (".py", True)


def test_the_place_of_an_error_is_the_users_and_not_a_librarys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sagaz_core.cli.failure import users_place

    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "a_driver.py").write_text("import json\n\ndef connect():\n    json.loads('x')\n")
    monkeypatch.syspath_prepend(str(folder))
    import a_driver  # type: ignore[import-not-found] # written above

    with pytest.raises(json.JSONDecodeError) as raised:
        a_driver.connect()
    assert users_place(raised.value).startswith("test_the_place_of_an_error_is_the_users_and_not_a_librarys, ")
    trace = raised.value.__traceback__
    assert trace is not None
    error = raised.value.with_traceback(trace.tb_next)  # as if we had called it
    assert users_place(error) == f"connect, {folder / 'a_driver.py'}:4".replace(f"{os.getcwd()}{os.sep}", "")
    assert users_place(ValueError("raised nowhere")) == ""
