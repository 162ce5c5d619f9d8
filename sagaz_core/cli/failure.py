"""How a command fails: one line, and an exit code.

| code | what it means |
|---|---|
| 0 | as asked |
| 1 | the saga ran, and did not end well (stuck, dead, a replay rolled back), or a planned fault never happened |
| 2 | nothing was run: something given or found is wrong |
| 130, 143 | stopped by Ctrl-C, by SIGTERM |
| 141 | the reader of the output closed it |
"""

from __future__ import annotations

import os
import sysconfig

import click

from sagaz_core.errors import SagazError

NOT_WELL = 1
USAGE = 2
BROKEN_PIPE = 141


class Failure(Exception):  # noqa: N818 - what a command ends with, not an error of the program
    """Ends the command with this line on stderr and this exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


def failure_of(error: BaseException) -> Failure:
    """Return how a command ends that raised this."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, click.Abort):
        return Failure("interrupted", 130)
    if isinstance(error, click.ClickException):
        return Failure(_click_message(error), USAGE)
    where = "" if isinstance(error, SagazError) else users_place(error)
    return Failure(f"{message_of(error)} ({where})" if where else message_of(error), USAGE)


def message_of(error: BaseException) -> str:
    """Return what an error says; one that is not ours is named."""
    if isinstance(error, SagazError):
        return str(error)
    try:
        text = str(error)
    except Exception:  # the user's class
        text = "(its message could not be made)"
    name = type(error).__name__
    return f"{name}: {text}" if text else name


def users_place(error: BaseException) -> str:
    """Return which function of the user's the error comes from, and its file and line; `""` when it is from none.

    That is the innermost one that is neither ours, nor the interpreter's, nor an installed one's. Of a user's package
    that is installed it is the first one which we called.
    """
    own, installed = "", ""
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        file, place = code.co_filename, f"{code.co_qualname}, {_shown(code.co_filename)}:{trace.tb_lineno}"
        if file.startswith(_OURS):
            installed = ""
        elif any(folder in file for folder in _INSTALLED):
            installed = installed or place
        elif not file.startswith(("<", _LIBRARY)):
            own = place
        trace = trace.tb_next
    return own or installed


_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_INSTALLED = f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}"
_LIBRARY = sysconfig.get_path("stdlib") + os.sep


def _shown(file: str) -> str:
    try:
        return file.removeprefix(os.getcwd() + os.sep)
    except OSError:  # the folder is gone
        return file


def _click_message(error: click.ClickException) -> str:
    message = error.format_message()
    if isinstance(error, click.NoSuchOption) and error.ctx and _takes_words(error.ctx.command):
        message += " What is no option and begins with a dash, such as an id, is written last, behind --."
    command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else ""
    return f"{message} See '{command} --help'." if command else message


def _takes_words(command: click.Command) -> bool:
    return any(isinstance(parameter, click.Argument) for parameter in command.params)
