"""Commands made from a class of options and a function, with their errors as exit statuses."""

from __future__ import annotations

import inspect
import os
import sys
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar, get_args, get_origin, get_type_hints

import attrs
import typer
from typer.core import TyperCommand, TyperGroup

from kling_async.errors import (
    AlreadyPaidError,
    ConfigurationError,
    InvalidJobError,
    KlingError,
    LedgerError,
    ManifestError,
    UnsupportedError,
    VideoError,
)

from .exits import Exit
from .ledgers import LEDGER_VARIABLE
from .options import Options
from .output import print_error, print_traceback

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

EPILOG: Final = (
    "Exit status: 0 all went well, 1 some jobs failed, 2 bad input or usage, 3 nothing was done, 130 interrupted. "
    "The API key is read from WAVESPEED_API_KEY or GPTPROTO_API_KEY."
)
SETTINGS: Final = {"help_option_names": ["-h", "--help"]}
_BAD_INPUT: Final = (
    ConfigurationError,
    InvalidJobError,
    LedgerError,
    ManifestError,
    UnsupportedError,
    VideoError,
    OSError,
    ImportError,
)

OptionsT = TypeVar("OptionsT", bound=Options)
if TYPE_CHECKING:
    Work: TypeAlias = Callable[[OptionsT], Exit]
    Callback: TypeAlias = Callable[..., None]


class Command(TyperCommand):
    """A command whose help shows types that people read."""

    # typer brings its own copy of click or imports click, depending on its version: the types cannot be named.
    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters."""
        return _with_readable_types(super().get_params(ctx))


class Group(TyperGroup):
    """A group of commands whose help shows types that people read."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters."""
        return _with_readable_types(super().get_params(ctx))


class LedgerGroup(Group):
    """The group `ledger`. Its options may follow the file, as in `ledger run.db --json`.

    After a subcommand the options are those of the subcommand, whose help needs no ledger.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments; without a file among them, take the ledger from the environment."""
        after = next((place for place, word in enumerate(args) if word in self.commands), len(args))
        ctx.allow_interspersed_args = after == len(args)
        if not set(args[after:]).isdisjoint(ctx.help_option_names):
            # Prints the help of the subcommand and exits, before the ledger is looked for.
            self.commands[args[after]].make_context(args[after], ctx.help_option_names[:1], parent=ctx)
        given, rest, _ = self.make_parser(ctx).parse_args(list(args))
        if LEDGER_VARIABLE in os.environ and given.get("ledger") in self.commands:
            # The first word is the subcommand, so the environment names the ledger.
            place = len(args) - len(rest) - 1
            args = [*args[:place], os.environ[LEDGER_VARIABLE], *args[place:]]
        return super().parse_args(ctx, args)


def _with_readable_types(params: list[Any]) -> list[Any]:
    """Blank the types of flags and of arguments, for which typer prints `<bool>`, `<list[Path]>` and `<str>`."""
    for param in params:
        if getattr(param, "is_flag", False):
            param.metavar = ""
        elif param.param_type_name == "argument" and (param.nargs != 1 or param.metavar):
            param.display_type_rich = lambda ctx: None  # noqa: ARG005 -- the signature of typer's method
    return params


def command(app: typer.Typer, options: type[OptionsT]) -> Callable[[Work[OptionsT]], Callback]:
    """Add a function to an application as the command of its name.

    Args:
        app: The application or group.
        options: The class that declares the parameters and is passed to the function.
    """

    def bind(work: Work[OptionsT]) -> Callback:
        return app.command(name=work.__name__, cls=Command, epilog=EPILOG)(_callback(work, options))

    return bind


def group(app: typer.Typer, options: type[OptionsT]) -> Callable[[Work[OptionsT]], Callback]:
    """Make a function what a group of commands does when no subcommand follows.

    Args:
        app: The group.
        options: As for `command`.
    """

    def bind(work: Work[OptionsT]) -> Callback:
        return app.callback()(_callback(work, options))

    return bind


def _callback(work: Work[OptionsT], options: type[OptionsT]) -> Callback:
    """Return a function with the signature that typer turns into parameters."""

    def call(context: typer.Context, **given: Any) -> None:
        if context.invoked_subcommand is None:
            execute(context, lambda: work(options(debug=is_debug(context), **given)))

    call.__name__, call.__doc__ = work.__name__, work.__doc__
    call.__signature__ = _signature(options)  # type: ignore[attr-defined]  # functions have it
    call.__annotations__ = {}
    return call


def _signature(options: type[Options]) -> inspect.Signature:
    """Return the parameters that a class of options declares, required ones first."""
    hints = get_type_hints(options, include_extras=True)
    parameters = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is attrs.NOTHING else field.default,
            annotation=hints[field.name],
        )
        for field in attrs.fields(options)
        if _is_declared(hints[field.name])
    ]
    parameters.sort(key=lambda parameter: parameter.default is not inspect.Parameter.empty)
    context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    return inspect.Signature([context, *parameters])


def _is_declared(hint: object) -> bool:
    return get_origin(hint) is Annotated and any(
        isinstance(extra, typer.models.ParameterInfo) for extra in get_args(hint)[1:]
    )


def is_debug(context: typer.Context) -> bool:
    """Return whether `--debug` stands before the command."""
    return bool(context.obj)


def execute(context: typer.Context, work: Callable[[], Exit]) -> None:
    """Run the work of a command; print its error and turn it into an exit status.

    Raises:
        typer.Exit: Always.
    """
    try:
        status = work()
    except (KeyboardInterrupt, typer.Abort):
        sys.stderr.write("\nInterrupted.\n")
        status = Exit.INTERRUPTED
    except BrokenPipeError:
        raise  # typer handles a closed pipe
    except Exception as error:  # noqa: BLE001 -- printed, and turned into an exit status
        cause = _first_of(error)
        if is_debug(context):
            print_traceback(error)
        else:
            print_error(cause)
        status = _status_of(cause)
    raise typer.Exit(int(status))


def _first_of(error: Exception) -> Exception:
    """Return the first error inside the groups that task groups wrap around it."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def _status_of(error: Exception) -> Exit:
    if isinstance(error, AlreadyPaidError) or (isinstance(error, KlingError) and error.account_wide):
        return Exit.NOTHING_DONE
    if isinstance(error, _BAD_INPUT):
        return Exit.BAD_INPUT
    return Exit.SOME_FAILED
