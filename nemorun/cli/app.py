"""The top-level command: a static table, so that `--help` imports none of the commands."""

from __future__ import annotations

import importlib
import re
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from nemorun.errors import NemorunError, did_you_mean

#: Name -> (module:attribute, one line of help). A test holds the lines against the commands' own.
COMMANDS = {
    "run": ("nemorun.cli.run:run", "Run a recipe, a script or a command."),
    "recipes": ("nemorun.cli.recipes:recipes", "List the recipes that can be run."),
    "show": ("nemorun.cli.show:show", "Show a recipe with overrides applied, or a recorded experiment."),
    "list": ("nemorun.cli.experiments:list_", "List experiments, the newest first."),
    "status": ("nemorun.cli.experiments:status", "Show how an experiment's tasks stand."),
    "logs": ("nemorun.cli.experiments:logs", "Print what an experiment's tasks have written."),
    "cancel": ("nemorun.cli.experiments:cancel", "Cancel an experiment's tasks."),
    "suspend": ("nemorun.cli.suspend:suspend", "Stop an experiment's tasks until `resume`."),
    "resume": ("nemorun.cli.suspend:resume", "Let an experiment's suspended tasks go on."),
    "diff": ("nemorun.cli.experiments:diff", "Show what differs between two experiments."),
    "rerun": ("nemorun.cli.rerun:rerun", "Run a recorded experiment again."),
    "shell": ("nemorun.cli.shell:shell", "Open a shell with an executor's resources."),
    "debug": ("nemorun.cli.debug:debug", "Open a shell where a recipe can be run again and again."),
    "attach": ("nemorun.cli.attach:attach", "Open a shell beside a running task."),
    "executors": ("nemorun.cli.executors:app", "List the configured executors, or check one."),
    "data": ("nemorun.cli.data:app", "Make text into tokens, and look at them."),
    "init": ("nemorun.cli.workspace:init", "Write a commented start of a workspace."),
}

_LAST = re.compile(r"-\d+")
#: Stands before `-1` while the parser looks at it; a number reads the same with it.
_SPACE = " "


class Command(TyperCommand):
    """A command that takes `-1` for the last experiment, not for an option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if self.name == "run" and "--" in args:
            split = args.index("--")
            args, ctx.meta["rest"] = args[:split], args[split + 1 :]
        words = [_SPACE + word if _LAST.fullmatch(word) else word for word in args]
        rest = super().parse_args(ctx, words)
        ctx.params = {name: _unmarked(value) for name, value in ctx.params.items()}
        return rest


class LazyGroup(TyperGroup):
    """Imports a command's module when that command is wanted."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        target = getattr(importlib.import_module(module), attribute)
        if isinstance(target, typer.Typer):
            command = typer.main.get_command(target)
            command.name = cmd_name
            return command
        single = new_app()
        single.command(cmd_name, cls=Command)(target)
        return typer.main.get_command(single)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            raise NemorunError(
                f"no such command '{name}'{did_you_mean(name, COMMANDS) or ';'} `nemorun --help` lists them"
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


def new_app() -> typer.Typer:
    """A Typer app that prints plain text: what users write is never read as markup."""
    return typer.Typer(add_completion=False, rich_markup_mode=None)


def command() -> Any:
    """The whole command line."""
    app = typer.Typer(cls=LazyGroup, rich_markup_mode=None, invoke_without_command=True)
    app.callback()(_top)
    return typer.main.get_command(app)


def _version(wanted: bool) -> None:
    if wanted:
        from nemorun import __version__

        typer.echo(f"nemorun {__version__}")
        raise typer.Exit


def _top(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere.")
    ] = False,
) -> None:
    """Launch experiments on this machine, on Slurm and on Kubernetes.

    Exit codes: 0 done, 1 a task failed, 2 misuse, 130 interrupted.
    """
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help(), err=True)
        raise typer.Exit(2)


def _unmarked(value: Any) -> Any:
    if isinstance(value, str):
        return value[1:] if value.startswith(_SPACE) and _LAST.fullmatch(value[1:]) else value
    if isinstance(value, list | tuple):
        return type(value)(_unmarked(item) for item in value)
    return value
