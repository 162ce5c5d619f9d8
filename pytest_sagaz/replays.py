"""What `--sagaz-replay` asks for: the recordings, the plans of each, and what of that was selected.

All of it is checked before anything is collected, and in an xdist controller before any worker starts.
"""

from __future__ import annotations

import glob
import os
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sagaz.known import Known, known_hazards
from pytest_sagaz.recordings import Found, find_all
from pytest_sagaz.sagas import check_named, class_of, has_own_factory, model_or_none
from pytest_sagaz.settings import Settings, depth_of, parse_plan, settings_of, warn
from sagaz_core.errors import UnknownSagaClassError, UnknownStepError, UsageError, nearest
from sagaz_core.events import CompensationSucceeded, StepSucceeded
from sagaz_core.faults.plan import Fault, FaultPlan
from sagaz_core.model import END, SagaModel
from sagaz_core.prove.boundaries import Boundary, boundaries, default_plans
from sagaz_core.prove.recorded import recorded_plans
from sagaz_core.replay.start import check_override, check_runs
from sagaz_core.settings import DEFAULT_STORE
from sagaz_core.storage.url import safe_url

if TYPE_CHECKING:
    from sagaz_core.recording.base import Recording

FAITHFUL = "faithful"
EXPLORE = "explore:"


@dataclass
class Target:
    """One recording to try. `plans` are by the names of their items; None is the faithful replay. So are the
    `explorations`, each with its depth, and `kills`, the moments at which a process that runs the saga is killed.
    """

    found: Found
    saga: Any
    model: SagaModel
    plans: dict[str, FaultPlan | None]
    known: dict[FaultPlan, str] = field(default_factory=dict)
    explorations: dict[str, int] = field(default_factory=dict)
    kills: dict[str, Boundary] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the items' ids begin with."""
        return escaped(self.found.saga_id)


@dataclass
class Replays:
    """All that `--sagaz-replay` asks for. `only`: nothing else is to be collected. `anchor`: the folder whose conftest
    files the items see."""

    settings: Settings
    targets: list[Target]
    anchor: Path
    only: bool


REPLAYS = pytest.StashKey[Replays]()


def prepare(config: pytest.Config, specs: list[str]) -> None:
    """Find and check everything, and leave it in the stash. Raises `SagazError` for what is wrong."""
    settings = settings_of(config)
    settings.check()
    found = find_all(specs, settings)
    hazards = known_hazards(config)
    targets = [_target(one, settings, hazards) for one in found]
    selected = _take_node_ids(config, targets)
    typed = {str(arg) for arg in config.invocation_params.args}
    paths = [arg for arg in config.args if arg in typed] if _are_arguments(config) else []
    if not paths:
        config.args[:] = [str(config.rootpath)]
    if selected:
        targets = [target for target in targets if target.plans or target.explorations or target.kills]
    config.stash[REPLAYS] = Replays(settings, targets, _anchor(config), only=not paths)
    warn(config, _odd_overrides(targets, settings))


def _are_arguments(config: pytest.Config) -> bool:
    return config.args_source is pytest.Config.ArgsSource.ARGS


def _anchor(config: pytest.Config) -> Path:
    """Return the one folder of `testpaths`, where a test of the recordings would be, or where pytest was started."""
    here = config.invocation_params.dir
    if here == config.rootpath:
        folders = [path for pattern in config.getini("testpaths") for path in glob.glob(pattern, root_dir=here)]
        if len(folders) == 1 and (here / folders[0]).is_dir():
            return Path(os.path.abspath(here / folders[0]))
    return here


def _target(found: Found, settings: Settings, hazards: list[Known]) -> Target:
    recording, has_factory = found.recording, has_own_factory(settings.config)
    check_named(settings)
    try:
        saga = class_of(found, settings)
    except UnknownSagaClassError:
        if not has_factory:
            raise
        saga = None
    model = model_or_none(saga, has_factory=has_factory) or recording.model
    if model.name != recording.saga_name and not has_factory:
        raise UnknownSagaClassError(
            f"recording {recording.saga_id!r} is of saga {recording.saga_name!r}, and {recording.record.source} is "
            f"{model.name!r} now: name the module that has it with --app MODULE, or override the fixture saga_factory"
        )
    step = settings.from_step
    if step is not None:
        _check_step(step, recording, model)
    plans: dict[str, FaultPlan | None] = {}
    if settings.plans:
        for plan in settings.plans:
            _check_plan(plan, recording, model, settings)
            plans[str(plan) or FAITHFUL] = plan or None
    else:
        plans[FAITHFUL] = None
        plans.update(
            (str(plan), plan) for plan in recorded_plans(recording, model, settings.kinds.value, from_step=step)
        )
    known = {hazard.plan: hazard.reason for hazard in hazards if hazard.saga == recording.saga_name}
    for plan in known:
        plan.check(model)
    depth = settings.depth.value
    return Target(
        found,
        saga,
        model,
        plans,
        known,
        explorations={f"{EXPLORE}{depth}": depth} if depth > 1 and not settings.plans else {},
        kills={str(boundary): boundary for boundary in _kills(recording, model, settings)} if settings.kill else {},
    )


def _kills(recording: Recording, model: SagaModel, settings: Settings) -> list[Boundary]:
    """Return the moments to kill at: of the plans that were named, or of how the saga was recorded to go."""
    turned = None if recording.completed else recording.failed_step
    if settings.plans:
        return [boundary for plan in settings.plans for boundary in boundaries(model, plan)]
    if turned is None:
        return [boundary for plan in default_plans(model) for boundary in boundaries(model, plan)]
    if turned != END and turned not in model:
        return []
    return boundaries(model, FaultPlan((Fault(turned, "before"),)), forward=True)


def _check_step(step: str, recording: Recording, model: SagaModel) -> None:
    model.step(step)
    if step not in recording.reached:
        raise UnknownStepError(
            f"--sagaz-from {step}: recording {recording.saga_id!r} never got to that step"
            f"{nearest(step, recording.reached)}; it started {', '.join(recording.reached) or 'none'}"
        )


def _check_plan(plan: FaultPlan, recording: Recording, model: SagaModel, settings: Settings) -> None:
    plan.check(model)
    if settings.from_step is not None:
        check_runs(plan, recording.served_before(settings.from_step), settings.from_step)


def _odd_overrides(targets: list[Target], settings: Settings) -> list[str]:
    messages: dict[str, None] = {}
    for target in targets if settings.override else ():
        known = context_keys(target.found.recording)
        messages |= dict.fromkeys(check_override(settings.override, known, strict=settings.strict))
    return list(messages)


def context_keys(recording: Recording) -> set[str]:
    """Return every key that the recorded context ever had."""
    keys = set(recording.context)
    for event in recording.events:
        if isinstance(event, (StepSucceeded, CompensationSucceeded)):
            keys |= set(event.delta.set)
    return keys


def _take_node_ids(config: pytest.Config, targets: list[Target]) -> bool:
    """Take the ids of our items out of the arguments, where pytest looks for files, and keep only what they name."""
    if not _are_arguments(config):
        return False
    by_name = {target.name: target for target in targets}
    wanted: dict[str, list[str]] = {}
    for argument in list(config.args):
        path, _, rest = argument.partition("::")
        name = path if path in by_name else _from_root(path, config)
        if name in by_name and not os.path.isfile(path):
            config.args.remove(argument)
            wanted.setdefault(name, []).append(rest)
    for target in targets if wanted else ():
        _keep(target, wanted.get(target.name, []), settings_of(config))
    return bool(wanted)


def _from_root(path: str, config: pytest.Config) -> str:
    try:
        return os.path.relpath(config.invocation_params.dir / path, config.rootpath).replace(os.sep, "/")
    except ValueError:  # on another drive, or no path at all
        return path


def _keep(target: Target, names: list[str], settings: Settings) -> None:
    if "" in names:
        return
    kept: dict[str, FaultPlan | None] = {}
    kills: dict[str, Boundary] = {}
    explorations: dict[str, int] = {}
    for name in names:
        if name in target.plans:
            kept[name] = target.plans[name]
            continue
        text = unescaped(name)
        if text.startswith(EXPLORE):
            explorations[text] = depth_of(text.removeprefix(EXPLORE), f"{target.name}::{name}")
            continue
        if text.rpartition("+")[2].startswith("kill:"):
            boundary = Boundary.parse(text)
            boundary.check(target.model)
            kills[str(boundary)] = boundary
            continue
        if "@" not in text:
            raise UsageError(f"{target.name}::{name} is no item{nearest(name, target.plans)}")
        plan = parse_plan(text)
        _check_plan(plan, target.found.recording, target.model, settings)
        kept[str(plan)] = plan
    target.plans, target.explorations, target.kills = kept, explorations, kills


def reproduce(target: Target, settings: Settings) -> str:
    """Return the command that runs one plan of the target again, with `{plan}` in it."""
    return _command(target, settings, "--sagaz-plan={plan}")


def reproduce_search(target: Target, depth: int, settings: Settings) -> str:
    """Return the command that explores the target again."""
    return _command(target, settings, f"{target.name}::{EXPLORE}{depth}")


def reproduce_kill(target: Target, boundary: Boundary, settings: Settings) -> str:
    """Return the command that kills the target at this moment again."""
    return _command(target, settings, "--sagaz-kill", f"{target.name}::{escaped(str(boundary))}")


def _command(target: Target, settings: Settings, *what: str) -> str:
    found = target.found
    spec = os.path.relpath(found.path, settings.folder) if found.path else found.saga_id
    parts = ["pytest", f"--sagaz-replay={spec}", *what]
    if found.path is None and settings.store.value != DEFAULT_STORE and settings.store.origin == "--sagaz-store":
        parts.append(f"--sagaz-store={safe_url(settings.store.value)}")  # its secrets are for the reader to fill in
    if settings.from_step:
        parts.append(f"--sagaz-from={settings.from_step}")
    parts += [f"--sagaz-override={text}" for text in settings.config.getoption("sagaz_override", None) or ()]
    parts += [f"--app={module}" for group in settings.apps if group.origin == "--app" for module in group.value]
    parts += ["--sagaz-allow-drift"] if settings.allow_drift else []
    parts += ["--sagaz-allow-live"] if settings.live else []
    return " ".join(part if "{plan}" in part else shlex.quote(part) for part in parts)


_ODD = re.compile(r"[^\w.,=~@+#/: -]|::+|^/|^\.+(?=/|$)|(?<=/)(?:/|\.+(?=/|$))|^ | $|^-")


def escaped(text: str) -> str:
    """Return the text as a part of a node id: what would end a part, or means something to a path, is %-encoded."""
    return _ODD.sub(lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode()), text)


def unescaped(text: str) -> str:
    """Do the inverse."""
    from urllib.parse import unquote

    return unquote(text)
