"""The command line: a group whose commands are imported when they are called, and the one top-level catch."""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback

import click

from cloudft import __version__
from cloudft.errors import CloudftError, EnvironmentProblem, Interrupted, UsageError
from cloudft.output import print_error

# In the order in which a person needs them. The help line stands here so that `--help` imports no command.
COMMANDS = {
    "init": "Make a project: cloudft.yaml, sample data, compose.yaml.",
    "build": "Build the training image, push it, and pin it by digest.",
    "offers": "Show the GPUs that can be rented now, at live prices.",
    "submit": "Start a fine-tune of this project.",
    "status": "Show where a run stands, what it costs and what survives.",
    "watch": "Watch a run to its end, and do what it needs: end, retry, receipt.",
    "logs": "Print the log of a run.",
    "cancel": "End a run; what is trained so far is saved.",
    "reap": "Find all machines of cloudft by name, and end those that are overdue.",
    "pull": "Bring the adapter of a run home.",
    "quantize": "Merge the adapter onto its base and quantise it.",
    "eval": "Measure before and after on the hold-out.",
    "review": "Compare answers before and after yourself, blind, in the browser.",
    "report": "Write the report of a run: HTML, Markdown, model card, dataset card.",
    "diff": "Compare two runs: data, config, code and numbers.",
    "reproduce": "Repeat a run from its lock, and say how the numbers differ.",
    "serve": "Serve the current model with an OpenAI-compatible API.",
    "toolchain": "Show, install or remove the converter that quantize uses.",
    "demo": "Run the whole path on this computer, with a tiny model.",
}


class LazyGroup(click.Group):
    """Knows its commands by name, and imports ``cloudft.commands.<name>`` only to run one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        # Not named after the builtin `eval`, nor after a module of the core.
        module = importlib.import_module(f"cloudft.commands.{cmd_name}_command")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="cloudft")
def cli() -> None:
    """Fine-tune a small language model within a budget, bring it home, and serve it yourself.

    \b
      cloudft init && cloudft submit
      cloudft pull && cloudft quantize
      docker compose up serve

    A command without a run id means the latest run. Exit codes stand in docs/exit-codes.md.
    """


def run(args: list[str]) -> int:
    """Run the command line and return its exit code. Every error becomes a message; none escapes."""
    as_json = "--json" in args
    try:
        code = cli.main(args=args, prog_name="cloudft", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as exc:
        exc.show()
        return exc.exit_code
    except click.ClickException as exc:
        return _fail(UsageError(_usage(exc), hint=_see_help(exc)), as_json)
    except CloudftError as exc:
        return _fail(exc, as_json)
    except (KeyboardInterrupt, click.Abort):
        return _fail(Interrupted("interrupted", effect="nothing is half-written"), as_json)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as exc:
        if exc.errno not in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT):
            return _bug(exc, as_json)
        problem = EnvironmentProblem(
            f"{exc.filename or 'a file'} cannot be written: {exc.strerror}",
            effect="nothing is half-written; a run that goes on is not touched by this",
            hint="make the folder writable, or free some space, then type the same command again",
        )
        problem.__cause__ = exc
        return _fail(problem, as_json)
    except Exception as exc:
        return _bug(exc, as_json)


def _bug(exc: Exception, as_json: bool) -> int:
    hint = "this is a bug in cloudft: run it again with CLOUDFT_DEBUG=1 and report what it prints"
    error = CloudftError(f"{type(exc).__name__}: {exc}", effect="see where the run stands:  cloudft status", hint=hint)
    error.__cause__ = exc
    return _fail(error, as_json)


def _fail(error: CloudftError, as_json: bool) -> int:
    if os.environ.get("CLOUDFT_DEBUG") == "1":
        traceback.print_exception(error)
    print_error(error, as_json)
    return error.exit_code


def _usage(exc: click.ClickException) -> str:
    message = exc.format_message()
    return message[0].lower() + message[1:].rstrip(".")


def _see_help(exc: click.ClickException) -> str:
    context = getattr(exc, "ctx", None)
    return f"{context.command_path if context else 'cloudft'} --help"
