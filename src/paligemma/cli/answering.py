"""One question about one picture, asked with the options of the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from paligemma.outputs.detections import Detections
    from paligemma.outputs.types import TextAnswer
    from paligemma.pipeline.following import OnToken
    from paligemma.pipeline.paligemma import PaliGemma
    from paligemma.pipeline.pictures import EncodedImage


class Asker:
    """Asks whatever a prompt says.

    Args:
        decoding, objects: values of the options of these names.
        tiles: keywords of `PaliGemma.ask_tiled`, where pictures are cut.

    Raises:
        PaliGemmaError: the calibration cannot be read.
    """

    def __init__(
        self,
        decoding: dict[str, Any],
        objects: dict[str, Any],
        tiles: dict[str, Any] | None = None,
    ) -> None:
        self._tiles = tiles
        self.rules = {name: objects[name] for name in ("constrain", "max_objects", "no_repeats")}
        self.threshold = objects["threshold"]
        self._keywords = {"max_overlap": objects["max_overlap"], **self.rules, **decoding}
        self._calibration = None
        if objects["calibration"] is None:
            self._keywords["threshold"] = self.threshold
        else:
            from paligemma.outputs.calibration import load_calibration

            self._calibration = load_calibration(objects["calibration"])

    def ask(
        self, pg: PaliGemma, picture: EncodedImage, prompt: str, on_token: OnToken | None = None
    ) -> TextAnswer | Detections:
        """The answer; see `PaliGemma.ask` and `follow`."""
        from paligemma.outputs.types import TextAnswer
        from paligemma.pipeline.following import follow

        found: TextAnswer | Detections
        if self._tiles is not None:
            found = pg.ask_tiled(picture, prompt, **self._tiles, **self._keywords)
        elif on_token is None:
            found = pg.ask(picture, prompt, **self._keywords)
        else:
            found = follow(pg, picture, prompt, on_token, **self._keywords)
        if self._calibration is None:
            return found
        found = self._calibration.apply(found)
        if self.threshold is None or isinstance(found, TextAnswer):
            return found
        # The threshold applies to the confidences that are shown.
        return found.above(self.threshold)


def check_prompt(prompt: str) -> None:
    """Check a typed prompt, and warn where it names nothing to look for.

    Raises:
        PromptError: see `clean_prompt`.
    """
    from paligemma.processing.prompts import clean_prompt, object_prompt

    # The blank makes a prompt of the first word alone an object prompt without labels.
    asked = object_prompt(clean_prompt(prompt)[0] + " ")
    if asked and not asked.labels:
        click.echo(
            f"paligemma: the prompt names nothing to {asked.task}; write '{asked.task} cat ; dog'",
            err=True,
        )
