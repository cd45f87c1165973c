"""The prompts PaliGemma was trained on, and what is done to a prompt a user typed.

A prompt is the prefix alone: pictures and the newline after it are added as ids by the processor.
Sources: arXiv:2407.07726 section 3.2.5; big_vision configs/proj/paligemma/transfers.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass

from paligemma.errors import PromptError

MAX_PROMPT_CHARS = 10_000
CAPTION_STYLES = ("caption", "cap", "describe")

# What other tools put around a prompt, as text or as the pieces they decoded.
_LEADING_MARKERS = re.compile(r"(?:\s*<(?:image|bos|pad)>)+\s*")
_TRAILING_NEWLINE = re.compile(r"\r?\n\Z")
_CONTROL_PIECE = re.compile(r"<(?:image|bos|eos|pad|start_of_turn|end_of_turn)>")
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_OBJECT_PROMPT = re.compile(r"\s*(detect|segment)\s+(.*)", re.DOTALL)
_OBJECT_PROMPT_BEGINS = re.compile(r"\s*(?:detect|segment)\s+\S")
_TASK_TWICE = re.compile(r"(detect|segment)\s+(?=\1\s+\S)")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z]{2,8})?")
_LOCATION = re.compile(r"(?:<loc(?:0\d{3}|10[01]\d|102[0-3])>){4}")

# Languages of the translated sets of pre-training.
_LANGUAGES = (
    "ar|bn|cs|da|de|el|en|es|fa|fi|fil|fr|he|hi|hr|hu|id|it|ja|ko|mi|nl|no|pl|pt|ro|ru|sv|sw|te|th"
    "|tr|uk|vi|zh"
)
_OWN_PROMPT = re.compile(
    rf"(?:caption|cap|describe) (?:{_LANGUAGES})|caption {_LOCATION.pattern}|ocr"
    rf"|(?:answer|question) (?:{_LANGUAGES}) .+|(?:detect|segment)\b.*",
    re.DOTALL,
)


def strip_markers(text: str) -> tuple[str, tuple[str, ...]]:
    """Removes what other tools ask for around a prompt: leading `<image>`, `<bos>` and `<pad>`,
    trailing `<eos>`, and one trailing newline.

    Returns:
        The text and one sentence for each thing removed or worth knowing.
    """
    notices = []
    if leading := _LEADING_MARKERS.match(text):
        text = text[leading.end() :]
        if "<image>" in leading[0]:
            notices.append(
                "a leading <image> was removed: pictures are passed as images, not as text"
            )
        for marker in ("<bos>", "<pad>"):
            if marker in leading[0]:
                notices.append(f"a leading {marker} was removed: it is added by itself")
    text, of_end = strip_eos(text)
    notices += of_end
    if newline := _TRAILING_NEWLINE.search(text):
        text = text[: newline.start()]
        notices.append("a trailing newline was removed: the separator is added by itself")
    for marker in dict.fromkeys(_CONTROL_PIECE.findall(text)):
        notices.append(f"{marker} inside the prompt is read as plain text")
    return text, tuple(notices)


def strip_eos(text: str) -> tuple[str, tuple[str, ...]]:
    """Removes `<eos>` at the end of a prompt or an answer to learn; returns as `strip_markers`."""
    kept = text.rstrip()
    if not kept.endswith("<eos>"):
        return text, ()
    while kept.endswith("<eos>"):
        kept = kept.removesuffix("<eos>").rstrip()
    return kept, ("a trailing <eos> was removed: it belongs to no prompt, and answers get it",)


def require_bounded(what: str, text: str) -> None:
    """Raises PromptError if a text is none, or has more than 10,000 characters."""
    if not isinstance(text, str):
        raise PromptError(f"a {what} must be a text, got {reprlib.repr(text)}")
    if len(text) > MAX_PROMPT_CHARS:
        raise PromptError(
            f"a {what} may have {MAX_PROMPT_CHARS} characters, got {len(text)}; shorten it"
        )


def clean_prompt(text: str) -> tuple[str, tuple[str, ...]]:
    """Checks a typed prompt and removes what does not belong to it.

    Returns:
        The prefix to tokenise and the notices of `strip_markers`.

    Raises:
        PromptError: empty, longer than 10,000 characters, or holding a control character.
    """
    require_bounded("prompt", text)
    if found := _FORBIDDEN.search(text):
        raise PromptError(
            f"a prompt must be plain text, got the control character U+{ord(found[0]):04X} at "
            f"position {found.start()}; remove it"
        )
    text, notices = strip_markers(text)
    if not text.strip():
        raise PromptError("a prompt must hold some text, got an empty one; try 'caption en'")
    return text, notices


def caption_prompt(lang: str = "en", style: str = "caption") -> str:
    """`caption en`; the released models also know `cap` (short, raw) and `describe` (longer)."""
    if not isinstance(style, str) or style not in CAPTION_STYLES:
        raise PromptError(
            f"the caption style must be one of {', '.join(CAPTION_STYLES)}, got {style!r:.100}"
        )
    return f"{style} {_language(lang)}"


def region_caption_prompt(location: str) -> str:
    """`caption <loc><loc><loc><loc>`: a caption of one box (y1, x1, y2, x2 as location tokens)."""
    if not _LOCATION.fullmatch(location):
        raise PromptError(
            f"a region must be four location tokens such as <loc0000>, got {location[:80]!r}; "
            "format the box first"
        )
    return f"caption {location}"


def answer_prompt(question: str, lang: str = "en") -> str:
    """`answer en {question}`."""
    markers, question = _markers(question)
    return f"{markers}answer {_language(lang)} {_one_line('question', question)}"


def question_prompt(answer: str, lang: str = "en") -> str:
    """`question en {answer}`: asks for a question that has this answer."""
    markers, answer = _markers(answer)
    return f"{markers}question {_language(lang)} {_one_line('answer', answer)}"


def read_prompt() -> str:
    """`ocr`: all text in the picture, in raster order."""
    return "ocr"


def detect_prompt(labels: str | Sequence[str]) -> str:
    """`detect a ; b`; labels are a sequence, or one string with ";" between them."""
    return _object_prompt("detect", labels)


def segment_prompt(labels: str | Sequence[str]) -> str:
    """`segment a ; b`; labels are a sequence, or one string with ";" between them."""
    return _object_prompt("segment", labels)


@dataclass(frozen=True, kw_only=True)
class ObjectPrompt:
    """A prompt that asks for objects.

    Attributes:
        task: "detect" or "segment".
        labels: labels in the order of the prompt, each once; () where it names none.
    """

    task: str
    labels: tuple[str, ...]


def object_prompt(prefix: str) -> ObjectPrompt | None:
    """What a prefix asks to find; None where it is no `detect ...` and no `segment ...`."""
    asked = _OBJECT_PROMPT.fullmatch(prefix)
    if asked is None:
        return None
    labels = (label.strip() for label in asked[2].split(";"))
    return ObjectPrompt(task=asked[1], labels=tuple(dict.fromkeys(filter(None, labels))))


def names_task(prefix: str) -> bool:
    """Whether a prefix is a prompt of pre-training, and no question in a person's own words."""
    return _OWN_PROMPT.fullmatch(prefix.strip()) is not None


def single_prompts(prefix: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The prompts of one text that asks for objects several times, as `detect a ; detect b` does.

    Returns:
        The prompts, each to be asked by itself, and a sentence where they are not the text itself.
    """
    if object_prompt(prefix) is None:
        return (prefix,), ()
    text = prefix.strip()
    each: list[str] = []
    for piece in re.split(r"[;\n]", text):
        if not each or _OBJECT_PROMPT_BEGINS.match(piece):
            each.append(piece)
        else:
            each[-1] += f";{piece}"
    each = [_once(one.strip()) for one in (each if len(each) > 1 else [text])]
    if each == [text]:
        return (prefix,), ()
    return tuple(each), ("the prompt says more than once what to do; each is asked by itself",)


def _once(prompt: str) -> str:
    """The prompt without the first of two equal words of a task."""
    twice = _TASK_TWICE.match(prompt)
    return prompt[twice.end() :] if twice else prompt


def _object_prompt(task: str, labels: str | Sequence[str]) -> str:
    if isinstance(labels, str):
        labels = labels.split(";")
    if not isinstance(labels, Sequence):
        raise PromptError(f"labels must be a text or a list, got {reprlib.repr(labels)}")
    if not labels:
        raise PromptError("at least one label is needed, got none; say what to look for")
    markers, first = _markers(labels[0])
    cleaned = [_one_line("label", label) for label in (first, *labels[1:])]
    for label in cleaned:
        if ";" in label:
            raise PromptError(
                f"a label must not hold ';', which separates labels, got {label!r}; "
                "pass them as separate labels"
            )
    return f"{markers}{task} {' ; '.join(cleaned)}"


def _markers(text: str) -> tuple[str, str]:
    """Leading markers, which go in front of the prompt for `clean_prompt` to report; the rest."""
    leading = _LEADING_MARKERS.match(text) if isinstance(text, str) else None
    return (leading[0], text[leading.end() :]) if leading else ("", text)


def _one_line(what: str, text: str) -> str:
    require_bounded(what, text)
    text = text.strip()
    if not strip_eos(text)[0]:
        raise PromptError(f"the {what} must hold some text, got {text or 'an empty one'}")
    if "\n" in text and what == "label":
        raise PromptError(f"a label must be one line, got {text!r}; remove the newline")
    return text


def _language(lang: str) -> str:
    if not isinstance(lang, str) or not _LANGUAGE.fullmatch(lang):
        raise PromptError(
            f"the language must be a code such as en, de or zh, got {lang!r:.100}; "
            "see docs/prompts.md"
        )
    return lang
