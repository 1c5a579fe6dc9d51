"""The command line: python -m dtl doctor"""

from typing import Annotated

import typer

from dtl import doctor

app = typer.Typer(help="Data-based transfer learning.", no_args_is_help=True, add_completion=False)


@app.callback()
def main() -> None:
    """Data-based transfer learning: which source data helps or hurts a transferred model."""


@app.command("doctor")
def check(quick: Annotated[bool, typer.Option("--quick", help="do not measure training speed")] = False) -> None:
    """Say what this machine can do, what is missing, and how long each scale will take."""
    doctor.report(quick)


if __name__ == "__main__":
    app(prog_name="python -m dtl")
