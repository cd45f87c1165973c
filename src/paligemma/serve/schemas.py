"""The fields of requests, checked; FastAPI makes the OpenAPI page of them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

MAX_PROMPT_CHARS = 20_000
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
