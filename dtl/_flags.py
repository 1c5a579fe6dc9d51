"""Settings of the command line: flags, and YAML files as flags."""

import json
import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, set_loader
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from dtl._checks import InputError
from dtl.engine.store import local_folder

FOLDERS = ("store", "weights", "source", "target", "root", "source_dir", "target_dir", "cache", "path")  # in a file
SWITCHES = ("repair", "dry_run")  # true or false in a file, there or not as flags


def read_file(path: Path) -> list[str]:
    """A YAML file as flags; folders in it are relative to it.

    >>> _ = Path("study.yaml").write_text("models: 4\\nrecipe: {epochs: 1}")
    >>> read_file(Path("study.yaml"))
    ['--models=4', '--recipe={"epochs": 1}']
    """

    def absolute(name: str, value: object) -> object:
        if isinstance(value, dict):
            return {key: absolute(key, of) for key, of in value.items()}
        return str(path.resolve().parent / local_folder(value)) if name in FOLDERS and isinstance(value, str) else value

    try:
        found = load_yaml(path.read_text("utf8"))
        if not isinstance(found, dict):
            raise InputError(f"settings must be names with values, such as 'seed: 0', not {found!r}")
        named = {name: absolute(name, value) for name, value in found.items()}
        on = [f"--{name.replace('_', '-')}" for name in SWITCHES if named.get(name) is True]
        given = {k: v for k, v in named.items() if not (k in SWITCHES and isinstance(v, bool))}
        return [*(f"--{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in given.items()), *on]
    except (YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is no YAML file: {' '.join(str(error).split())}") from error
    except (TypeError, ValueError, OSError) as error:
        raise InputError(f"{path}: {error}") from error


def load_yaml(text: str) -> Any:
    """YAML 1.2: a key given twice is an error, `on` and `yes` are words."""
    return YAML(typ="safe", pure=True).load(text)


set_loader("yaml12", load_yaml, exceptions=(YAMLError, ValueError))


class Parser(ArgumentParser):
    """Errors of one line, no abbreviated flags, and `--dry-run` for a bool `dry_run`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, "parser_mode": "yaml12", **options})

    def add_argument(self, *args: Any, **options: Any) -> Any:
        if args == ("--config",):  # `read_file` takes its place
            return None
        if args == ("stores",):
            options = {"type": str, "nargs": "+", "help": options["help"]}
        if options.get("type") is bool:
            del options["type"]
            args, options = tuple(arg.replace("_", "-") for arg in args), {**options, "action": "store_true"}
        return super().add_argument(*args, **options)

    def error(self, message: str, ex: Exception | None = None) -> Any:
        given = re.search(r'key "([\w.]+)".*?(?:Got|Given) value: (.*)', message, re.DOTALL)
        if given:
            kinds = dict.fromkeys(re.findall(r"<class '(?:\w+\.)*(\w+)'>", message.split("Given")[0]))
            message = f"--{given[1]} cannot be {given[2]!r}: it must be {' or '.join(kinds)}"
        unknown = re.search(r"unrecognized arguments: (--[\w.-]+)", message)
        if unknown:
            near = get_close_matches(unknown[1], self._option_string_actions, 1)
            message = f"unknown setting {unknown[1]}" + (f": did you mean {near[0]}?" if near else "")
        raise InputError(message) from ex
