"""Scores of molecules written as SMILES: exact match after canonicalisation, Tanimoto similarity.

Source: thomas0809/MolScribe evaluate.py (SmilesEvaluator); the atom tokens are those of SmilesPE's
atomwise_tokenizer.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from paligemma.metrics.extras import missing_extra
from paligemma.metrics.measure import Measure, mean_measure
from paligemma.metrics.pairs import require_same_length

# RDKit's time grows with the square of the length; longer texts count as unreadable.
MAX_SMILES_LENGTH = 2000

_ATOM_TOKEN = re.compile(r"\[[^\]]+\]|Br?|Cl?|[NOSPFIbcnosp]|[().=#+\-\\/:~@?>*$]|%[0-9]{2}|[0-9]")
_R_GROUP = re.compile(r"\[R(\d+)\]")


def atom_tokens(smiles: str) -> list[str]:
    """Split into atoms, brackets, bonds and ring numbers; drop other characters."""
    return _ATOM_TOKEN.findall(smiles)


def canonical_smiles(
    smiles: str, *, keep_cis_trans: bool = False, keep_chirality: bool = True
) -> tuple[str, bool]:
    """Compute the canonical spelling that the full match compares.

    `[R1]` becomes a numbered dummy atom, any other bracket that RDKit cannot read a plain one.

    Args:
        keep_cis_trans: keep the marks of double bonds.
        keep_chirality: keep stereocentres and isotopes.

    Returns:
        The spelling, or the cleaned text where it is no molecule; and whether it is one.

    Raises:
        MissingExtraError: RDKit is not installed.
    """
    chem, quiet = _rdkit()
    if not keep_cis_trans:
        smiles = smiles.replace("/", "").replace("\\", "")
    if not smiles or len(smiles) > MAX_SMILES_LENGTH:
        return smiles, False
    with quiet():
        text = "".join(_dummy_atom(token, chem) for token in atom_tokens(smiles))
        molecule = chem.MolFromSmiles(text) if text else None
        if molecule is None:
            return text, False
        try:
            return chem.MolToSmiles(molecule, isomericSmiles=keep_chirality), True
        except RuntimeError:  # an invariant of RDKit's, on molecules that are none
            return text, False


def tanimoto(prediction: str, reference: str) -> float | None:
    """Compute the similarity of RDKit's topological fingerprints.

    Returns:
        In [0, 1], 0 where the prediction is no molecule; None where the reference is none.
    """
    chem, quiet = _rdkit()
    from rdkit.DataStructs import FingerprintSimilarity

    def molecule(smiles: str) -> Any:
        usable = smiles and len(smiles) <= MAX_SMILES_LENGTH
        # RDKit takes UTF-8; half a surrogate pair is none, and "?" is no atom.
        return chem.MolFromSmiles(smiles.encode(errors="replace").decode()) if usable else None

    with quiet():
        truth, ours = molecule(reference), molecule(prediction)
        if truth is None:
            return None
        if ours is None:
            return 0.0
        marks = [chem.RDKFingerprint(one) for one in (truth, ours)]
        if not any(one.GetNumOnBits() for one in marks):
            # Without bonds there is nothing to count; only the same atoms are alike.
            return float(chem.MolToSmiles(truth) == chem.MolToSmiles(ours))
        return float(FingerprintSimilarity(*marks))


def molecule_measures(predictions: Sequence[str], references: Sequence[str]) -> list[Measure]:
    """Compute the share of molecules that are right.

    Where a text is no molecule the texts themselves are compared; a prediction without atoms is
    never right.

    Returns:
        "full_match" (chirality counts, cis and trans do not: PaliGemma 2's figure),
        "full_match_cis_trans", "graph_match" (chirality and isotopes do not count), "valid", the
        share of predictions that are molecules, and "tanimoto" over references that are molecules,
        left out where none is.
    """
    require_same_length("molecule match", predictions=predictions, references=references)
    pairs = list(zip(predictions, references, strict=True))

    def matches(*, keep_cis_trans: bool, keep_chirality: bool) -> np.ndarray:
        options = {"keep_cis_trans": keep_cis_trans, "keep_chirality": keep_chirality}
        spelt = [[canonical_smiles(one, **options)[0] for one in pair] for pair in pairs]
        # What holds no atom, such as "/", is as empty as "".
        return np.array([ours == truth != "" for ours, truth in spelt])

    is_valid = np.array([canonical_smiles(one)[1] for one in predictions])
    similarity = np.array([tanimoto(*pair) for pair in pairs], np.float64)
    full = matches(keep_cis_trans=False, keep_chirality=True)
    measures = [
        mean_measure("full_match", full),
        mean_measure("full_match_cis_trans", matches(keep_cis_trans=True, keep_chirality=True)),
        mean_measure("graph_match", matches(keep_cis_trans=False, keep_chirality=False)),
        mean_measure("valid", is_valid),
    ]
    is_readable = np.isfinite(similarity)
    if is_readable.any():
        measures.append(mean_measure("tanimoto", similarity, is_readable))
    return measures


def _dummy_atom(token: str, chem: Any) -> str:
    if not token.startswith("["):
        return token
    if r_group := _R_GROUP.fullmatch(token):
        return f"[{r_group.group(1)}*]"
    return token if chem.AtomFromSmiles(token) is not None else "*"


def _rdkit() -> tuple[Any, Any]:
    """Import RDKit's chemistry and the context that silences its complaints."""
    try:
        from rdkit import Chem, rdBase
    except ImportError as error:
        raise missing_extra("rdkit", "molecules", "scoring molecules") from error
    return Chem, rdBase.BlockLogs
