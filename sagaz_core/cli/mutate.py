"""`sagaz mutate`: which mutants of a saga are found, with no assertion written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sagaz_core.adapters.locate import load_made
from sagaz_core.cli.failure import NOT_WELL, Failure
from sagaz_core.cli.options import NumberRange, read_context, settings_and_path
from sagaz_core.cli.running import run
from sagaz_core.cli.worlds import world_of, world_option
from sagaz_core.mutation.facts import native
from sagaz_core.mutation.score import Score, ascore, shown

if TYPE_CHECKING:
    pass


@click.command()
@click.argument("saga", metavar="MODULE:CLASS")
@click.option("--context", metavar="JSON|@FILE|-", default="{}", help="What it begins with. Default: nothing.")
@click.option("--kinds", default="all", show_default=True, help="Kinds of faults: quick, all, or a list.")
@world_option
@click.option("--only", metavar="OPERATOR", multiple=True, help="Only mutants of this operator; repeatable.")
@click.option("--fail-under", type=NumberRange(0, 100), metavar="N", help="Exit with 1 below this percentage.")
@click.option("--list", "listed", is_flag=True, help="Also print every mutant, and what it was found by.")
def mutate(
    saga: str,
    context: str,
    kinds: str,
    world_spec: str | None,
    only: tuple[str, ...],
    fail_under: float | None,
    listed: bool,
) -> None:
    """Make mutants of a sound saga and count those that the judgement finds.

    Each does one thing wrong: a compensation that does nothing, undoes another step, forgets a place. Every failure of
    it is tried, in virtual time and off the network, until one is not sound. The code of the saga is not changed.

    Exit code: 0 when it was scored; 1 below --fail-under; 2 when there is no score: the saga is not sound, or the
    control, a mutant that must be found, was not.
    """
    settings_and_path()
    initial = read_context(context)
    target = load_made(saga)
    score = run(_scored(target, initial, kinds, world_spec, only or None), virtual=True)
    if listed:
        for verdict in score.verdicts:
            click.echo(f"{verdict.mutant}  {_what_became_of(verdict)}")
        click.echo()
    click.echo(score.explain())
    if fail_under is not None and score.percent < fail_under:
        raise Failure(f"{shown(score.percent)} % of the mutants were caught, less than {fail_under:g} %", NOT_WELL)


async def _scored(
    target: Any, context: dict[str, Any], kinds: str, world_spec: str | None, only: tuple[str, ...] | None
) -> Score:
    from sagaz_core.network import no_network

    with no_network():
        if world_spec is None:
            return await ascore(lambda: target, context, kinds=kinds, only=only)
        saga = native(target)  # the one that the world is of
        return await ascore(lambda: saga, context, world=world_of(world_spec, saga), kinds=kinds, only=only)


def _what_became_of(verdict: Any) -> str:
    if verdict.caught:
        return f"found by {verdict.tried.plan}: {verdict.tried.found}"
    return "no difference" if verdict.equal else "survived"
