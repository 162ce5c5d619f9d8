"""The `sagaz` command: which commands are ours, where the others go, and how any of them ends.

Two distributions install a command of this name. Ours answers the commands of `COMMANDS`; every other word is handed to
the command line of the `sagaz` package, if that is installed.

A command is imported when it is called: `sagaz --help` loads neither the engine nor a store.
"""

from __future__ import annotations

import difflib
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import click

from sagaz_core.cli.failure import BROKEN_PIPE, Failure, failure_of
from sagaz_core.cli.text import drop_output, say_error
from sagaz_core.errors import nearest

if TYPE_CHECKING:
    from collections.abc import Sequence


class Command(NamedTuple):
    """One of our commands: `module:name` of it, and what it does in a line."""

    where: str
    summary: str


COMMANDS: dict[str, Command] = {
    "explore": Command("sagaz_core.cli.explore:explore", "Try every failure of a saga, and judge each end."),
    "find": Command(
        "sagaz_core.cli.find:find", "Find sagas: those that failed at a step, in some minutes, of a customer."
    ),
    "mutate": Command("sagaz_core.cli.mutate:mutate", "Break a rollback on purpose, and see whether it is noticed."),
    "record": Command("sagaz_core.cli.record:record", "Run a saga once and record it."),
    "recording": Command("sagaz_core.cli.recording:recording", "Look at recordings, and carry them in files."),
    "replay": Command("sagaz_core.cli.replay:replay", "Run a recorded saga again, or ask what it was."),
    "resume": Command("sagaz_core.cli.resume:resume", "Go on with a saga whose process died."),
    "store": Command("sagaz_core.cli.store:store", "See what a store holds; copy, upgrade and prune it."),
}


class Sagaz(click.Group):
    """The group of our commands. Whatever goes wrong in one is one line on stderr and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of our commands."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command of this name."""
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].where.partition(":")
        command: click.Command = getattr(import_module(module), name)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find the command, or say which one is near."""
        if args and args[0] not in COMMANDS:
            raise Failure(_no_command(args[0]), 2)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table, without importing what is in it."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name].summary) for name in self.list_commands(ctx)])

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **options: Any) -> NoReturn:  # type: ignore[override] # ends the process
        """Run the command that the arguments name, and exit."""
        _survive_any_text()
        options["standalone_mode"] = False
        try:
            code = super().main(args, prog_name, **options)
            if not isinstance(code, int):
                code = 0
        except Exception as error:  # commands run the user's code, which may raise anything
            code = _report(error)
        _leave(code)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. Of Ctrl-C and of a closed output, click would make ends of its own."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Failure("interrupted", 130) from None
        except BrokenPipeError:  # whoever read our output has enough
            drop_output()
            ctx.exit(BROKEN_PIPE)


@click.command(
    cls=Sagaz,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Any other command is handed to the sagaz package, when that is installed: `sagaz init`, `sagaz examples`…",
)
def cli() -> None:
    """Record sagas, run them again from any step, and ask what they were at any time.

    Snapshots are kept where --store says, else SAGAZ_STORE, else `store` under [tool.sagaz] in pyproject.toml, else in
    .sagaz/sagaz.db below the current folder. Modules of the current folder can be named. With SAGAZ_DEBUG=1 an error
    shows its traceback.
    """


def main() -> NoReturn:
    """Answer the command line, or hand it to the `sagaz` package's own."""
    arguments = sys.argv[1:]
    first = arguments[0] if arguments else "--help"
    name = "pytest-sagaz" if os.path.basename(sys.argv[0]).startswith("pytest-sagaz") else "sagaz"
    if first in COMMANDS or first in ("-h", "--help"):
        cli.main(arguments or ["--help"], name)
    if first == "--version" and name == "pytest-sagaz":
        _tell_version()
    _hand_over(first)


def _hand_over(word: str) -> NoReturn:
    """Let the `sagaz` package's command answer: it reads `sys.argv` itself, and its exit code is the process's."""
    try:
        from sagaz.cli import main as their_main
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "sagaz":
            say_error(f"the command line of the sagaz package cannot be imported: {error}")
        elif word == "--version":
            _tell_version()
        else:
            say_error(_no_command(word))
        sys.exit(2)
    try:
        sys.exit(their_main())
    except SystemExit as end:
        ours = difflib.get_close_matches(word, COMMANDS, n=1, cutoff=0.75)  # nearer than `init` is to `find`
        if end.code == 2 and ours:  # they do not know it either, or not with these options
            say_error(f"{word!r} was handed to the sagaz package; did you mean {ours[0]!r}, a command of pytest-sagaz?")
        raise


def _tell_version() -> NoReturn:
    print(f"pytest-sagaz {_own_version()}")
    sys.exit(0)


def _no_command(word: str) -> str:
    what = "option" if word.startswith("-") else "command"
    return (
        f"there is no {what} {word!r}{nearest(word, COMMANDS)}; commands: {', '.join(sorted(COMMANDS))}, "
        f"and those of the sagaz package (pip install 'pytest-sagaz[sagaz]')"
    )


def _own_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("pytest-sagaz")
    except PackageNotFoundError:  # run from its sources
        return "(not installed)"


def _report(error: Exception) -> int:
    if os.environ.get("SAGAZ_DEBUG", "") not in ("", "0"):
        import traceback

        traceback.print_exception(error)
    failure = failure_of(error)
    say_error(failure.message)
    return failure.code


def _survive_any_text() -> None:
    """Let ids and values of any text be printed, whatever the terminal's encoding."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _leave(code: int) -> NoReturn:
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:  # a pipe that was closed
        drop_output()
        code = code or BROKEN_PIPE
    sys.exit(code)
