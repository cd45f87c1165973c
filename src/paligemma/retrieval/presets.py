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
_MAX_WORDS = 1000
_WORD = re.compile(r"[^\W\d_]+")
# Those of the queries that `tiny` was taught with, and others that name nothing on a page.
_TINY_WORDS = (
    "a about an and are black blue by circle cross digit does find for green heart in is it of on "
    "or orange page picture purple red say saying shows show sign square star that the there to "
    "triangle what where which white with yellow"
)


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
        plain_words: words that are read as they are written. If there are any, the others of a
            query are read in capitals, as the pages are that the model was taught with.
    """

    name: str
    query_prefix: str
    page_prompt: str = "Describe the image."
    augmentation_token: str = PAD
    num_augmentation: int = 10
    newline: bool = True
    query_attention: str = BIDIRECTIONAL
    plain_words: tuple[str, ...] = ()

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
        words = self.plain_words
        if not (
            isinstance(words, tuple)
            and len(words) <= _MAX_WORDS
            and all(isinstance(word, str) and len(word) <= _MAX_CHARS for word in words)
        ):
            raise ConfigError(
                f"plain_words of a preset are at most {_MAX_WORDS} texts of at most {_MAX_CHARS} "
                f"characters, got {reprlib.repr(words)}"
            )

    def read_as(self, query: str) -> str:
        """The query as the model reads it: as many characters, behind the prefix."""
        if self.plain_words:
            plain = frozenset(self.plain_words)
            query = _WORD.sub(
                lambda word: word[0] if word[0].lower() in plain else _capitals(word[0]), query
            )
        return self.query_prefix + query

    def to_json(self) -> dict[str, Any]:
        """The fields by name; without `plain_words` where there are none."""
        words = {"plain_words": list(self.plain_words)} if self.plain_words else {}
        return {name: one for name, one in asdict(self).items() if name != "plain_words"} | words

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Preset:
        """A preset from its fields by name.

        Raises:
            ConfigError: a field is missing, unknown, or of the wrong kind.
        """
        names = {field.name for field in fields(cls)} - {"plain_words"}
        stated = raw.keys() - {"plain_words"}
        if stated != names:
            raise ConfigError(
                f"{FILE_NAME} must have exactly the fields {', '.join(sorted(names))}, and perhaps "
                f"plain_words; {', '.join(sorted(names ^ stated))[:300]} is missing or unknown"
            )
        words = raw.get("plain_words", ())
        return cls(**{**raw, "plain_words": tuple(words) if isinstance(words, list) else words})


def _capitals(word: str) -> str:
    """The word in capitals; a letter without a single one of its own, such as ß, stays."""
    return "".join(one.upper() if len(one.upper()) == 1 else one for one in word)


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
        Preset(
            name="tiny",
            query_prefix="",
            page_prompt="",
            num_augmentation=4,
            plain_words=tuple(_TINY_WORDS.split()),
        ),
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
