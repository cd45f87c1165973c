"""Labels as COCO and YOLO: names as outside files have them, and pictures that share one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from task_files import write_json_lines, write_picture
from toy_labeller import ToyLabeller, label_toys

from paligemma.errors import ConfigError, DataError
from paligemma.jobs.labelling.export_places import ExportPlaces
from paligemma.jobs.labelling.exports import write_coco, write_yolo
from paligemma.jobs.labelling.folder import LabelFolder
from paligemma.one_writer import one_writer


def of_names(tmp_path: Path, *names: str) -> LabelFolder:
    """Labels of a parquet file with pictures of these names, each wider than the one before."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    rows = []
    for k, name in enumerate(names):
        data = write_picture(tmp_path / "one.png", size_wh=(12 + k, 8)).read_bytes()
        rows.append({"image": {"bytes": data, "path": name}})
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    return label_toys(tmp_path / "in.parquet", tmp_path / "out", ToyLabeller()).folder


def test_names_that_no_file_may_have_become_files_below_the_folder(tmp_path: Path) -> None:
    names = ["a\0b.png", "c\nd.png", "..", "../../e.png", "/f/g.png", "x" * 400 + ".png"]
    folder = of_names(tmp_path, *names)
    write_yolo(tmp_path / "yolo", folder, ["thing"])
    top = tmp_path / "yolo" / "labels"
    found = {str(path.relative_to(top)) for path in top.rglob("*.txt")}
    (cut,) = (name for name in found if name.startswith("xxx"))
    assert found - {cut} == {"a_b.txt", "c_d.txt", "picture.txt", "e.txt", "f/g.txt"}
    assert len(cut) < 255
    write_coco(tmp_path / "coco.json", folder, ["thing"])
    coco = json.loads((tmp_path / "coco.json").read_text())
    assert [one["file_name"] for one in coco["images"]] == names


@pytest.mark.parametrize("write", [write_coco, write_yolo])
def test_different_pictures_of_one_name_are_not_taken_for_one(
    tmp_path: Path, write: object
) -> None:
    folder = of_names(tmp_path, "image.png", "image.png")
    with pytest.raises(DataError, match=r"pictures of unequal size are named 'image\.png'"):
        write(tmp_path / "found", folder, ["thing"])  # type: ignore[operator]
    assert not (tmp_path / "found").exists()


def test_rows_about_one_picture_share_it_and_one_without_objects_is_there(tmp_path: Path) -> None:
    class Finder(ToyLabeller):
        """Finds nothing in the first row."""

        def answer(self, examples, prepared):  # type: ignore[no-untyped-def]
            found = super().answer(examples, prepared)
            for one, record in zip(examples, found, strict=True):
                if one.id == "0":
                    record["detections"] = []
                for thing in record["detections"]:
                    thing["box_yxyx"] = [0.25, 0.5, 0.75, 1.0]
            return found

    for name in "ab":
        write_picture(tmp_path / "in" / f"{name}.png", size_wh=(40, 20))
    rows = [{"image": "a.png"}, {"image": "b.png"}, {"image": "b.png"}]
    source = write_json_lines(tmp_path / "in" / "rows.jsonl", rows)
    folder = label_toys(source, tmp_path / "out", Finder()).folder
    write_coco(tmp_path / "coco.json", folder, ["cup", "thing"])
    coco = json.loads((tmp_path / "coco.json").read_text())
    assert [(one["id"], one["file_name"]) for one in coco["images"]] == [(1, "a.png"), (2, "b.png")]
    assert coco["categories"] == [{"id": 1, "name": "cup"}, {"id": 2, "name": "thing"}]
    assert [one["id"] for one in coco["annotations"]] == [1, 2]
    for one in coco["annotations"]:
        assert (one["image_id"], one["category_id"], one["iscrowd"]) == (2, 2, 0)
        assert one["bbox"] == [20.0, 5.0, 20.0, 10.0]  # x, y, width, height in pixels
        assert one["area"] == 200.0
    write_yolo(tmp_path / "yolo", folder, ["cup", "thing"])
    assert (tmp_path / "yolo" / "labels" / "a.txt").read_text() == ""
    line = "1 0.750000 0.500000 0.500000 0.500000\n"  # class from 0, centre, width, height
    assert (tmp_path / "yolo" / "labels" / "b.txt").read_text() == 2 * line
    assert (tmp_path / "yolo" / "data.yaml").read_text() == 'names:\n  0: "cup"\n  1: "thing"\n'


def test_labels_that_another_process_is_asking_again_are_not_exported_in_part(
    tmp_path: Path,
) -> None:
    folder = of_names(tmp_path, *(f"{k}.png" for k in range(12)))
    places = ExportPlaces(
        labels=folder.path, coco=tmp_path / "found" / "coco.json", yolo=tmp_path / "found"
    )
    places.require_free()
    with (
        one_writer(folder.path),
        pytest.raises(ConfigError, match="another process is writing to"),
    ):
        list(places.write(folder, ["thing"]))
    first, _ = folder.label_files()
    content = first.read_bytes()
    first.unlink()  # as --retry does, which was killed then
    with pytest.raises(ConfigError, match=r"lacks 1 parts, .* repeat the command"):
        list(places.write(folder, ["thing"]))
    assert [path.name for path in (tmp_path / "found").iterdir()] == ["labels"]
    first.write_bytes(content)
    assert list(places.write(folder, ["thing"])) == [tmp_path / "found" / "coco.json", places.yolo]
    coco = json.loads((tmp_path / "found" / "coco.json").read_text())
    assert len(coco["images"]) == 12


def test_what_a_kill_left_beside_exports_is_removed_and_is_no_label_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = of_names(tmp_path, "a.png", "b/c.png")
    top, digits = tmp_path / "found", "0123456789abcdef" * 2
    places = ExportPlaces(labels=folder.path, coco=top / "coco.json", yolo=top)
    places.require_free()
    list(places.write(folder, ["thing"]))
    before = {path: path.read_bytes() for path in top.rglob("*") if path.is_file()}
    for name in (f"coco.{digits}.json", f"data.{digits}.yaml", f"other.{digits}.json"):
        (top / f".{name}").write_text("half")
    for name in (f"labels/.a.{digits}.txt", f"labels/b/.c.{digits}.txt"):
        (top / name).write_text("half")
    list(places.write(folder, ["thing"]))
    after = {path: path.read_bytes() for path in top.rglob("*") if path.is_file()}
    assert after == before | {top / f".other.{digits}.json": b"half"}
    assert caplog.records == []
