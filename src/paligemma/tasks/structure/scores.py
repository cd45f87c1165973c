"""Scorers of words, tables, molecules and music."""

from collections.abc import Sequence
from dataclasses import replace

from paligemma.errors import DataError
from paligemma.example import Example, Prediction
from paligemma.metrics.measure import Measure
from paligemma.tasks.scoring import texts_of
from paligemma.tasks.structure.tables import strip_coords
from paligemma.tasks.structure.words import WordFormat, answered_words, box_vertices

# Figures against upright boxes around the true words carry this ending.
UPRIGHT = "/upright"
CER_WITHOUT_SPACES = "cer_without_spaces"


def score_words(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measure]:
    """Compute word spotting by the HierText protocol, against outlines and upright boxes."""
    from paligemma.metrics.spotting import spotting_measures

    found, truth = [], []
    for example, prediction in zip(examples, predictions, strict=True):
        asked = example.references
        words = answered_words(prediction, WordFormat(**asked["style"]))
        found.append(
            [{"vertices": box_vertices(box, asked["size_hw"]), "text": word} for word, box in words]
        )
        truth.append(asked["words"])
    upright = spotting_measures(found, truth, axis_aligned=True)
    return [
        *spotting_measures(found, truth),
        *(replace(one, name=f"{one.name}{UPRIGHT}") for one in upright),
    ]


def score_tables(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measure]:
    """Compute TEDS, S-TEDS, GriTS-Top and GriTS-Con without the places of cells."""
    from paligemma.metrics.grits import grits_measures
    from paligemma.metrics.teds import teds_measures, wrap_table

    found = [_bare_table(strip_coords(one.text)) for one in predictions]
    truth = [one.references["html"] for one in examples]
    by_name = {
        one.name: one
        for one in (
            *teds_measures([wrap_table(one) for one in found], [wrap_table(one) for one in truth]),
            *grits_measures(found, [_well_formed(one) for one in truth]),
        )
    }
    headline = by_name.pop("teds")
    return [headline, *by_name.values()]


def _bare_table(markup: str) -> str:
    """Take a table out of the document around it, where a model writes one."""
    start, end = markup.find("<table"), markup.rfind("</table>")
    if "<body" not in markup or start < 0:
        return markup
    return markup[start : end + len("</table>")] if end >= 0 else markup[start:]


def _well_formed(markup: str) -> str:
    """Repair a true table to XML; a few have inline tags that are never closed."""
    from paligemma.metrics.grits import read_cells

    if read_cells(markup) is not None:
        return markup
    from lxml import etree, html

    repaired = etree.tostring(html.fragment_fromstring(markup), encoding="unicode")
    if read_cells(repaired) is None:
        raise DataError(f"a true table must be readable as XML, got {markup[:80]!r}")
    return str(repaired)


def score_molecules(
    examples: Sequence[Example], predictions: Sequence[Prediction]
) -> list[Measure]:
    """Compute the full match of canonical SMILES."""
    from paligemma.metrics.molecules import molecule_measures

    return molecule_measures(texts_of(predictions), [one.references for one in examples])


def score_music(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Measure]:
    """Compute error rates of characters (with and without spaces), symbols and lines."""
    from paligemma.metrics.music import omr_measures, prepare_kern

    truth = [one.references["kern"] for one in examples]
    found = [
        prepare_kern(one.text) if example.references["clean"] else one.text
        for example, one in zip(examples, predictions, strict=True)
    ]
    of_then = [
        replace(one, name=CER_WITHOUT_SPACES)
        for one in omr_measures(found, truth, cer="publication_era")
        if one.name == "cer"
    ]
    return [*of_then, *omr_measures(found, truth)]
