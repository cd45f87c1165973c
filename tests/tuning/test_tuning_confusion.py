"""What was taken for what, on the page of a fine-tuning."""

from __future__ import annotations

from fake_runs import boxes, found

from paligemma.tuning.confusion import NOTHING, confusion

LEFT, WHOLE = (0.0, 0.0, 1.0, 0.5), (0.0, 0.0, 1.0, 1.0)


def test_objects_are_counted_by_the_label_of_the_box_that_covers_them() -> None:
    table = confusion(boxes([[("cat", LEFT)], [("dog", WHOLE)]], [[found("dog", LEFT, 0.9)], []]))
    assert table is not None
    assert table.what == "objects"
    assert table.counts == {("cat", "dog"): 1, ("dog", NOTHING): 1}


def test_objects_of_which_none_is_found_are_missed_by_their_labels() -> None:
    table = confusion(boxes([[("cat", LEFT), ("cat", WHOLE)], [("dog", WHOLE)]], [[], []]))
    assert table is not None
    assert table.what == "objects"
    assert table.names == ("cat", "dog", NOTHING)
    assert table.counts == {("cat", NOTHING): 2, ("dog", NOTHING): 1}
