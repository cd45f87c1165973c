"""The fields of requests, checked; FastAPI makes the OpenAPI page of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

MAX_PROMPT_CHARS = 20_000
MAX_QUERY_CHARS = 2000
MAX_HITS = 100
MAX_ANSWERS = 8
MAX_INPUTS = 64  # queries or pages of one request
# One grey pixel, so that the examples of the API page can be sent as they are.
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42m"
    "NoAAAAggCB2kUIOwAAAABJRU5ErkJggg=="
)
Labels = list[str] | str


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class AnswerFields(_Strict):
    """What `AnswerOptions` and `ObjectOptions` take."""

    max_new_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=10)
    top_k: int | None = Field(None, ge=1, le=1_000_000)
    top_p: float | None = Field(None, gt=0, le=1)
    num_beams: int = Field(1, ge=1, le=8)
    length_penalty: float | None = Field(None, ge=0, le=5)
    best_of: int = Field(1, ge=1, le=8)
    seed: int = Field(0, ge=0, lt=2**63)
    weigh_locations: bool | None = None
    probabilities: Literal["vocabulary", "allowed"] = "vocabulary"
    choices: list[str | int] | None = Field(None, min_length=1, max_length=10_000)
    json_schema: dict[str, Any] | None = None


class ObjectFields(AnswerFields):
    threshold: float | None = Field(None, ge=0, le=1)
    max_overlap: float | None = Field(None, ge=0, le=1)
    constrain: bool = False
    max_objects: int | None = Field(None, ge=1, le=1024)
    no_repeats: bool = False


class PictureFields(_Strict):
    """Which model, which picture, and what comes back beside the answer."""

    model: str | None = Field(None, max_length=300)
    image: str | None = Field(None, examples=[PIXEL])
    images: list[str] | None = Field(None, min_length=1)
    image_id: str | None = Field(None, max_length=100)
    tokens: bool = False
    stream: bool = False

    @field_validator("image", "image_id", "model", mode="before")
    @classmethod
    def _none_if_empty(cls, value: Any) -> Any:
        return None if value == "" else value


class OverlayFields(_Strict):
    overlay: bool = False
    polygons: bool = False
    objects: bool = Field(False, description="A stream tells each object when it is complete.")


class DetectRequest(PictureFields, ObjectFields, OverlayFields):
    """Boxes of the named things."""

    labels: Labels = Field(max_length=MAX_PROMPT_CHARS, examples=["star;digit"])


class SegmentRequest(DetectRequest):
    """Boxes and masks of the named things."""


class CaptionRequest(PictureFields, AnswerFields):
    """A description of the picture."""

    lang: str = Field("en", max_length=20)
    style: Literal["caption", "cap", "describe"] = "caption"


class AnswerRequest(PictureFields, AnswerFields):
    """A short answer to a question."""

    question: str = Field(max_length=MAX_PROMPT_CHARS, examples=["what color is the star?"])
    lang: str = Field("en", max_length=20)


class ReadRequest(PictureFields, AnswerFields):
    """The text in the picture."""


class AskRequest(PictureFields, ObjectFields, OverlayFields):
    """Whatever the prompt asks for."""

    in_words: bool = Field(False, description="The answer is text, boxes spelt out.")
    prompt: str = Field(max_length=MAX_PROMPT_CHARS, examples=["detect star ; digit"])


class SearchRequest(_Strict):
    """A query about the pages of the server's index."""

    query: str = Field(
        min_length=1, max_length=MAX_QUERY_CHARS, examples=["how much did revenue grow?"]
    )
    k: int = Field(5, ge=1, le=MAX_HITS, description="How many pages come back, the best first.")
    heat: bool = Field(
        False, description="Where on each page each word of the query is found, as pictures."
    )
    thumbnails: bool = Field(True, description="A small picture of each page.")
    answers: int = Field(
        0,
        ge=0,
        le=MAX_ANSWERS,
        description="How many of the best pages a model reads, to answer the query from each.",
    )
    model: str | None = Field(
        None, max_length=300, description="The model that reads; the server's first by default."
    )


class EmbeddingsRequest(_Strict):
    """Queries or pages, each of which becomes many vectors."""

    model: str | None = Field(
        None, max_length=300, description="The index's, by name or identity, if stated."
    )
    input: str | list[str] | None = Field(
        None, max_length=MAX_QUERY_CHARS, examples=["how much did revenue grow?"]
    )
    images: list[str] | None = Field(None, min_length=1, max_length=MAX_INPUTS)
    encoding_format: Literal["float", "base64"] = "float"


class AddRequest(_Strict):
    """Pages for the index: pictures, or documents in PDF, by the names that hits will show."""

    files: dict[str, str] = Field(
        min_length=1,
        max_length=MAX_INPUTS,
        description="Name -> data URL or base64.",
        examples=[{"page.png": PIXEL}],
    )


class RemoveRequest(_Strict):
    """Pages that leave the index."""

    ids: list[Annotated[str, Field(pattern=r"^[0-9a-f]{64}:[1-9][0-9]{0,8}$")]] = Field(
        min_length=1, max_length=1000, examples=[["0" * 64 + ":1"]]
    )
