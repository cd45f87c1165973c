"""Molecules: canonical spelling, stereochemistry by name, similarity."""

from __future__ import annotations

import builtins

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma.errors import DataError, MissingExtraError
from paligemma.metrics.molecules import (
    MAX_SMILES_LENGTH,
    atom_tokens,
    canonical_smiles,
    molecule_measures,
    tanimoto,
)

pytest.importorskip("rdkit")

MOLECULES = ["CCO", "c1ccccc1", "C[C@H](N)C(=O)O", "F/C=C/F", "[Na+].[Cl-]", "C1CC1", "[13CH4]"]


def values(measures: list) -> dict[str, float]:
    return {one.name: one.value for one in measures}


def test_tokens_are_atoms_brackets_bonds_and_ring_numbers() -> None:
    assert atom_tokens("BrC%12[nH] x\\Cl|") == ["Br", "C", "%12", "[nH]", "\\", "Cl"]
    assert atom_tokens("[]") == []


@pytest.mark.parametrize(
    ("smiles", "expected"),
    [
        ("OCC", ("CCO", True)),
        ("C C O", ("CCO", True)),  # unknown characters are dropped
        ("C[R12]", ("[12*]C", True)),
        ("[Me]C", ("*C", True)),
        ("C(", ("C(", False)),
        ("", ("", False)),
    ],
)
def test_a_molecule_has_one_spelling(smiles: str, expected: tuple[str, bool]) -> None:
    assert canonical_smiles(smiles) == expected


def test_stereochemistry_counts_by_name() -> None:
    found = values(
        molecule_measures(
            ["C[C@H](N)C(=O)O", "F/C=C/F", "OCC"], ["C[C@@H](N)C(=O)O", "F/C=C\\F", "CCO"]
        )
    )
    assert found["full_match"] == pytest.approx(2 / 3)
    assert found["full_match_cis_trans"] == pytest.approx(1 / 3)
    assert found["graph_match"] == 1.0
    assert found["tanimoto"] == 1.0


def test_similarity_needs_a_true_molecule_and_is_zero_without_ours() -> None:
    assert tanimoto("nonsense", "CCO") == 0.0
    assert tanimoto("CCO", "C(") is None
    assert 0 < tanimoto("CCCO", "CCO") < 1  # type: ignore[operator]
    assert (tanimoto("[Cl-].[Na+]", "[Na+].[Cl-]"), tanimoto("[K+]", "[Na+]")) == (1.0, 0.0)
    assert "tanimoto" not in values(molecule_measures(["C("], ["C("]))


def test_a_text_without_atoms_never_matches() -> None:
    assert canonical_smiles("x/") == ("", False)
    assert values(molecule_measures(["/", "", "x"], ["/", "", "y"]))["full_match"] == 0.0


def test_an_endless_answer_is_no_molecule() -> None:
    endless = "C" * (MAX_SMILES_LENGTH + 1)
    assert canonical_smiles(endless) == (endless, False)
    assert canonical_smiles("(" * MAX_SMILES_LENGTH)[1] is False


def test_an_answer_that_is_no_unicode_is_no_molecule() -> None:
    assert tanimoto("C\ud800", "CC") == 0.0


def test_without_rdkit_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def blocked(name: str, *rest: object) -> object:
        if name.startswith("rdkit"):
            raise ImportError(name)
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", blocked)
    with pytest.raises(MissingExtraError, match=r"paligemma\[molecules\]"):
        canonical_smiles("C")


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(DataError, match="one length"):
        molecule_measures(["C"], [])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(MOLECULES), st.sampled_from(MOLECULES)), min_size=1))
def test_scores_are_shares_perfect_on_the_truth_and_know_no_order(
    rows: list[tuple[str, str]],
) -> None:
    ours, truth = [list(side) for side in zip(*rows, strict=True)]
    assert set(values(molecule_measures(truth, truth)).values()) == {1.0}
    found = values(molecule_measures(ours, truth))
    assert all(0 <= one <= 1 for one in found.values())
    assert found["full_match_cis_trans"] <= found["full_match"] <= found["graph_match"]
    assert values(molecule_measures(ours[::-1], truth[::-1])) == pytest.approx(found)
