"""Objaverse: one answer an object, pooled from many and compared by sentence embeddings.

Source: arXiv:2311.17851, where answers are pooled over views and questions by likelihood; the exact
weighting is not published, so it is an option here.
"""

import logging
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from paligemma.errors import DataError
from paligemma.example import Example, Prediction
from paligemma.metrics.embedding import cosine_similarity, pooled_answer
from paligemma.metrics.measure import Measure, mean_measure

logger = logging.getLogger(__name__)

# A hundred thousand texts in 512 dimensions of float64, and the texts.
MAX_EMBEDDING_BYTES = 1 << 30
# Weight of an answer among those of its object: the sum of the probabilities with which it was
# given, the largest of them, or how often it was given.
WEIGHTINGS = ("sum_probability", "max_probability", "votes")


def pool_answers(
    examples: Sequence[Example],
    predictions: Sequence[Prediction],
    *,
    weighting: str = WEIGHTINGS[0],
) -> dict[str, str]:
    """Choose the answer of the largest weight for each object, of equal ones the first given.

    Args:
        predictions: their predictions, in the same order; those without an answer are left out.
        weighting: one of WEIGHTINGS.

    Returns:
        Object -> answer; nothing for an object that has no answer at all.

    Raises:
        DataError: unknown weighting, or an answer without a likelihood where it is needed.
    """
    if weighting not in WEIGHTINGS:
        raise DataError(f"the weighting must be one of {', '.join(WEIGHTINGS)}, got {weighting!r}")
    answers: dict[str, list[Prediction]] = {}
    for asked, said in zip(examples, predictions, strict=True):
        if said.error is None:
            answers.setdefault(asked.unit or asked.id, []).append(said)
    return {unit: _pooled(said, weighting) for unit, said in answers.items()}


def texts_to_embed(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[str]:
    """List the texts that the embeddings file must hold, sorted: categories and pooled answers."""
    texts = {one.references["category"] for one in examples}
    for weighting in _possible(predictions):
        texts.update(pool_answers(examples, predictions, weighting=weighting).values())
    return sorted(texts)


def read_embeddings(path: Path) -> dict[str, np.ndarray]:
    """Read sentence embeddings from an .npz file with `texts` str[N] and `vectors` float[N, D].

    Raises:
        DataError: no such file, another layout, or a number that is not finite.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # np.load would take a lone array too
            num_bytes = sum(one.file_size for one in archive.infolist())
        if num_bytes > MAX_EMBEDDING_BYTES:
            raise ValueError(f"it may unfold to {MAX_EMBEDDING_BYTES} bytes, not {num_bytes}")
        with np.load(path, allow_pickle=False) as arrays:
            texts, vectors = arrays["texts"], arrays["vectors"]
    except (
        *(OSError, KeyError, ValueError, EOFError, MemoryError),
        *(zipfile.BadZipFile, zlib.error),
    ) as error:
        raise DataError(
            f"{path} must be an .npz file with texts and vectors ({str(error)[:200]}); embed the "
            "texts of texts_to_embed with Universal Sentence Encoder v4"
        ) from error
    if texts.ndim != 1 or texts.dtype.kind != "U" or vectors.shape[:1] != texts.shape:
        raise DataError(
            f"{path} must hold texts str[N] and vectors float[N, D], got {texts.dtype}"
            f"{list(texts.shape)} and {vectors.dtype}{list(vectors.shape)}"
        )
    if vectors.ndim != 2 or vectors.dtype.kind != "f" or not np.isfinite(vectors).all():
        raise DataError(f"{path}: vectors must be finite float[N, D], got {vectors.dtype}")
    return dict(zip(texts.tolist(), vectors.astype(np.float64), strict=True))


def objaverse_measure(
    name: str,
    examples: Sequence[Example],
    predictions: Sequence[Prediction],
    embeddings: Mapping[str, np.ndarray],
    *,
    weighting: str = WEIGHTINGS[0],
) -> Measure:
    """Compute the mean cosine of pooled answer and category; an object without answer counts 0.

    Raises:
        DataError: a text that is not embedded, or a vector of zeros.
    """
    pooled = pool_answers(examples, predictions, weighting=weighting)
    firsts: dict[str, int] = {}
    for index, one in enumerate(examples):
        firsts.setdefault(one.unit or one.id, index)
    values, is_first = np.zeros(len(examples)), np.zeros(len(examples), bool)
    is_first[list(firsts.values())] = True
    if answered := [firsts[unit] for unit in pooled]:
        values[answered] = cosine_similarity(
            [embeddings[answer] for answer in pooled.values()],
            [embeddings[examples[index].references["category"]] for index in answered],
        )
    if unanswered := len(firsts) - len(pooled):
        logger.warning("%s: %d objects have no answer and count 0", name, unanswered)
    return mean_measure(name, values, is_first)


def score_objaverse(
    examples: Sequence[Example], predictions: Sequence[Prediction]
) -> list[Measure]:
    """Compute "cosine" by the sum of probabilities, then "cosine/WEIGHTING" of the others.

    Without likelihoods only "cosine/votes" can be computed, and comes first.

    Raises:
        DataError: no embeddings file beside the data, or a text that it lacks.
    """
    if not examples:
        raise DataError("objaverse is undefined without examples; pass at least one")
    embeddings = read_embeddings(Path(examples[0].references["embeddings"]))
    missing = [one for one in texts_to_embed(examples, predictions) if one not in embeddings]
    if missing:
        raise DataError(
            f"{examples[0].references['embeddings']} lacks {len(missing)} texts, such as "
            f"{missing[:3]}; embed all texts of texts_to_embed"
        )
    return [
        objaverse_measure(
            "cosine" if weighting == WEIGHTINGS[0] else f"cosine/{weighting}",
            examples,
            predictions,
            embeddings,
            weighting=weighting,
        )
        for weighting in _possible(predictions)
    ]


def _pooled(said: Sequence[Prediction], weighting: str) -> str:
    texts = [one.text for one in said]
    if weighting == "votes":
        return Counter(texts).most_common(1)[0][0]  # of equally many, the one given first
    logprobs = []
    for one in said:
        if one.logprob is None:
            raise DataError(
                f"pooling by probability needs a logprob, {one.id} has none; use 'votes'"
            )
        logprobs.append(one.logprob)
    if weighting == "sum_probability":
        return pooled_answer(texts, logprobs)[0]
    return texts[int(np.argmax(logprobs))]


def _possible(predictions: Sequence[Prediction]) -> tuple[str, ...]:
    has_all = all(one.logprob is not None for one in predictions if one.error is None)
    return WEIGHTINGS if has_all else ("votes",)
