"""Configs of runs: where their classes live now, wherever they lived when the run was made."""

from __future__ import annotations

from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

MOVED = {
    "omfa.callbacks.EMA": "omfa.training.ema.EMA",
    "omfa.callbacks.SamplePictures": "omfa.training.sample_pictures.SamplePictures",
    "omfa.callbacks.SaveModel": "omfa.training.checkpoints.SaveModel",
    "omfa.data.PicturesDataModule": "omfa.training.vae.PicturesDataModule",
    "omfa.data.RecordsDataModule": "omfa.training.examples.RecordsDataModule",
    "omfa.guards.LossGuard": "omfa.training.guards.LossGuard",
    "omfa.module.OMFAModule": "omfa.training.module.OMFAModule",
    "omfa.module.VAEModule": "omfa.training.vae.VAEModule",
    "omfa.pipeline.compact_pipeline": "omfa.compact.compact_pipeline",
    "omfa.zero.ZeRO": "omfa.training.zero.ZeRO",
}
"""Class path in configs of before to the class path of today."""

MOST_VALUES = 100_000  # in a config, aliases counted for what they stand for

_plain_yaml = get_loader("yaml")


def todays(value: Any) -> Any:
    """A config's value with every class path that has moved brought up to date."""
    if isinstance(value, dict):
        return {k: MOVED.get(v, v) if k == "class_path" and isinstance(v, str) else todays(v) for k, v in value.items()}
    return [todays(v) for v in value] if isinstance(value, list) else value


def refuse_bombs(text: str, name: str = "the config") -> None:
    """Refuse a YAML text whose aliases stand for more values than any config has (a "billion laughs").

    And one that says a thing twice, of which readers would take the last without a word.

    Raises:
        ValueError: more than ``MOST_VALUES``, nested too deep, or a key twice.
    """
    sizes, open_at, total = dict[str, int](), list[tuple[str | None, int]](), 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                total += sizes.get(event.anchor or "", MOST_VALUES)  # one that holds itself has no end
            elif isinstance(event, yaml.ScalarEvent):
                sizes[event.anchor or ""] = 1
                total += 1
            elif isinstance(event, yaml.CollectionStartEvent):
                open_at.append((event.anchor, total))
                total += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                anchor, before = open_at.pop()
                if anchor is not None:
                    sizes[anchor] = total - before
            if total > MOST_VALUES or len(open_at) > 100:
                raise ValueError(f"{name} stands for more than {MOST_VALUES} values, or is nested too deep: shorten it")
        _refuse_twice(yaml.compose(text, Loader=yaml.SafeLoader), name)
    except yaml.YAMLError:
        return  # whoever reads it says what is wrong


def _refuse_twice(node: yaml.Node | None, name: str) -> None:
    inside: list[Any] = []
    if isinstance(node, yaml.MappingNode):
        seen = set[str]()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise ValueError(f"{name}, line {key.start_mark.line + 1}: {key.value!r} stands twice; leave one out")
            seen |= {key.value} if isinstance(key, yaml.ScalarNode) else set()
            inside.append(value)
    elif isinstance(node, yaml.SequenceNode):
        inside = node.value
    for value in inside:
        _refuse_twice(value, name)


def load_yaml(text: str) -> Any:
    """What a config in YAML says, in today's class paths."""
    refuse_bombs(text)
    return todays(_plain_yaml(text))


def follow_moves() -> None:
    """Have jsonargparse read every config by :func:`load_yaml`."""
    set_loader("yaml", load_yaml)


def innermost(error: BaseException) -> str:
    """What an error says, without jsonargparse's account of the types that it tried."""
    while str(error).startswith("Does not validate against any of the Union") and error.__cause__ is not None:
        error = error.__cause__
    return str(error).rpartition("Errors:")[2].partition("- Expected a <class 'NoneType'>")[0].strip(" -\n")
