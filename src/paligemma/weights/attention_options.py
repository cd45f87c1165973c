"""Soft-caps and window of attention that a user names, whatever the checkpoint says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

from paligemma.config import PaliGemmaConfig, require_attention_value


@dataclass(frozen=True, kw_only=True)
class AttentionOptions:
    """Caps and window by name; None follows the checkpoint and the conventions, 0 is off.

    Attributes:
        attn_softcap: cap of attention scores. The code of PaliGemma 2 has 50 in every stage; its
            paper says that the last stage has none.
        final_softcap: cap of the logits, see `TextConfig`.
        sliding_window: tokens that every other layer of the decoder sees.
    """

    attn_softcap: float | None = None
    final_softcap: float | None = None
    sliding_window: int | None = None

    def __post_init__(self) -> None:
        for name, value in self._named().items():
            if not isinstance(value, Real) or value != 0 or isinstance(value, bool):
                require_attention_value(name, value, off=", or 0 for off")

    def applied(self, config: PaliGemmaConfig) -> PaliGemmaConfig:
        """The config with what is named here."""
        named: dict[str, Any] = {name: value or None for name, value in self._named().items()}
        return replace(config, text=replace(config.text, **named)) if named else config

    def _named(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value is not None}
