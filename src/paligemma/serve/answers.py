"""The shapes of answers, for readers of /openapi.json; the routes themselves write plain JSON."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field


class ErrorFacts(BaseModel):
    """Why a request is not answered: rule, value and remedy in one sentence."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """An error, as OpenAI's clients read it."""

    error: ErrorFacts


class Usage(BaseModel):
    """Tokens of pictures and prompt, and of all answers."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ImageFacts(BaseModel):
    """The (first) picture; `id` may be sent as `image_id` in the place of the picture."""

    id: str
    width: int
    height: int


class Mask(BaseModel):
    """COCO's compressed run lengths; size is height and width."""

    size: list[int] = Field(min_length=2, max_length=2)
    counts: str


class FoundDetection(BaseModel):
    """An object. Boxes are (x0, y0, x1, y1) in pixels and (y0, x0, y1, x1) of the picture's size;
    `valid` is false where the box is empty or swapped."""

    label: str | None
    score: float | None
    box_xyxy_px: list[float] = Field(min_length=4, max_length=4)
    box_yxyx: list[float] = Field(min_length=4, max_length=4)
    mask: Mask | None = None
    polygons: list[list[float]] | None = None
    valid: bool = True


class TokenFacts(BaseModel):
    """A token of the answer; the end token has no text."""

    id: int
    text: str
    logprob: float


class TextBody(BaseModel):
    """An answer in words. `prompt` is what was sent to the model, `score` the probability of
    exactly this text."""

    id: str
    model: str
    task: str
    prompt: str
    image: ImageFacts | None
    text: str
    score: float | None
    tokens: list[TokenFacts] | None = None
    usage: Usage
    finish_reason: Literal["stop", "length"]


class DetectionsBody(BaseModel):
    """Objects. `text` is all that the model wrote, `rest` what belongs to no object; numbers of
    classes follow `asked_labels`."""

    id: str
    model: str
    task: str
    prompt: str
    image: ImageFacts | None
    detections: list[FoundDetection]
    text: str
    rest: str
    asked_labels: list[str]
    overlay: str | None = Field(None, description="data:image/png;base64,…")
    tokens: list[TokenFacts] | None = None
    usage: Usage
    finish_reason: Literal["stop", "length"]


class ChatMessage(BaseModel):
    """What the model says."""

    role: Literal["assistant"]
    content: str
    refusal: None


class Likely(BaseModel):
    """A token that was likely here."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(Likely):
    """A token of the answer; the end token is the last and has no text."""

    top_logprobs: list[Likely]


class Logprobs(BaseModel):
    """Probabilities of all tokens of a choice."""

    content: list[TokenLogprob]
    refusal: None


class Choice(BaseModel):
    """One answer."""

    index: int
    message: ChatMessage
    finish_reason: Literal["stop", "length"]
    logprobs: Logprobs | None


class ChatFacts(BaseModel):
    """What was asked: the prompt, messages that were not read, the seed of the first draw."""

    prompt: str
    ignored: list[str]
    seed: int


class ChatBody(BaseModel):
    """The answers to a chat."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: None
    choices: list[Choice]
    usage: Usage
    paligemma: ChatFacts


class ModelBody(BaseModel):
    """A model, or an adapter under a name of its own; `paligemma` has what only this family has."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    paligemma: dict[str, Any]


class ModelList(BaseModel):
    """All models of this server."""

    object: Literal["list"]
    data: list[ModelBody]


class WordFacts(BaseModel):
    """A word of the query, and what it adds to the score of a page."""

    word: str
    score: float


class HeatFacts(BaseModel):
    """Pictures with transparency, a pixel a patch, to be stretched over the page; all of an answer
    have one scale. `any` is the hottest word of each patch, `words` are in the query's order."""

    any: str = Field(description="data:image/png;base64,…")
    words: list[str]


class HitBody(BaseModel):
    """A page. `page` counts from 1, `score` is the late-interaction score."""

    id: str
    score: float
    file: str
    page: int
    width: int
    height: int
    thumbnail: str | None = Field(description="data:image/…;base64,…")
    text: str = Field(description="The start of the page's own text, where its file has some.")
    words: list[WordFacts]
    heat: HeatFacts | None
    answer: str | None = Field(description="What a model read on the page, where it was asked.")


class SearchBody(BaseModel):
    """The best pages of an index, in order."""

    query: str
    index: str
    model: str
    num_pages: int
    hits: list[HitBody]


class IndexBody(BaseModel):
    """The index of this server."""

    index: str
    model: str
    dim: int
    num_pages: int
    writable: bool


class AddedBody(BaseModel):
    """Pages that were added now, and files or pages that could not be."""

    added: int
    num_pages: int
    faults: list[str]


class RemovedBody(BaseModel):
    """Pages that are left."""

    num_pages: int


class VectorsBody(BaseModel):
    """The vectors of one query or page, unit length, a row a token; as base64 they are float32 in
    little-endian rows."""

    object: Literal["embedding"]
    index: int
    embedding: list[list[float]] | str
    shape: list[int] = Field(min_length=2, max_length=2)


class EmbeddingsBody(BaseModel):
    """Vectors in the order of the inputs, queries before pages."""

    object: Literal["list"]
    model: str
    data: list[VectorsBody]
    usage: Usage
