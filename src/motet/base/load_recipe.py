"""From a TOML file, its presets and the overrides of the command line to a checked `Recipe`."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from motet.base.errors import UserError
from motet.base.recipe import Recipe, nearest

PRESETS = Path(__file__).parent.parent / "presets"
KINDS = ("sft", "synthesize", "clean", "filter", "rl", "evaluate")
WORDS = {
    "extends": """extends
    What lies under this recipe: a preset (stable, paper, sequential), a .toml beside this file, or a list of these,
each over the one before it.""",
    "defaults": f"""defaults.KIND
    What every stage of that kind has where it does not say otherwise, e.g. [defaults.sft]; kinds are
{", ".join(KINDS)}.""",
}
"""What the file may say beside the keys of `Recipe`; `merged` takes both away."""


def load(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Reads a recipe. `overrides` are `a.b=value` with a TOML value (a bare word is a string).

    Raises UserError naming the key's path, what was given and the nearest name.
    """
    return check(merged(path, overrides or []), str(path))


def check(tree: dict[str, Any], origin: str) -> Recipe:
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(item) for item in error.errors()]
        raise UserError(f"{origin}: {len(lines)} problem(s) in the recipe\n" + "\n".join(lines)) from None


def built(tree: dict[str, Any], overrides: list[str], origin: str) -> Recipe:
    """A recipe that no file holds, from plain values; a command makes one around what it was given."""
    for text in overrides:
        _override(tree, text)
    return check(tree, origin)


def merged(path: Path, overrides: list[str]) -> dict[str, Any]:
    """The tree of plain values: presets under the recipe, `[defaults.KIND]` under every stage of that kind."""
    tree = _with_parents(path, ())
    tree.pop("extends", None)
    for text in overrides:
        if text.partition("=")[0].strip() == "extends":
            raise UserError(
                f"override {text!r}: extends belongs in {path}; what it brings is under the overrides already"
            )
        _override(tree, text)
    defaults = tree.pop("defaults", {})
    if not isinstance(defaults, dict):
        raise UserError(f"{path}: defaults: tables [defaults.KIND] were expected, got {defaults!r}")
    for kind, settings in defaults.items():
        if kind not in KINDS:
            raise UserError(f"{path}: [defaults.{kind}] names no kind of stage: {', '.join(KINDS)}")
        if isinstance(tree.get("stage"), dict):
            tree["stage"] = {name: _under_defaults(stage, kind, settings) for name, stage in tree["stage"].items()}
    return tree


def _under_defaults(stage: Any, kind: str, settings: Any) -> Any:
    return _merge(settings, stage) if isinstance(stage, dict) and stage.get("kind") == kind else stage


def _with_parents(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise UserError(f"{path}: extends itself through {' -> '.join(p.name for p in seen)}")
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Give the path of a recipe (TOML).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from error
    parents = tree.get("extends", [])
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise UserError(f"{path}: extends = {parents!r}: give the name of a preset, a .toml path, or a list of these")
    under: dict[str, Any] = {}
    for parent in parents:
        under = _merge(under, _with_parents(_find(parent, path), (*seen, path.resolve())))
    whole: dict[str, Any] = _merge(under, tree)
    return whole


def _find(parent: str, child: Path) -> Path:
    if parent.endswith(".toml"):
        return child.parent / parent
    preset = PRESETS / f"{parent}.toml"
    if not preset.exists():
        names = sorted(p.stem for p in PRESETS.glob("*.toml"))
        raise UserError(f"{child}: extends = {parent!r}: no such preset; {nearest(parent, names)}or give a .toml path")
    return preset


def _merge(under: Any, over: Any) -> Any:
    if isinstance(under, dict) and isinstance(over, dict):
        return {key: _merge(under.get(key), over[key]) if key in over else under[key] for key in {**under, **over}}
    return over


def _override(tree: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"override {text!r}: write it as a.b=value")
    node = tree
    *parents, last = [part.strip() for part in key.split(".")]
    for part in parents:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise UserError(f"override {text!r}: {part!r} is a value, not a table")
    try:
        node[last] = tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        node[last] = value.strip()


def _explain(item: Any) -> str:
    location = list(item["loc"])
    if len(location) > 2 and location[0] == "stage":
        del location[2]  # pydantic names the kind of stage that it chose; the user's file has no such level
    place = ".".join(map(str, location))
    if item["type"] == "extra_forbidden":
        parent = _model_at(Recipe, item["loc"][:-1])
        known, last = list(parent.model_fields) if parent else [], str(item["loc"][-1])
        elsewhere = [key for key, _ in _walk(Recipe, "") if key.endswith(f".{last}")]
        hint = nearest(last, known)
        if len(elsewhere) == 1 and not hint.startswith("did"):
            hint = f"there is {elsewhere[0]}"
        return f"  {place}: unknown key; {hint}".rstrip("; ")
    if item["type"] == "union_tag_not_found":
        return f"  {place}: kind is missing ({', '.join(KINDS)}); or is the name of the stage misspelt?"
    if item["type"] == "union_tag_invalid":
        kind = str(item["ctx"]["tag"])
        return f"  {place}: there is no kind {kind!r}; {nearest(kind, list(KINDS))}".rstrip("; ")
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] in ("missing", "value_error"):
        return f"  {place}: {message}" if place else f"  {message}"
    return f"  {place}: {message}, got {json.dumps(item.get('input'), default=str)[:80]}"


def _model_at(annotation: Any, location: tuple[Any, ...]) -> type[BaseModel] | None:
    """The model class at the end of an error's path: through fields, list positions, table names and kinds of stage."""
    models = list(_models(annotation))
    if not location:
        return models[0] if len(models) == 1 else None
    part, rest = location[0], location[1:]
    if get_origin(annotation) in (dict, tuple):
        return _model_at(get_args(annotation)[1 if get_origin(annotation) is dict else 0], rest)
    by_kind = [m for m in models if "kind" in m.model_fields and part in get_args(m.model_fields["kind"].annotation)]
    if len(models) > 1 and by_kind:
        return _model_at(by_kind[0], rest)
    found = [m.model_fields[part].annotation for m in models if part in m.model_fields]
    return _model_at(found[0], rest) if found else None


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    else:
        for argument in get_args(annotation):
            yield from _models(argument)


def describe(key: str) -> str:
    """What `motet explain KEY` prints: a dotted key, e.g. "stage.rl.algorithm.clip_high" or "clip_high".

    Raises UserError with the nearest key for an unknown one.
    """
    if key in WORDS:
        return WORDS[key]
    table = dict(_walk(Recipe, ""))
    matches = [k for k in table if k == key or k.endswith("." + key) or k.startswith(key + ".")]
    for meant in _without_own_names(key):
        matches = matches or [k for k in table if any(k == one or k.startswith(one + ".") for one in meant)]
    if not matches:
        leaves = sorted(set(table) | {k.rsplit(".", 1)[-1] for k in table})
        raise UserError(f"no key {key!r}; {nearest(key, leaves)}`motet explain stage` lists all keys of all stages")
    return "\n".join(table[k] for k in matches)


def _without_own_names(key: str) -> list[list[str]]:
    """What a key may stand for, the likeliest first: "stage.warm-up.steps" for that key of every kind of stage,
    "problems.school.path" and "problems.path" for "problems.NAME.path"."""
    table, _, rest = key.partition(".")
    own, _, below = rest.partition(".")
    if table == "stage" and own not in KINDS:
        return [[".".join(filter(None, ("stage", kind, below))) for kind in KINDS]]
    return (
        [[f"problems.NAME.{rest}"], [".".join(filter(None, ("problems.NAME", below)))]] if table == "problems" else []
    )


def _walk(model: type[BaseModel], prefix: str) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        default = "required" if field.is_required() else f"default {field.get_default(call_default_factory=True)!r}"
        nested = _nested(field.annotation)
        if nested:
            default = ""
        rows.append((path, f"{path}  {default}".rstrip() + f"\n    {field.description or ''}"))
        for tag, inner in nested:
            rows += _walk(inner, f"{path}.{tag}." if tag else f"{path}.")
    return rows


def _nested(annotation: Any) -> list[tuple[str, type[BaseModel]]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [("", annotation)]
    found: list[tuple[str, type[BaseModel]]] = []
    for argument in get_args(annotation):
        for tag, inner in _nested(argument):
            kind = inner.model_fields.get("kind")
            choices = get_args(kind.annotation) if kind is not None else ()
            found.append((choices[0] if len(choices) == 1 else tag, inner))
    if get_origin(annotation) is dict and not any(tag for tag, _ in found):
        found = [("NAME", inner) for _, inner in found]
    return found
