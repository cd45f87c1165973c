"""What a tokenizer.json may ask of the `tokenizers` package.

The package offers regular expressions and rewritings whose time and memory have no bound. Gemma's
file needs none of them: it replaces strings by strings that are no longer.
"""

from __future__ import annotations

from typing import Any

_ALLOWED = {
    "normalizer": {"Replace", "NFC"},
    "pre_tokenizer": {"Split", "Metaspace"},
    "decoder": {"Replace", "Metaspace", "ByteFallback", "Fuse", "Strip"},
}
_MAX_STEPS = 16
# The package walks through every id up to the largest; Gemma's are below 263,000.
_MAX_ID = 1 << 20


def vetted(content: Any) -> dict[str, Any]:
    """A parsed tokenizer.json whose steps take time and memory in proportion to their text.

    What only serves templates and chance (post_processor, dropout) is left out.

    Raises:
        ValueError: a step or a model that Gemma's tokenizer has not.
    """
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or model.get("type") not in ("BPE", None):
        raise ValueError("it must hold a model of type BPE, as Gemma's does")
    ids = model["vocab"].values() if isinstance(model.get("vocab"), dict) else ()
    if not all(type(token) is int and 0 <= token < _MAX_ID for token in ids):
        raise ValueError(f"the ids of its vocabulary must lie in 0..{_MAX_ID - 1}")
    for section, allowed in _ALLOWED.items():
        steps = _steps(content.get(section))
        if len(steps) > _MAX_STEPS or not all(_is_plain(step, allowed) for step in steps):
            raise ValueError(
                f"{section} may have {_MAX_STEPS} steps of {', '.join(sorted(allowed))} that "
                "replace strings by no longer ones"
            )
    return content | {
        "added_tokens": content.get("added_tokens") or [],
        "post_processor": None,
        "model": model | {"dropout": None},
    }


def _steps(step: Any) -> list[Any]:
    """A section's steps in order; those inside sequences too."""
    if step is None:
        return []
    if not isinstance(step, dict) or step.get("type") != "Sequence":
        return [step]
    inner = next((value for value in step.values() if isinstance(value, list)), [])
    return [one for part in inner for one in _steps(part)]


def _is_plain(step: Any, allowed: set[str]) -> bool:
    if not isinstance(step, dict) or step.get("type") not in allowed:
        return False
    pattern = step.get("pattern")
    if pattern is None:
        return True
    text = pattern.get("String") if isinstance(pattern, dict) and len(pattern) == 1 else None
    return isinstance(text, str) and 0 < len(text) >= len(str(step.get("content", "")))
