"""The command ``handful``: its verbs, and how each kind of failure ends.

Commands import what they need inside, because torch costs seconds and ``--help`` should not.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from handful import __version__
from handful.cli.check import check
from handful.cli.console import note, say
from handful.cli.demo import demo
from handful.cli.download import download
from handful.cli.evaluate import evaluate
from handful.cli.export import export
from handful.cli.methods import methods
from handful.cli.plan import plan
from handful.cli.predict import predict
from handful.cli.pretrain import pretrain
from handful.cli.report import report
from handful.cli.study import study
from handful.cli.suggest import suggest
from handful.cli.train import train
from handful.errors import HandfulError

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 + SIGINT."""

app = typer.Typer(
    name="handful",
    help="A handful of labels is enough: from a folder of CT or MR volumes, few of them labelled, to measured masks.",
    epilog="Start with: handful demo, or on your own folder: handful check DATA",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich" if sys.stdout.isatty() else None,
)
COMMANDS: dict[Callable[..., None], str] = {
    demo: "The whole way on a made-up data set, in minutes.",
    check: "Read every file; name every problem.",
    plan: "What is decided from the data, and why.",
    pretrain: "Weights from all images, to start a training from.",
    train: "A segmentation model from few labels.",
    predict: "Label maps for new volumes.",
    evaluate: "Predictions against references.",
    study: "Methods, budgets and draws compared, with intervals.",
    report: "One page about a run.",
    suggest: "Which cases to label next, and why.",
    export: "Weights for other programs.",
    methods: "What there is to train with.",
    download: "A public data set.",
}
for _command, _short in COMMANDS.items():
    app.command(short_help=_short, no_args_is_help=_command not in (demo, methods, download))(_command)


def _version(asked: bool) -> None:
    if asked:
        say(f"handful {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where an error came from (anywhere in the line).")
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 2 usage, 3 a problem in the data, 130 interrupted, 1 otherwise.

    Args:
        arguments: the command line without the program's name; ``sys.argv`` if None.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        app([word for word in words if word != "--debug"], prog_name="handful")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except HandfulError as error:
        if debug:
            raise
        note(f"Error: {error}")
        code = error.exit_code
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        if debug:
            raise
        note(
            f"Error: {type(error).__name__}: {error}\n"
            "This is a defect of handful. Run the same command with --debug to see where it happened, and report it."
        )
        code = 1
    if code == INTERRUPTED:
        note("\nInterrupted. What was finished is kept; the same command goes on from there.")
    return code
