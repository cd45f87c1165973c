"""The tools that an agent is offered: what each takes, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from paligemma.serve.answers import FoundDetection, WordFacts
from paligemma.serve.schemas import MAX_PROMPT_CHARS, MAX_QUERY_CHARS, Labels

# What becomes of a call, apart from the question.
PLACE = frozenset({"path", "image", "overlay"})


class ToolFields(BaseModel):
    """The picture, and what every task takes."""

    model_config = ConfigDict(extra="forbid")

    path: str | None = Field(
        None, max_length=4096, description="Path of the picture, below a root of this server."
    )
    image: str | None = Field(
        None,
        description="The picture itself, as data:image/png;base64,... or base64; instead of path.",
    )
    overlay: bool = Field(
        False, description="Also give back the picture with the answer drawn on it."
    )
    max_new_tokens: int | None = Field(None, ge=1, description="Bound of the answer.")


class ObjectFields(ToolFields):
    threshold: float | None = Field(
        None, ge=0, le=1, description="Leave out objects with a lower confidence."
    )
    max_overlap: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Of boxes of one label that overlap more (IoU), keep the likeliest; 0.5 is "
        "usual.",
    )


class DetectFields(ObjectFields):
    labels: Labels = Field(
        max_length=MAX_PROMPT_CHARS,
        description='What to look for: ["cat", "red car"], or "cat ; red car".',
    )


class CaptionFields(ToolFields):
    lang: str = Field("en", max_length=20, description="Language code, such as de.")
    style: Literal["caption", "cap", "describe"] = Field(
        "caption", description="cap is short, describe longer."
    )


class AnswerFields(ToolFields):
    question: str = Field(max_length=MAX_PROMPT_CHARS, description="A question about the picture.")
    lang: str = Field("en", max_length=20, description="Language code, such as de.")
    choices: list[str | int] | None = Field(
        None, min_length=1, max_length=10_000, description="The only answers allowed."
    )


class AskFields(ObjectFields):
    prompt: str = Field(
        max_length=MAX_PROMPT_CHARS,
        description='A prompt as the model was trained on: "caption en", "detect cat ; dog".',
    )


class Size(BaseModel):
    """Of the picture, in pixels."""

    width: int
    height: int


class _Result(BaseModel):
    model: str
    prompt: str = Field(description="What was sent to the model.")
    image: Size
    text: str = Field(description="All that the model wrote.")
    finish_reason: Literal["stop", "length"] = Field(
        description="length: the answer was cut at max_new_tokens."
    )


class FoundObjects(_Result):
    """Where each thing is."""

    detections: list[FoundDetection]
    rest: str = Field(description="The part of the text that belongs to no object.")


class Words(_Result):
    """An answer in words."""

    score: float | None = Field(description="Probability of exactly this text.")


class Anything(_Result):
    """Objects or words, as the prompt asked."""

    detections: list[FoundDetection] | None = None
    rest: str | None = None
    score: float | None = None


@dataclass(frozen=True)
class ToolKind:
    """One tool."""

    fields: type[ToolFields]
    result: type[BaseModel]
    title: str
    description: str


TOOLS: Mapping[str, ToolKind] = {
    "detect": ToolKind(
        DetectFields, FoundObjects, "Find things", "Find things in a picture: boxes, confidences."
    ),
    "segment": ToolKind(
        DetectFields,
        FoundObjects,
        "Outline things",
        "Outline things in a picture: boxes and masks. One label at a time works best.",
    ),
    "caption": ToolKind(CaptionFields, Words, "Describe a picture", "Describe a picture."),
    "answer": ToolKind(
        AnswerFields, Words, "Answer a question", "Answer a short question about a picture."
    ),
    "read": ToolKind(ToolFields, Words, "Read text", "Read all text in a picture (OCR)."),
    "ask": ToolKind(
        AskFields,
        Anything,
        "Ask with a prompt",
        "Ask a picture with a prompt of the model's own; for what the other tools cannot say.",
    ),
}


def schema_of(kind: type[BaseModel]) -> dict[str, Any]:
    """JSON schema without the names that pydantic makes up for fields."""
    return _untitled(kind.model_json_schema())


def _untitled(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_untitled(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: _untitled(value)
        for key, value in schema.items()
        if not (key == "title" and isinstance(value, str))
    }


class SearchFields(BaseModel):
    """A query about the index."""

    model_config = ConfigDict(extra="forbid")

    query: str = Field(
        min_length=1,
        max_length=MAX_QUERY_CHARS,
        description="What the page should be about, as a question or in words.",
    )
    k: int = Field(3, ge=1, le=20, description="How many pages come back, the best first.")
    pictures: bool = Field(
        True, description="Also give back a small picture of each page, in the order of the hits."
    )
    heat: bool = Field(
        False, description="Mark on these pictures where the words of the query are found."
    )


class FoundPage(BaseModel):
    """A page; `path` is there where the other tools can read the file, if it is a picture."""

    id: str
    score: float
    file: str
    path: str | None
    page: int
    text: str = Field(description="The start of the page's own text, where its file has some.")
    words: list[WordFacts] = Field(description="What each word of the query adds to the score.")


class FoundPages(BaseModel):
    """The best pages of the index."""

    query: str
    index: str
    model: str
    num_pages: int
    hits: list[FoundPage]


SEARCH = "search"
SEARCH_TITLE = "Search documents"
SEARCH_DESCRIPTION = (
    "Find the pages of an index of documents that answer a query; they are compared as pictures, "
    "so tables, figures and scans count. Look at the pages before you answer."
)
