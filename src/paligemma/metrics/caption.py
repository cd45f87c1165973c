"""CIDEr-D, BLEU and ROUGE-L of captions, as the scorer of COCO captions computes them."""

from collections.abc import Sequence

import numpy as np

from paligemma.errors import DataError
from paligemma.metrics.measure import Measure, mean_measure
from paligemma.metrics.ngrams import MAX_ORDER, NGrams, count_ngrams
from paligemma.metrics.pairs import require_same_length
from paligemma.metrics.ptb import MAX_CAPTION_CHARACTERS, ptb_tokenize_batch

SIGMA = 6.0
CIDER_SCALE = 10.0
BETA = 1.2
# Keep BLEU finite where nothing matches: an order without a match gives about 1e-4.
_TINY, _SMALL = 1e-15, 1e-9


def caption_measures(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    bleu: bool = False,
    rouge: bool = False,
    tokenize: bool = True,
) -> list[Measure]:
    """Compute figures of captions, one prediction and at least one reference an image.

    Args:
        predictions: one caption an image; "" scores 0, and only the first 20,000 characters count.
        tokenize: tokenise by `ptb_tokenize`; False for texts that are tokens separated by spaces.

    Returns:
        "cider", then "bleu_4", "bleu_1", "bleu_2", "bleu_3", then "rouge_l". CIDEr lies between 0
        and 10 and tables print it times 100, the rest between 0 and 1.

    Source: CIDEr-D in Vedantam et al. 2015, section 4; BLEU in Papineni et al. 2002, section 2;
    ROUGE-L in Lin 2004, section 3; the details as in pycocoevalcap 1.2.
    """
    _require(predictions, references)
    num_references = np.array([len(of_image) for of_image in references])
    said, wanted = list(predictions), [one for of_image in references for one in of_image]
    if tokenize:
        # An endless answer must not fail the others; the cut lies far beyond any score.
        said = ptb_tokenize_batch([one and one[:MAX_CAPTION_CHARACTERS] for one in said])
        wanted = ptb_tokenize_batch(wanted)
    image_of_reference = np.repeat(np.arange(len(said)), num_references)
    image = np.concatenate([np.arange(len(said)), image_of_reference])
    ngrams = count_ngrams([*said, *wanted])
    is_reference = np.arange(len(image)) >= len(said)
    # A resample keeps the document frequencies of all images.
    measures = [mean_measure("cider", cider_d(ngrams, image, is_reference))]
    if bleu:
        measures += _bleu(ngrams, image, is_reference)
    if rouge:
        measures.append(_rouge_l(said, wanted, image_of_reference))
    return measures


def _require(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    require_same_length("scores of captions", predictions=predictions, references=references)
    for place, of_image in enumerate(references):
        if isinstance(of_image, str) or not all(isinstance(one, str) for one in of_image):
            raise DataError(f"the references of image {place} are a list of strings")
        if not of_image:
            raise DataError(f"image {place} has no reference; leave it out, or add one")


# CIDEr-D


def cider_d(ngrams: list[NGrams], image: np.ndarray, is_reference: np.ndarray) -> np.ndarray:
    """Compute CIDEr-D of each image against all others: float64[N] in [0, 10].

    Args:
        image: int[T], image of each text, 0 to N - 1; every image has one candidate.
        is_reference: bool[T], whether a text is a reference.
    """
    num = int(image.max()) + 1
    references = np.flatnonzero(is_reference)
    # Texts of an image, so that a reference finds its candidate.
    candidate_of = np.empty(num, np.intp)
    candidate_of[image[~is_reference]] = np.flatnonzero(~is_reference)
    candidates = candidate_of[image[references]]
    lengths = ngrams[1].totals
    penalty = np.exp(-((lengths[candidates] - lengths[references]) ** 2.0) / (2 * SIGMA**2))
    similarity = np.zeros(len(references))
    for order in ngrams:
        similarity += order_similarity(order, image, is_reference, candidate_of)
    similarity *= penalty / len(ngrams)
    of_image = image[references]
    sums = np.bincount(of_image, similarity, minlength=num)
    return CIDER_SCALE * sums / np.bincount(of_image, minlength=num)


def order_similarity(
    order: NGrams, image: np.ndarray, is_reference: np.ndarray, candidate_of: np.ndarray
) -> np.ndarray:
    """Compute the clipped cosine of each reference with its candidate: float64[references]."""
    num_texts = len(image)
    in_reference = is_reference[order.text]
    weights = order.count * _idf(order, image, in_reference, len(candidate_of))[order.kind]
    norms = np.sqrt(np.bincount(order.text, weights**2, minlength=num_texts))

    wanted = np.flatnonzero(in_reference)
    candidate = candidate_of[image[order.text[wanted]]]
    found = order.find(candidate, order.kind[wanted])
    ours = np.where(found >= 0, weights[found], 0.0)
    theirs = weights[wanted]
    products = np.bincount(
        order.text[wanted], np.minimum(ours, theirs) * theirs, minlength=num_texts
    )
    references = np.flatnonzero(is_reference)
    below = norms[references] * norms[candidate_of[image[references]]]
    return np.divide(products[references], below, out=np.zeros(len(references)), where=below > 0)


def _idf(order: NGrams, image: np.ndarray, in_reference: np.ndarray, num: int) -> np.ndarray:
    """Compute ln N - ln(images whose references hold an n-gram); an absent n-gram counts 1."""
    # Sorting is faster here than np.unique, which hashes.
    pairs = np.sort(image[order.text[in_reference]] * order.num_kinds + order.kind[in_reference])
    pairs = pairs[np.diff(pairs, prepend=-1) > 0]
    frequency = np.bincount(pairs % order.num_kinds, minlength=order.num_kinds)
    return np.log(float(num)) - np.log(np.maximum(frequency, 1))


# BLEU


def _bleu(ngrams: list[NGrams], image: np.ndarray, is_reference: np.ndarray) -> list[Measure]:
    num = int(image.max()) + 1
    guessed = np.zeros((num, MAX_ORDER))
    correct = np.zeros((num, MAX_ORDER))
    for n, order in enumerate(ngrams):
        guessed[image[~is_reference], n] = order.totals[~is_reference]
        correct[:, n] = _clipped_matches(order, image, is_reference, num)
    reference = _closest(guessed[:, 0], ngrams[0].totals[is_reference], image[is_reference])
    counts = np.column_stack([correct, guessed, reference])
    measures = [_bleu_measure(order, counts) for order in range(1, MAX_ORDER + 1)]
    return [measures[-1], *measures[:-1]]


def _clipped_matches(
    order: NGrams, image: np.ndarray, is_reference: np.ndarray, num: int
) -> np.ndarray:
    """Count n-grams of each candidate, at most as often as some reference has them."""
    key = image[order.text] * order.num_kinds + order.kind
    in_reference = is_reference[order.text]
    keys, place = np.unique(key, return_inverse=True)
    most, said = np.zeros(len(keys), np.int64), np.zeros(len(keys), np.int64)
    np.maximum.at(most, place[in_reference], order.count[in_reference])
    said[place[~in_reference]] = order.count[~in_reference]
    return np.bincount(keys // order.num_kinds, np.minimum(most, said), minlength=num)


def _closest(length: np.ndarray, reference_lengths: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Find the reference length nearest to each candidate, the shorter of two equally near."""
    distance = np.abs(reference_lengths - length[image])
    by_image = np.lexsort((reference_lengths, distance, image))
    _, first = np.unique(image[by_image], return_index=True)
    return reference_lengths[by_image[first]]


def _bleu_measure(order: int, counts: np.ndarray) -> Measure:
    return Measure(
        name=f"bleu_{order}",
        statistic=lambda weights: float(_bleu_value(weights @ counts, order)),
        num=len(counts),
        num_used=len(counts),
        per_example=_bleu_value(counts, order),
    )


def _bleu_value(counts: np.ndarray, order: int) -> np.ndarray:
    """Compute float64[...] from float64[..., 9]: matches, n-grams, and the reference's length."""
    correct, guessed, reference = np.split(counts, [MAX_ORDER, 2 * MAX_ORDER], axis=-1)
    precisions = (correct[..., :order] + _TINY) / (guessed[..., :order] + _SMALL)
    ratio = (guessed[..., 0] + _TINY) / (reference[..., 0] + _SMALL)
    with np.errstate(over="ignore"):
        brevity = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    return precisions.prod(axis=-1) ** (1 / order) * brevity


# ROUGE-L


def _rouge_l(said: list[str], wanted: list[str], image: np.ndarray) -> Measure:
    # The scorer splits at single spaces, so that nothing is one empty token.
    candidates = [one.split(" ") for one in said]
    precision, recall = np.zeros(len(said)), np.zeros(len(said))
    for place, text in zip(image.tolist(), wanted, strict=True):
        tokens = text.split(" ")
        common = longest_common_subsequence(candidates[place], tokens)
        precision[place] = max(precision[place], common / len(candidates[place]))
        recall[place] = max(recall[place], common / len(tokens))
    below = recall + BETA**2 * precision
    values = np.divide(
        (1 + BETA**2) * precision * recall, below, out=np.zeros(len(said)), where=below > 0
    )
    return mean_measure("rouge_l", values)


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Compute its length, a row of the table at a time as the bits of one integer.

    Source: Hyyrö, Bit-parallel LCS-length computation revisited, 2004, figure 1.
    """
    places: dict[str, int] = {}
    for place, token in enumerate(first):
        places[token] = places.get(token, 0) | 1 << place
    all_ones = (1 << len(first)) - 1
    row = all_ones
    for token in second:
        matches = row & places.get(token, 0)
        row = ((row + matches) | (row - matches)) & all_ones
    return len(first) - row.bit_count()
