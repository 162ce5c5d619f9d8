"""The processes that are killed: a server that has imported everything and runs no saga, and a fork of it for each run.

The server is `serve()`, started by `kill.py` in an interpreter of its own. It reads one request a line from its
standard input, JSON, and answers each job of it in a line. A job is run by two processes: the first begins the saga
and dies at the job's moment, the second one takes it up from the store. What happened is in the job's diary, a file
that is only ever appended to, so that it survives them.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import select
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagaz_core.adapters.locate import adapter_for, adapters, load_object
from sagaz_core.engine.capture import Capture  # noqa: F401 - so that no fork has to import it
from sagaz_core.engine.load import load_state_to_resume
from sagaz_core.engine.run import RunOptions
from sagaz_core.errors import DefinitionError, SagazError
from sagaz_core.faults.plan import NO_FAULTS, FaultPlan
from sagaz_core.network import no_network
from sagaz_core.prove._kill_witness import KILL, Diary, Witness, Written
from sagaz_core.saga.config import ReplayConfig
from sagaz_core.storage.codec import decode, importing_class
from sagaz_core.storage.url import open_storage
from sagaz_core.virtual_time import frozen_at
from sagaz_core.virtual_time import run as run_virtually

if TYPE_CHECKING:
    from sagaz_core.engine.result import SagaResult

Job = dict[str, Any]

CONTEXT, DIARY, OUTPUT = "context", "diary", "output"
"""The files of a job's folder: what the saga begins with, what happened, and what the processes printed."""

FRESH = (
    "import json, sys; given = json.loads(sys.stdin.readline()); sys.path[:] = given['path']; "
    "from sagaz_core.prove import _kill_process as module; sys.exit(module.{function}(given))"
)
"""What a new interpreter is given to run: the first line of its input says what it may import from."""


# ---- the server


def serve(given: Job) -> int:
    """Answer requests until there are no more. Each job's answer has how its processes ended, -9 being a SIGKILL."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a module prints while it is imported must not be taken for an answer
    for line in sys.stdin:
        request = json.loads(line)
        problem = _imported(request["jobs"])
        if problem:
            answers.write(json.dumps({"problem": problem}) + "\n")
        else:
            for answer in _all_run(request, given["path"]):
                answers.write(json.dumps(answer) + "\n")
                answers.flush()
        answers.flush()
    return 0


def _imported(jobs: Sequence[Job]) -> str:
    """Import what the jobs need, so that no fork has to, and say what cannot be."""
    try:
        for saga in dict.fromkeys(job["saga"] for job in jobs):
            load_object(saga)
        open_storage(jobs[0]["store"])  # its backend is imported, and nothing is touched
        adapters()
    except SagazError as error:
        return str(error)
    gc.freeze()  # what is here stays: no fork looks through it
    return ""


def _all_run(request: Job, path: Sequence[str]) -> Iterator[Job]:
    # A fork has only the thread that forked: a lock that another one held would be held for ever.
    if request["fork"] and hasattr(os, "fork") and threading.active_count() == 1:
        yield from _forked(request["jobs"], request["workers"])
        return
    for job in request["jobs"]:
        ended = [_in_a_fresh_interpreter(job, 1, path)]
        if _goes_on(job, ended[0]):
            ended.append(_in_a_fresh_interpreter(job, 2, path))
        yield {"folder": job["folder"], "ended": ended}


def _goes_on(job: Job, ended: int) -> bool:
    """Whether there is something to take up: the first process was killed at the moment that it should be."""
    return bool(job["at"]) and abs(ended) == KILL


def _forked(jobs: Sequence[Job], workers: int) -> Iterator[Job]:
    waiting = list(reversed(jobs))
    running: dict[int, tuple[Job, list[int]]] = {}
    bell = _sigchld_bell()
    while waiting or running:
        while waiting and len(running) < workers:
            job = waiting.pop()
            running[_fork(job, 1)] = job, []
        pid, status = _wait(bell)
        job, ended = running.pop(pid)
        ended.append(os.waitstatus_to_exitcode(status))
        if len(ended) == 1 and _goes_on(job, ended[0]):
            running[_fork(job, 2)] = job, ended
        else:
            yield {"folder": job["folder"], "ended": ended}


@cache
def _sigchld_bell() -> int:
    """Return a file that can be read when a child has ended."""
    bell, button = os.pipe()
    os.set_blocking(bell, False)
    os.set_blocking(button, False)
    signal.set_wakeup_fd(button, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return bell


def _wait(bell: int) -> tuple[int, int]:
    """Wait until a child has ended, and return its number and status. If our parent is gone, end all that runs."""
    either = select.poll()  # and not select(), which takes no file above 1,023
    either.register(0, select.POLLIN)
    either.register(bell, select.POLLIN)
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            return pid, status
        if 0 in dict(either.poll()):  # nothing is asked while a request is answered, so this is its end
            os.killpg(0, signal.SIGKILL)
        with contextlib.suppress(BlockingIOError):
            os.read(bell, 4096)


def _fork(job: Job, process: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        code = run_process(job, process)
    finally:
        os._exit(code)  # nothing of the server's is to be closed or flushed twice


def _in_a_fresh_interpreter(job: Job, process: int, path: Sequence[str]) -> int:
    given = json.dumps({"path": list(path), "job": job, "process": process})
    command = [sys.executable, "-c", FRESH.format(function="run_one")]
    try:
        return subprocess.run(
            command, input=given + "\n", text=True, stdout=subprocess.DEVNULL, timeout=job["limit"], check=False
        ).returncode
    except subprocess.TimeoutExpired:
        return -signal.SIGALRM if hasattr(signal, "SIGALRM") else 1


def run_one(given: Job) -> int:
    """Be the one process of an interpreter."""
    return run_process(given["job"], given["process"])


# ---- one process


def run_process(job: Job, process: int) -> int:
    """Begin the saga (process 1) or take it up (2), to its end or to the job's moment, and return the exit code."""
    folder = Path(job["folder"])
    os.environ.clear()
    os.environ.update(job["environ"])
    os.chdir(job["cwd"])
    with open(os.devnull, "rb") as nothing, open(folder / OUTPUT, "ab", 0) as output:
        os.dup2(nothing.fileno(), 0)  # the server's requests are not the saga's to read
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, job["limit"])
    diary = Diary(folder / DIARY, process)
    try:
        _run_in_time(job, process, diary)
    except BaseException as error:  # the user's code may raise anything, and it must be told
        diary.note("raised", error=f"{type(error).__name__}: {error}")
        traceback.print_exc()
        sys.stderr.flush()
        return 1
    return 0


def _run_in_time(job: Job, process: int, diary: Diary) -> None:
    if job["live"]:
        asyncio.run(_run(job, process, diary))
        return
    start = datetime.fromisoformat(job["start"]) if job["start"] else None
    with contextlib.ExitStack() as stack:
        if start is not None:
            stack.enter_context(frozen_at(start))
        block = stack.enter_context(no_network())
        run_virtually(_run(job, process, diary), start=start)
    if block.attempts:
        diary.note("network", error=f"the saga tried to {block.attempts[0]}")


async def _run(job: Job, process: int, diary: Diary) -> None:
    witness = Witness(
        diary, FaultPlan.parse(job["plan"]) if job["plan"] else NO_FAULTS, job["at"] if process == 1 else ""
    )
    saga = made_by(load_object(job["saga"]))
    adapter = adapter_for(saga)
    saga = adapter.create(saga)
    storage = Written(open_storage(job["store"]), witness)
    options = RunOptions(
        storage=storage,
        replay_config=_config(saga),
        interceptors=(witness,),
        observers=(witness.injector.observe,) if witness.injector.observes else (),
        source=job["saga"],
    )
    try:
        if process == 1:
            context = decode((Path(job["folder"]) / CONTEXT).read_bytes(), resolve=importing_class)
            work = adapter.run(saga, context, saga_id=job["saga_id"], options=options)
        else:
            state = await load_state_to_resume(storage, job["saga_id"])
            if state.status.ended:
                diary.note("result", status=state.status.value)
                return
            work = adapter.resume(saga, state, options=options)
        # A plan may cancel the task that runs the saga, which must not be the one that notes how it ended.
        await _noted(asyncio.ensure_future(work), diary)
        await witness.injector.deliver_late()
    finally:
        await storage.close()


async def _noted(run: asyncio.Future[SagaResult], diary: Diary) -> None:
    try:
        result = await run
    except asyncio.CancelledError:
        diary.note("cancelled")
    else:
        diary.note("result", status=result.status.value)


def made_by(target: Any) -> Any:
    """Return the saga, or what the function that makes it returns."""
    try:
        adapter_for(target)
    except DefinitionError:
        if callable(target):
            return target()
        raise
    return target


def _config(saga: Any) -> ReplayConfig:
    """Return how the run is captured: as the saga itself is, but always with a journal, which is the evidence."""
    own = getattr(saga, "replay_config", None)
    if not isinstance(own, ReplayConfig):
        return ReplayConfig()
    return own.model_copy(update={"enable_snapshots": True, "journal": True})
