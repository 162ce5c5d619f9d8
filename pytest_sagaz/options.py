"""The command-line options and ini keys. Nothing here looks at what they mean: one that is not used costs nothing."""

from __future__ import annotations

import argparse
import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

MARKERS = {
    "replay_from": "replay_from(id_or_path, step=None, override=None, freeze=True): "
    "give the fixtures `recording` and `saga_case` this recorded saga, from this step on.",
    "force_failure": 'force_failure(step, at="before", exc=None): '
    "run the test's sagas under this fault; `at` is a kind such as after, undo-fail or flaky:2. Can be stacked.",
    "saga_matrix": "saga_matrix(saga, context, kinds=None): "
    "run the test once for each single-fault plan of the saga, given by the fixture `saga_case`.",
}


def add_options(parser: pytest.Parser) -> None:
    """Register all of them. Every default is None, so that it can be told whether one was given."""
    group = parser.getgroup("sagaz", "proving the rollback of sagas")
    group.addoption(
        "--sagaz-replay",
        action="append",
        metavar="ID|PATH|GLOB",
        help="Collect a faithful replay and one item for each single-fault plan of this recorded saga: an id of the "
        "store or of sagaz_recordings, a recording file, or a pattern of either. Repeatable. Without path arguments "
        "nothing else is collected.",
    )
    group.addoption(
        "--sagaz-store",
        metavar="URL",
        help="Store of the recorded sagas (else $SAGAZ_STORE, ini sagaz_store, [tool.sagaz] store, .sagaz/sagaz.db).",
    )
    group.addoption("--sagaz-from", metavar="STEP", help="Begin at this step, with the recorded results before it.")
    group.addoption(
        "--sagaz-plan",
        action="append",
        metavar="PLAN",
        help="Run this plan instead of the single-fault set, such as ship@before+charge@undo-fail, or none for a run "
        "without faults. Repeatable.",
    )
    group.addoption(
        "--sagaz-override",
        action="append",
        metavar="KEY=JSON",
        help="Lay this value over the recorded context; text that is not JSON is taken as it is. Repeatable.",
    )
    group.addoption("--sagaz-kinds", metavar="KINDS", help="Kinds of faults: quick (default), all, or before,after,…")
    group.addoption(
        "--sagaz-depth",
        metavar="N",
        help="How many faults at a time (1). With more, one item a saga explores every plan of up to N faults.",
    )
    group.addoption(
        "--sagaz-budget",
        metavar="TIME",
        help="Let each exploration take no longer, such as 30s; it says how far it came.",
    )
    group.addoption(
        "--sagaz-allow-live",
        action="store_true",
        default=None,
        help="Let replays reach the network, in real time and with the clock as it is.",
    )
    group.addoption(
        "--sagaz-strict",
        action="store_true",
        default=None,
        help="Fail on drift in values, and on an override of a key that the context does not have.",
    )
    group.addoption(
        "--sagaz-allow-drift",
        action="store_true",
        default=None,
        help="Run the plans although the saga is not defined as it was recorded.",
    )
    group.addoption(
        "--sagaz-mutate",
        action="store_true",
        default=None,
        help="Afterwards, break each saga that the tests ran in every way of `sagaz mutate`, run the tests that ran it "
        "again, and say which of the mutants none of them noticed.",
    )
    group.addoption(
        "--sagaz-mutate-fail-under",
        type=_percentage,
        metavar="N",
        help="Fail the run if fewer than N %% of the mutants are noticed.",
    )
    group.addoption(
        "--sagaz-cov",
        action="store_true",
        default=None,
        help="Say which failures of the sagas are proved to be sound, by your tests and by exploration. Every saga of "
        "sagaz_sagas counts.",
    )
    group.addoption("--sagaz-cov-fail-under", metavar="N", help="Fail if less than N per cent of them are.")
    group.addoption(
        "--sagaz-report", metavar="DIR", help="Write that as a page of HTML, and as JSON, into this folder."
    )
    group.addoption(
        "--sagaz-kill",
        action="store_true",
        default=None,
        help="With --sagaz-replay: also run the saga in a process of its own, kill that at each durable boundary "
        "(SIGKILL), take the saga up in another one and judge the end. One item a boundary.",
    )
    app = {"action": "append", "metavar": "MODULE", "dest": "sagaz_app"}
    what = "Module with saga classes, or MODULE:CLASS. Repeatable. A recording file's class is only taken from these."
    group.addoption("--sagaz-app", help=what, **app)
    with contextlib.suppress(ValueError):  # another plugin has an --app: ours is then only --sagaz-app
        group.addoption("--app", help="The same as --sagaz-app.", **app)
    parser.addini("sagaz_sagas", "Modules with saga classes, or MODULE:CLASS.", type="linelist")
    parser.addini("sagaz_store", "URL of the store of recorded sagas.", default=None)
    parser.addini("sagaz_recordings", "Folders or patterns of recording files, found by id.", type="linelist")
    parser.addini("sagaz_kinds", "Kinds of faults: quick, all, or a list.", default=None)
    parser.addini("sagaz_depth", "How many faults at a time.", default=None)
    parser.addini(
        "sagaz_known",
        "Hazards accepted for now, as `saga: plan  # reason`: that plan runs as a strict xfail.",
        type="linelist",
    )


def _percentage(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= float(text) <= 100:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no percentage: give a number from 0 to 100")


def add_markers(config: pytest.Config) -> None:
    """Register the markers."""
    for line in MARKERS.values():
        config.addinivalue_line("markers", line)
