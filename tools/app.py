"""The `nightbridge` program: registers the commands, and turns their errors into messages and exit codes.

Exit codes: 0 done, 1 failed while running, 2 wrong use or wrong settings.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from importlib.metadata import PackageNotFoundError, version
from io import TextIOWrapper
from typing import Annotated, Literal, TextIO

import typer

from engines.errors import EngineError, UnknownName
from stream.errors import SettingsError, StreamError
from tools.bench import bench
from tools.check import check
from tools.common.signals import clearing_up_at_signals
from tools.demo import demo
from tools.engine import engine
from tools.enhance import enhance
from tools.evaluate import evaluate
from tools.export import export
from tools.keys import keys
from tools.probe import probe
from tools.record import record
from tools.replay import replay
from tools.run import run
from tools.simulate import simulate
from tools.train import train
from tools.view import view

COMMANDS = (run, check, probe, view, record, replay, enhance, simulate, demo, keys, train, evaluate, export, bench)
"""In the order of `--help`; each command has the name of its function."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in COMMANDS:
    app.command()(command)
app.add_typer(engine, name="engine")


class OnStderr(logging.StreamHandler[TextIO]):
    """Writes to the current `sys.stderr`; on a terminal through Rich, which keeps a progress bar below the lines."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        file = getattr(sys.stderr, "rich_proxied_file", sys.stderr)  # a progress bar on stdout replaces sys.stderr too
        if file is None or file.closed:  # daemons may start like this
            return
        self.stream = sys.stderr if file.isatty() else file
        super().emit(record)


def _show_version(wanted: bool) -> None:
    if not wanted:
        return
    try:
        typer.echo(f"nightbridge {version('nightbridge')}")
    except PackageNotFoundError:
        typer.echo("nightbridge, not installed")
    raise typer.Exit


@app.callback()
def options(
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"] | None,
        typer.Option(help="Least severe messages on stderr; overrides the settings. debug also shows tracebacks."),
    ] = None,
    version: Annotated[  # noqa: ARG001 - typer calls it
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Brighten dark, low-bandwidth video and double its size on its way from field to command."""
    if log_level:
        os.environ["NIGHTBRIDGE__RELAY__LOG_LEVEL"] = log_level
    logging.basicConfig(
        level=(log_level or "info").upper(),
        format="%(asctime)s %(levelname)-7s %(message)s",
        handlers=[OnStderr()],
    )


def main() -> None:
    """Run one command and end the process. An error prints one line, wrong settings one line per mistake."""
    try:
        _run()
    except SystemExit as ended:
        if "engines.fallback" in sys.modules:  # else no thread can be left behind
            from engines.fallback import is_left_behind

            if is_left_behind() and isinstance(ended.code, int | None):
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(ended.code or 0)
        raise


def _run() -> None:
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # prints file names unchanged, even if not UTF-8
    try:
        with clearing_up_at_signals():
            app()
    except (SettingsError, UnknownName) as error:
        _fail(error, 2)
    except (StreamError, EngineError, OSError) as error:
        _fail(error, 1)


def _fail(error: Exception, code: int) -> None:
    if logging.getLogger().isEnabledFor(logging.DEBUG):
        traceback.print_exception(error)
    message = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
    for line in message.split("\n"):
        print(f"nightbridge: {line}", file=sys.stderr)
    sys.exit(code)
