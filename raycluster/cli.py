"""The command line: `raycluster <command> --config run.yaml [--section.field value …]`.

The commands are those of the stages and a few more, and the options are made from the fields of
:class:`~raycluster.config.RunConfig`. Neither torch nor Ray is imported here, so that `--help` answers at once. (tyro was tried for this:
it needs a complete, valid default configuration before it parses, and cannot take the constants of a method that is known only after
parsing.)
"""

from __future__ import annotations

import argparse
import atexit
import json
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

import yaml
from pydantic import BaseModel

from raycluster.compute import interrupts
from raycluster.config import AssignConfig, RunConfig, StorageConfig
from raycluster.errors import ConfigError, RayclusterError
from raycluster.pipeline.prune import prune
from raycluster.pipeline.stages import RUN
from raycluster.pipeline.status import status
from raycluster.section import validate
from raycluster.serving.settings import ServeSettings
from raycluster.storage.location import locate

COMMANDS = {
    "run": "do every stage that is not done yet, up to the report",
    **{stage.name: stage.help for stage in RUN if stage.help is not None},
    "status": "say what is done, what is left and how many images failed and why",
    "prune": "say, and with --yes delete, what no result needs any more, and all rows of images that the manifest no longer has",
    "doctor": "check storage, credentials, Ray and its nodes, and say how to repair what is wrong",
    "serve": "answer over HTTP which cluster a picture belongs to, until stopped",
    "demo": "draw a few hundred pictures and cluster them, without a network",
}

WITHOUT_STAGES = ("status", "doctor", "serve")
"""Commands that leave no finished work which a next call could go on with."""

WATCH_SECONDS = 10
"""How often `serve` looks for a new model of its run, where nothing else is said."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 ok, 2 configuration, 3 data quality, 4 artefact, 130 Ctrl-C, 143 SIGTERM, 1 anything else."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options, overrides = _parse(arguments)
    with _stdout_for_result() as stdout:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
        for handler in logging.getLogger().handlers:
            # One line a stage is ours; of other libraries only warnings are worth a line between them.
            handler.addFilter(lambda record: record.name.startswith("raycluster") or record.levelno >= logging.WARNING)
        try:
            with interrupts.raised():
                result = _execute(options, overrides)
            code = 2 if result["status"] == "failed" else 0
        except (interrupts.Interrupted, SystemExit) as stopped:
            result, code = _interrupted(options.command, stopped)
        except Exception as error:  # noqa: BLE001 - the last line of defense: what is not ours leaves its traceback on stderr
            result, code = _failure(options.command, error)
        print(json.dumps(result, ensure_ascii=False), file=stdout, flush=True)
    return code


def _execute(options: argparse.Namespace, overrides: dict[str, Any]) -> dict[str, Any]:
    if options.command == "status":
        return status(options.output, validate(overrides.get("storage", {}), StorageConfig, "storage"))
    if options.command == "prune":
        storage = validate(overrides.get("storage", {}), StorageConfig, "storage")
        return prune(options.output, storage, options.yes)
    if options.command == "doctor":
        from raycluster.pipeline.doctor import doctor

        return doctor(load_config(options.config, overrides) if options.config or overrides else None)
    if options.command == "serve":
        from raycluster.serving.command import serve_forever

        served = validate({"watch_seconds": WATCH_SECONDS, **overrides}, ServeSettings, "serve")
        return serve_forever(served, options.host, options.port)
    if options.command == "demo":
        from raycluster.demo.main import demo

        return demo(options.output, options.seed, options.method)
    from raycluster.pipeline.run import assign, run

    settings = read_settings(options.config, overrides)
    if options.command == "assign" and "model" in settings:
        if options.retrain:
            raise ConfigError("--retrain: `assign --model` trains nothing; leave out --retrain or --model")
        return assign(retry_failed=options.retry_failed, dry_run=options.dry_run, **settings).as_json()
    config = load_config(options.config, overrides)
    until = "report" if options.command == "run" else options.command
    switches = {"retrain": options.retrain, "retry_failed": options.retry_failed, "dry_run": options.dry_run}
    result = run(config, until=until, command=options.command, **switches)
    return result.as_json()


def _interrupted(command: str, stopped: BaseException) -> tuple[dict[str, Any], int]:
    # While Ray starts, SIGTERM has a handler of Ray's, which exits.
    number = stopped.number if isinstance(stopped, interrupts.Interrupted) else signal.SIGTERM
    said = "interrupted" if command in WITHOUT_STAGES else "interrupted; run the command again: finished work is kept"
    print(f"raycluster {command}: {said}", file=sys.stderr)
    return {"command": command, "status": "interrupted", "error": said}, 128 + number


def _failure(command: str, error: Exception) -> tuple[dict[str, Any], int]:
    ours: RayclusterError | None = error if isinstance(error, RayclusterError) else None
    if "ray" in sys.modules:
        from raycluster.compute.errors import raised_in_task

        ours = raised_in_task(error)
    if ours is None:
        traceback.print_exc(file=sys.stderr)
        return {"command": command, "status": "failed", "error": f"{type(error).__name__}: {error}"}, 1
    print(f"raycluster {command}: {ours}", file=sys.stderr)
    return {"command": command, "status": "failed", "error": str(ours)}, ours.exit_code


def load_config(path: str | None, overrides: Mapping[str, Any]) -> RunConfig:
    """The configuration of a run, from :func:`read_settings`; raises :class:`ConfigError`."""
    return validate(read_settings(path, overrides), RunConfig, path or "options")


def read_settings(path: str | None, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """What a YAML file (local or `s3://`; None: empty) says, with nested `overrides` on top; not checked yet."""
    data: Any = {}
    if path is not None:
        # What the file says of storage applies to everything but itself.
        file = locate(path, validate(overrides.get("storage", {}), StorageConfig, "storage"))
        try:
            data = yaml.safe_load(file.read_bytes()) or {}
        except FileNotFoundError:
            raise ConfigError(f"--config: {path} does not exist; give the path of a YAML file") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"--config: {path} cannot be read ({error}); check its address and permissions, and that it is UTF-8 text"
            ) from None
        except yaml.YAMLError as error:
            raise ConfigError(
                f"--config: {path} is not valid YAML ({' '.join(str(error).split())}); correct it there"
            ) from None
        if not isinstance(data, dict):
            raise ConfigError(f"--config: {path} must hold `key: value` lines, such as `images: photos/`")
    return _merge(data, overrides)


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(value, Mapping) and isinstance(below, dict) else value
    # Another model brings other weights: a tag from the file must not stick to it.
    if "model" in over and "pretrained" not in over:
        merged.pop("pretrained", None)
    return merged


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    parser = argparse.ArgumentParser(prog="raycluster", description="Cluster images without labels, on Ray.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, what in COMMANDS.items():
        command = commands.add_parser(name, help=what, description=what[0].upper() + what[1:] + ".", allow_abbrev=False)
        if name == "status":
            command.add_argument("output", help="the run folder, local or s3://")
            _add_fields(command, StorageConfig, "storage.")
        elif name == "prune":
            command.add_argument("--output", required=True, help="the run folder, local or s3://")
            command.add_argument("--yes", action="store_true", help="delete it; without this, nothing is deleted")
            _add_fields(command, StorageConfig, "storage.")
        elif name == "serve":
            _add_serve(command)
        elif name == "demo":
            command.add_argument(
                "--output", default="raycluster-demo", help="folder for pictures and run (default: %(default)s)"
            )
            command.add_argument(
                "--seed", type=int, default=0, help="seed of drawing and training (default: %(default)s)"
            )
            command.add_argument("--method", default="consensus", help="clustering method (default: %(default)s)")
        else:
            command.add_argument(
                "--config", metavar="FILE", help="YAML file, local or s3://; options of the command line override it"
            )
            if name == "doctor":
                _add_fields(command, RunConfig, "")
                continue
            command.add_argument(
                "--dry-run", action="store_true", help="write nothing; say which stages would run, and why"
            )
            command.add_argument(
                "--retrain",
                action="store_true",
                help="train again if images were only added; by default, the existing model assigns them",
            )
            if name == "assign":
                text = f"{_plain(AssignConfig.model_fields['model'].description)} Of the options below, only images, embeddings, output, max_failed_fraction, storage and resources can be combined with it"
                command.add_argument("--model", dest="=model", default=argparse.SUPPRESS, metavar="…", help=text)
            command.add_argument(
                "--retry-failed", action="store_true", help="read again the images that could not be read before"
            )
            _add_fields(command, RunConfig, "")
    options, rest = parser.parse_known_args(arguments)
    given = {key: value for key, value in vars(options).items() if "." in key or key.startswith("=")}
    overrides: dict[str, Any] = {}
    for key, value in [*given.items(), *_constants(rest, commands.choices[options.command])]:
        _put(overrides, key.lstrip("=").split("."), value)
    return options, overrides


def _add_serve(command: argparse.ArgumentParser) -> None:
    command.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    command.add_argument("--port", type=int, default=8000, help="port to listen on (default: %(default)s)")
    _add_fields(command, ServeSettings, "")


def _add_fields(parser: argparse.ArgumentParser, section: type[BaseModel], prefix: str) -> None:
    """An option for each field; sections become dotted names."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            _add_fields(parser, kind, f"{name}.")
            continue
        default = "" if field.is_required() or field.default is None else f" (default: {field.default})"
        help_text = f"{_plain(field.description)}{default}".replace("%", "%%")
        # A leading `=` keeps top-level fields apart from the command's own options.
        destination = f"{prefix}{name}" if prefix else f"={name}"
        flag = f"--{prefix}{name}"
        parser.add_argument(flag, dest=destination, type=_value, default=argparse.SUPPRESS, metavar="…", help=help_text)


def _plain(description: str | None) -> str:
    return re.sub(r"\s+", " ", description or "")


def _value(text: str) -> Any:
    """YAML, so that numbers, booleans, null and lists mean the same as in the file."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _constants(rest: list[str], parser: argparse.ArgumentParser) -> Iterator[tuple[str, Any]]:
    """`--method.x value`: the method's own constants, which only the method knows."""
    words = [part for word in rest for part in (word.split("=", 1) if word.startswith("--") else [word])]
    while words:
        flag = words.pop(0)
        if not flag.startswith("--method.") or not words:
            parser.error(
                f"unknown option {flag}, or its value is missing; `raycluster {parser.prog.split()[-1]} --help` lists the options"
            )
        yield flag.removeprefix("--"), _value(words.pop(0))


def _put(tree: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
    tree[path[-1]] = value


@contextmanager
def _stdout_for_result() -> Iterator[TextIO]:
    """Yield the real stdout, and send everything else that is printed, Ray's children included, to stderr."""
    sys.stdout.flush()
    real = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(os.dup(real), "w") as stdout:
            yield stdout
    finally:
        sys.stdout.flush()
        os.dup2(real, 1)
        os.close(real)
        # When the process ends, Ray prints what it has kept back of its processes' last words.
        atexit.unregister(_stdout_to_stderr)
        atexit.register(_stdout_to_stderr)


def _stdout_to_stderr() -> None:
    sys.stdout.flush()
    os.dup2(2, 1)


if __name__ == "__main__":
    sys.exit(main())
