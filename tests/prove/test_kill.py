"""Real processes, killed by a real SIGKILL at each durable boundary and taken up by others, on a real store."""

from __future__ import annotations

import asyncio
import os
import select
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import mortals
import pytest
import servers

from sagaz_core import FaultPlan, UnsoundError, World
from sagaz_core.errors import NetworkBlockedError, RunningLoopError, UnknownSagaError, UsageError
from sagaz_core.prove.boundaries import Boundary, boundaries, default_plans
from sagaz_core.prove.kill import FOLDER_VARIABLE, Killer, KillError, Mortal, kill_everywhere, model_of, spec_of
from sagaz_core.prove.trial import NotRunnableError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sagaz_core.prove.kill import Killed

ORDER = {"order": "1"}
FORWARD = FaultPlan()


@pytest.fixture
def killer() -> Iterator[Killer]:
    with Killer() as made:
        yield made


def mortal(saga: Any) -> Mortal:
    spec = spec_of(saga)
    return Mortal(spec, model_of(spec), ORDER)


def verdicts(killed: Killed) -> dict[str, str]:
    return {str(outcome.boundary): outcome.verdict.value for outcome in killed.failures}


# ---- sound sagas


def test_ten_steps_lose_nothing_and_do_nothing_twice() -> None:
    killed = kill_everywhere(mortals.ten_steps, world=mortals.table_world)
    assert verdicts(killed) == {}
    assert len(killed.outcomes) == 86
    assert all(outcome.diary.of("written", process=2) for outcome in killed.outcomes)
    killed.assert_sound()


@pytest.mark.parametrize("saga", [mortals.Sound, mortals.Pivot], ids=lambda saga: saga.saga_name)
def test_a_sound_saga_is_sound_wherever_it_is_killed(saga: Any) -> None:
    killed = kill_everywhere(saga, ORDER, world=mortals.table_world)
    assert verdicts(killed) == {}
    assert {outcome.status.value for outcome in killed.outcomes} <= {"completed", "rolled_back"}


def test_steps_beside_each_other_are_taken_up_too() -> None:
    killed = kill_everywhere(mortals.Wide, plans=[FORWARD, "d@before"], world=mortals.table_world)
    assert verdicts(killed) == {}
    assert {"kill:b:effect", "kill:c:effect", "d@before+kill:c:undo-effect"} <= {
        str(o.boundary) for o in killed.outcomes
    }


def test_the_moments_that_a_saga_comes_to_are_those_that_its_description_tells() -> None:
    model = model_of("mortals:Sound")
    told = [str(boundary) for plan in default_plans(model) for boundary in boundaries(model, plan)]
    assert [str(outcome.boundary) for outcome in kill_everywhere(mortals.Sound, ORDER).outcomes] == told


def test_a_retry_is_a_moment_of_its_own() -> None:
    killed = kill_everywhere(mortals.Flaky, ORDER, plans=[FORWARD])
    assert "kill:charge#2:start" in {str(outcome.boundary) for outcome in killed.outcomes}
    assert verdicts(killed) == {}


def test_a_run_that_was_killed_had_no_end_of_its_own(killer: Killer) -> None:
    outcome = killer.kill(mortal(mortals.Sound), Boundary("effect", "charge"))
    first = [line["what"] for line in outcome.diary.lines if line["process"] == 1]
    assert first[-1] == "happened"
    assert "result" not in first
    assert [entry.step for entry in outcome.evidence.ledger.entries] == ["reserve", "charge", "charge", "tell"]
    assert outcome.verdict.value == "CLEAN"


def test_killed_after_its_end_a_saga_is_only_told_how_it_ended(killer: Killer) -> None:
    outcome = killer.kill(mortal(mortals.Sound), Boundary("end"))
    assert [line["what"] for line in outcome.diary.of("began", "result", process=2)] == ["result"]


def test_a_fresh_interpreter_for_each_process_comes_to_the_same_end() -> None:
    with Killer(fork=False) as killer:
        outcome = killer.kill(mortal(mortals.Sound), Boundary("effect", "charge"))
    assert [entry.step for entry in outcome.evidence.ledger.entries] == ["reserve", "charge", "charge", "tell"]
    assert outcome.verdict.value == "CLEAN"


def test_where_a_module_starts_threads_nothing_is_forked(killer: Killer) -> None:
    outcome = killer.kill(Mortal("threads_at_import:make", model_of("mortals:ten_steps"), ORDER), Boundary("end"))
    assert outcome.verdict.value == "CLEAN"


# ---- unsound ones


def test_an_action_without_a_key_is_found_by_the_world() -> None:
    killed = kill_everywhere(mortals.Twice, ORDER, world=mortals.table_world)
    assert verdicts(killed) == {"kill:charge:effect": "NOT_IDEMPOTENT"}
    with pytest.raises(
        UnsoundError, match=r"NOT_IDEMPOTENT killed after the effect of 'charge', before it was recorded"
    ):
        killed.assert_sound()
    report = killed.failures[0].explain()
    assert "effects.charged R-1: 1 -> 2" in report
    assert "charge   2 times" in report


def test_a_world_of_fakes_that_reach_the_outside_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTSIDE", str(tmp_path))
    table, world = mortals.Table(tmp_path), World()
    table.do("before")
    world.fake(table)
    killed = kill_everywhere(mortals.Twice, ORDER, plans=[FORWARD], world=world)
    assert verdicts(killed) == {"kill:charge:effect": "NOT_IDEMPOTENT"}
    assert table.rows() == {"before": 1}


def test_what_is_left_without_the_kill_too_is_not_put_down_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killer: Killer
) -> None:
    monkeypatch.setenv("OUTSIDE", str(tmp_path))
    world = World()
    world.fake(mortals.Table(tmp_path))
    boundary = Boundary("undo-effect", "charge", plan=FaultPlan.parse("end@before"))
    (finding,) = killer.kill(mortal(mortals.Tells), boundary, world=world).findings
    assert (finding.verdict.value, finding.step) == ("ORPHAN", "tell")
    assert "these steps have no compensation: tell" in finding.sentence


def test_ids_that_each_run_draws_are_not_put_down_to_the_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert verdicts(kill_everywhere(mortals.Draws, plans=[FORWARD], world=mortals.table_world)) == {}
    killed = kill_everywhere(mortals.DrawsAgain, plans=[FORWARD], world=mortals.table_world)
    assert verdicts(killed) == {"kill:put:effect": "NOT_IDEMPOTENT"}
    monkeypatch.setenv("OUTSIDE", str(tmp_path))
    world = World()
    world.fake(mortals.Table(tmp_path))
    assert verdicts(kill_everywhere(mortals.Draws, plans=[FORWARD], world=world)) == {}
    assert mortals.Table(tmp_path).rows() == {}


def test_what_is_kept_in_memory_is_gone(killer: Killer) -> None:
    outcome = killer.kill(mortal(mortals.Forgetful), Boundary("record", "reserve"))
    assert outcome.verdict.value == "NOT_IDEMPOTENT"
    assert "the crash alone should have done no harm, but the saga ended rolled_back" in outcome.findings[0].sentence
    assert "in the context, not in memory" in outcome.findings[0].advice


def test_without_a_world_the_ledger_and_the_store_judge() -> None:
    assert verdicts(kill_everywhere(mortals.Twice, ORDER)) == {}


# ---- broken engines and stores


def test_a_resume_that_loses_a_step_is_caught() -> None:
    killed = kill_everywhere(mortals.resume_that_skips, plans=[FORWARD])
    assert verdicts(killed) == {"kill:s0:start": "LIE", "kill:s0:record": "LIE", "kill:s1:record": "LIE"}
    assert killed.failures[0].findings[0].sentence == "'s0' is recorded as done, and was never run to its end"


def test_a_resume_that_undoes_again_is_caught() -> None:
    killed = kill_everywhere(mortals.resume_that_undoes_again, plans=["end@before"])
    assert verdicts(killed)["end@before+kill:s2:undo-record"] == "DOUBLE_UNDO"


def test_a_resume_that_does_again_what_was_recorded_is_caught(killer: Killer) -> None:
    outcome = killer.kill(mortal(mortals.store_that_drops), Boundary("record", "s1"))
    assert "'s1' was recorded as done before the crash, and was run again" in [f.sentence for f in outcome.findings]


def test_a_store_that_loses_what_it_said_to_have_written_is_caught(killer: Killer) -> None:
    outcome = killer.kill(mortal(mortals.store_that_drops), Boundary("effect", "s2"))
    assert outcome.verdict.value == "LIE"
    assert "was written and is not in the store" in outcome.findings[0].sentence


def test_a_state_that_cannot_be_taken_up_is_said(killer: Killer) -> None:
    outcome = killer.kill(mortal(mortals.store_that_drops), Boundary("record", "s2"))
    assert outcome.findings[0].sentence.startswith("what was stored could not be taken up by another process: Corrupt")


def test_a_moment_that_never_comes_is_vacuous(killer: Killer) -> None:
    outcome = killer.kill(mortal(mortals.Sound), Boundary("effect", "charge", 2))
    assert outcome.verdict.value == "VACUOUS"
    assert outcome.findings[0].sentence == "the saga never came to charge#2:effect: it ended completed"


# ---- what cannot be killed


def test_a_saga_that_fails_by_itself_is_refused() -> None:
    with pytest.raises(UsageError, match=r"ends rolled_back .*nobody there.* although nobody kills it"):
        kill_everywhere(mortals.Fails, ORDER)


def test_a_saga_that_never_ends_is_ended() -> None:
    with pytest.raises(KillError, match=r"did not end within 0\.5 s"):
        kill_everywhere(mortals.Endless, ORDER, limit=0.5)


def test_a_process_that_dies_of_something_else_is_no_verdict(killer: Killer) -> None:
    with pytest.raises(KillError, match="ended with exit code 7: out of memory"):
        killer.kill(mortal(mortals.Dies), Boundary("effect", "reserve"))
    # What is asked next is answered, and not mixed up.
    assert killer.kill(mortal(mortals.Sound), Boundary("end")).verdict.value == "CLEAN"


def test_the_network_is_out_of_reach_also_when_the_saga_swallows_that() -> None:
    with pytest.raises(NetworkBlockedError, match=r"connect to 127\.0\.0\.1:9"):
        kill_everywhere(mortals.Reaching, ORDER)


def test_what_another_process_cannot_find_is_refused() -> None:
    class Local(mortals.Sound):
        pass

    for saga in (Local, Local(), lambda: Local()):
        with pytest.raises(UsageError, match="cannot be found by another process"):
            kill_everywhere(saga)
    with pytest.raises(UnknownSagaError, match="did you mean 'Sound'"):
        kill_everywhere("mortals:Soun")


def test_an_engine_that_cannot_resume_is_not_run() -> None:
    pytest.importorskip("sagaz")
    with pytest.raises(NotRunnableError, match="cannot take up a run that another process left"):
        kill_everywhere("sagaz.examples.commerce.order_processing.main:OrderProcessingSaga")


def test_inside_a_running_loop_it_is_refused() -> None:
    async def inside() -> None:
        kill_everywhere(mortals.Sound, ORDER)

    with pytest.raises(RunningLoopError):
        asyncio.run(inside())


def test_a_store_in_memory_is_refused() -> None:
    with pytest.raises(UsageError, match="dies with its process"):
        kill_everywhere(mortals.Sound, ORDER, store="memory://")


@pytest.mark.parametrize("store", ["postgresql://app:hunter2@db/sagas", "redis://cache", "S3://bucket/sagas"])
def test_a_store_on_the_network_needs_the_network(store: str) -> None:
    with pytest.raises(UsageError, match="add that") as refused:
        kill_everywhere(mortals.Sound, ORDER, store=store)
    assert "live=True" in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_a_store_of_files_loses_nothing() -> None:
    killed = kill_everywhere(mortals.Sound, ORDER, world=mortals.table_world, store="file://{folder}/sagas")
    assert verdicts(killed) == {}
    assert killed.outcomes


def test_postgres_loses_nothing() -> None:
    with servers.postgres_database() as url:
        killed = kill_everywhere(mortals.Sound, ORDER, world=mortals.table_world, store=url, live=True)
    assert verdicts(killed) == {}
    assert killed.outcomes


def test_what_is_no_world_is_refused() -> None:
    with pytest.raises(UsageError, match="of type 'int': give a World"):
        kill_everywhere(mortals.Sound, ORDER, world=5)  # type: ignore[arg-type]


def test_a_crash_in_the_plan_is_refused() -> None:
    with pytest.raises(UsageError, match="has no other crash"):
        kill_everywhere(mortals.Sound, ORDER, plans=["charge@crash"])


def test_no_folder_and_no_process_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Killer() as killer:
        killer.kill(mortal(mortals.Sound), Boundary("end"))
        assert list(tmp_path.iterdir()) == []
        process = killer._server._process
        assert process is not None
    assert process.returncode == 0
    assert FOLDER_VARIABLE not in os.environ


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_what_runs_ends_with_the_process_that_asked_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    script = f"from sagaz_core.prove.kill import kill_everywhere as k; k('mortals:Waiting', {ORDER}, limit=3600)"
    environment = {**os.environ, "OUTSIDE": str(tmp_path), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, env=environment) as process, open(tmp_path / "pipe") as pipe:
        assert pipe.readline() == "here\n"
        process.kill()
        end = select.poll()
        end.register(pipe, select.POLLIN)
        assert end.poll(60_000), "the forked process outlives the one that asked for it"
        assert pipe.read() == ""
