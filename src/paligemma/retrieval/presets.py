"""What stands around a query and a page, which no two versions of ColPali had alike.

The prompts changed with the versions of colpali-engine, the attention of queries with those of
transformers. A checkpoint gives the vectors that it was trained to give only with its own.

Padding belongs to no preset: it is never attended and never returned, and rotary positions are
relative, so the side on which a batch is padded makes no difference.

Source: github.com/illuin-tech/colpali, releases 0.1 to 0.3.18; ColPaliProcessor of transformers.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from paligemma.errors import ConfigError

CAUSAL, BIDIRECTIONAL = "causal", "bidirectional"
PAD = "<pad>"
FILE_NAME = "colpali.json"
_MAX_CHARS = 1000
_MAX_AUGMENTATION = 256


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How queries and pages are written before the model reads them.

    Attributes:
        name: what the preset is called.
        query_prefix: text in front of each query.
        page_prompt: text behind the patches of each page.
        augmentation_token: token that is appended to each query; the model attends it, also where
            it is "<pad>".
        num_augmentation: how many of them.
        newline: whether a query ends with a line feed, as a page always does.
        query_attention: "bidirectional", or "causal", where a query's token sees those before it;
            those of a page always see each other.
    """

    name: str
    query_prefix: str
    page_prompt: str = "Describe the image."
    augmentation_token: str = PAD
    num_augmentation: int = 10
    newline: bool = True
    query_attention: str = BIDIRECTIONAL

    def __post_init__(self) -> None:
        for name in ("name", "query_prefix", "page_prompt", "augmentation_token"):
            value = getattr(self, name)
            if not isinstance(value, str) or len(value) > _MAX_CHARS:
                raise ConfigError(
                    f"{name} of a preset must be a text of at most {_MAX_CHARS} characters, got "
                    f"{reprlib.repr(value)}"
                )
        count = self.num_augmentation
        if type(count) is not int or not 0 <= count <= _MAX_AUGMENTATION:
            raise ConfigError(
                f"num_augmentation of a preset must lie in 0..{_MAX_AUGMENTATION}, got "
                f"{reprlib.repr(count)}"
            )
        if type(self.newline) is not bool:
            raise ConfigError(
                f"newline of a preset must be true or false, got {self.newline!r:.100}"
            )
        if self.query_attention not in (CAUSAL, BIDIRECTIONAL):
            raise ConfigError(
                f"query_attention of a preset must be {BIDIRECTIONAL} or {CAUSAL}, got "
                f"{self.query_attention!r:.100}"
            )

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Preset:
        """A preset from its fields by name.

        Raises:
            ConfigError: a field is missing, unknown, or of the wrong kind.
        """
        names = {field.name for field in fields(cls)}
        if raw.keys() != names:
            raise ConfigError(
                f"{FILE_NAME} must have exactly the fields {', '.join(sorted(names))}, "
                f"{', '.join(sorted(names ^ raw.keys()))[:300]} is missing or unknown"
            )
        return cls(**raw)


PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="v1.0",
            query_prefix="Question: ",
            augmentation_token="<unused0>",
            num_augmentation=5,
            query_attention=CAUSAL,
        ),
        Preset(name="v1.1", query_prefix="Question: ", query_attention=CAUSAL),
        Preset(name="v1.2", query_prefix="Question: ", query_attention=CAUSAL),
        Preset(name="v1.3", query_prefix="Query: "),
        Preset(name="colpali2", query_prefix="Query: "),
        Preset(name="engine", query_prefix="", newline=False),
        Preset(name="hf", query_prefix="Question: "),
        Preset(name="tiny", query_prefix="", page_prompt="", num_augmentation=4),
    )
}
_BY_NAME = (
    (re.compile(r"colpali-?v(1\.[0-3])-hf(?![\w.])"), "hf"),
    (re.compile(r"colpali-?v(1\.[0-3])(?![\d])"), r"v\1"),
    (re.compile(r"col(pali|paligemma)-?2"), "colpali2"),
    (re.compile(r"^vidore/colpali$"), "v1.0"),
)


def find_preset(name: str) -> Preset:
    """The preset of a name.

    Raises:
        ConfigError: there is none.
    """
    if not isinstance(name, str) or name not in PRESETS:
        raise ConfigError(
            f"the preset must be one of {', '.join(PRESETS)}, or a Preset, got {reprlib.repr(name)}"
        )
    return PRESETS[name]


def preset_of_name(model: str) -> Preset | None:
    """The preset of a published checkpoint, known by the name of its repository or folder."""
    for pattern, target in _BY_NAME:
        if found := pattern.search(model.lower()):
            return PRESETS[found.expand(target)]
    return None
