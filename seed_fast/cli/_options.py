"""Makes a command line of a frozen dataclass, and holds the options that several commands share.

A field is `name: Annotated[type, typer.Option(...)] = default`. The types below are shared fields; each command gives
them its own default. A command is a function of its options that returns an exit code:

    @command()
    def tokenize(options: TokenizeOptions) -> int:
        ...
"""

from __future__ import annotations

import copy
import inspect
import shlex
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args, get_origin, get_type_hints

import typer

from seed_fast.cli._run import UsageError, run

Model = Annotated[
    str, typer.Option(help="seed-tiny (inside the package, for trying out), a folder, or a Hugging Face hub id.")
]
RandomWeights = Annotated[
    bool,
    typer.Option(
        "--random-weights",
        help="Fill a preset (seed-2, ...) with random weights, to measure speed without a checkpoint.",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
DtypeName = Literal["float32", "bfloat16", "float16"]
Dtype = Annotated[
    DtypeName, typer.Option(help="float32 gives the official codes; the others are faster and may change some.")
]
Plan = Annotated[
    Literal["fast", "plain"],
    typer.Option(help="fast: the optimised form of the model, tok.fast(). plain: its modules, for comparison."),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images per forward pass. Doesn't change the codes.")]
Workers = Annotated[
    int | None,
    typer.Option(min=0, help="Processes that read and decode. 0: none. Default: one per spare core, at most 8."),
]
TrainedModel = Annotated[
    str, typer.Option(help="seed-tiny, or a folder (or hub id) that training wrote: a tokenizer and its text tower.")
]
Split = Annotated[str, typer.Option(help="Split of a Karpathy file or of shapes: train, val or test.")]
ImageRoot = Annotated[
    Path | None,
    typer.Option("--images", help="Folder where a list's relative paths begin. Default: the folder of the list."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]


@dataclass(frozen=True, kw_only=True)
class ResumableOptions:
    """Options of a command whose output is written in parts and can be resumed."""

    shard: Annotated[
        str | None,
        typer.Option(help="Part i/n of the work, such as 0/4, for n processes. torchrun sets it by itself."),
    ] = None
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where an earlier run stopped, or start if there was none.")
    ] = False
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier run wrote.")] = False


def command(*, stopped: str = "", memory: str = "lower --batch-size") -> Callable[[Callable[[Any], int]], Callable]:
    """Turn a function of an options dataclass into a function that typer can call, with a parameter for each field.

    Required fields come first in --help, then those of the class itself, then inherited ones.

    Args:
        stopped: end of the line that is printed on SIGINT or SIGTERM, such as how to resume; "": print no line.
        memory: advice where memory runs out; {name} stands for the value of an option.
    """

    def decorate(work: Callable[[Any], int]) -> Callable:
        options = get_type_hints(work)["options"]
        hints = get_type_hints(options, include_extras=True)
        by_name = {field.name: field for field in fields(options)}

        def entry(**given: Any) -> None:
            # Values as the dataclass holds them, then the work inside the one error ladder.
            values = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}

            def checked() -> int:
                for name, value in values.items():
                    _check_choice(name, value, hints[name])
                return work(options(**values))

            raise typer.Exit(run(checked, stopped=stopped, memory=memory.format(**values)))

        # The signature that typer reads: one parameter per field.
        entry.__name__, entry.__doc__ = work.__name__, work.__doc__
        entry.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter(
                    name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=inspect.Parameter.empty if by_name[name].default is MISSING else by_name[name].default,
                    annotation=_for_typer(hints[name]),
                )
                for name in _in_order(options)
            ]
        )
        return entry

    return decorate


def command_line(words: str, options: Any, *, without: tuple[str, ...] = ()) -> str:
    """Return the command line that gives these options, without those that have their defaults.

    Args:
        words: the command, such as "train lm".
        options: an instance of its dataclass.
        without: names of fields to leave out in any case.
    """
    hints = get_type_hints(type(options), include_extras=True)
    by_name = {field.name: field for field in fields(options)}
    line = ["seed-fast", *words.split()]
    for name in _in_order(type(options)):
        value = getattr(options, name)
        if value == by_name[name].default or name in without:
            continue
        declared = next((text for text in get_args(hints[name])[1].param_decls or () if text.startswith("--")), None)
        on, _, off = (declared or f"--{name.replace('_', '-')}").partition("/")
        if isinstance(value, bool):
            line.append(on if value else off)
        else:
            line += [on, str(value)]
    return shlex.join(line)


def _in_order(options: type) -> list[str]:
    """Return the names of the fields: required ones first, then those of the class itself, then inherited ones."""
    required = {field.name: field.default is MISSING for field in fields(options)}
    declared = (name for cls in options.__mro__ for name in vars(cls).get("__annotations__", ()))
    names = [name for name in dict.fromkeys(declared) if name in required]
    return sorted(names, key=lambda name: not required[name])


def _for_typer(hint: Any) -> Any:
    """Return the annotation for typer: it reads several values as a list, which the options hold as a tuple.

    A `Literal` is read as any text, so that a wrong one becomes one line like every other error.
    """
    kind, *extras = get_args(hint)
    if get_origin(kind) is tuple:
        kind = list[get_args(kind)[0]]  # type: ignore[misc]
    elif choices := _choices(hint):
        kind = str if get_origin(kind) is Literal else str | None
        extras = [copy.copy(extra) for extra in extras]
        extras[0].metavar = f"[{'|'.join(choices)}]"
    annotated, arguments = cast(Any, Annotated), (kind, *extras)
    return annotated[arguments]


def _check_choice(name: str, value: Any, hint: Any) -> None:
    """Refuse a value that is none of the choices of a `Literal`."""
    choices = _choices(hint)
    if choices and value is not None and value not in choices:
        raise UsageError(f"--{name.replace('_', '-')} must be one of {', '.join(choices)}, got {value!r}")


def _choices(hint: Any) -> tuple[str, ...]:
    """Return the values of an option's `Literal` or `Literal | None`; none for another type."""
    kind = get_args(hint)[0]
    return next((get_args(part) for part in (kind, *get_args(kind)) if get_origin(part) is Literal), ())
