"""The parts of a labelling as work: rows become examples, batches, and a part that is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from paligemma.errors import PaliGemmaError
from paligemma.example import Example
from paligemma.jobs.labelling.folder import LabelFolder, Part
from paligemma.jobs.labelling.inputs import START, Input, InputRow
from paligemma.jobs.labelling.labeller import Refused
from paligemma.jobs.labelling.records import Record
from paligemma.jobs.plan import plan_batches
from paligemma.outputs.missing_masks import MissingMasks
from paligemma.processing.prompts import object_prompt
from paligemma.tasks.own.columns import filled

# Deaths of a process over a part before its rows are asked alone, and over a row before it is
# refused.
MAX_DEATHS = 2


def died_reason(num: int) -> str:
    """Why a row has no answer over which processes died."""
    return f"the process that asked this row alone died {num} times; see to its picture"


@dataclass(kw_only=True, eq=False)
class Work:
    """A part that is being answered.

    Attributes:
        part: its place.
        examples: rows that can be asked; ids are their numbers in the whole input.
        batches: positions in `examples` that are asked together.
        is_alone: whether each row is asked alone, because processes died over the part.
        found: records and reasons by position, as they come.
        refused: rows that were never asked, and why.
        seconds: of computing, so far.
    """

    part: Part
    examples: list[Example]
    batches: list[tuple[int, ...]]
    refused: list[Record]
    is_alone: bool = False
    found: dict[int, Record | Refused] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def is_done(self) -> bool:
        """Whether every row has a record or a reason."""
        return len(self.found) == len(self.examples)

    def batch(self, number: int) -> list[Example]:
        """The examples of one batch."""
        return [self.examples[position] for position in self.batches[number]]

    def ask_alone(self) -> None:
        """Ask each row alone from now on; nothing of the part is kept."""
        self.batches = [(position,) for position in range(len(self.examples))]
        self.is_alone = True
        self.found.clear()

    def take(self, number: int, answers: Sequence[Record | Refused], seconds: float) -> None:
        """Keep the answers to one batch.

        Raises:
            RuntimeError: a labeller answered another number of examples than it was asked.
        """
        positions = self.batches[number]
        if len(answers) != len(positions):
            raise RuntimeError(f"{len(positions)} rows were asked, {len(answers)} answered")
        self.found.update(zip(positions, answers, strict=True))
        self.seconds += seconds

    def write(
        self, folder: LabelFolder, *, timing: bool, at: float, worker: str = ""
    ) -> MissingMasks:
        """Write the part; returns its objects that a segment prompt wanted a mask of.

        Args:
            timing: write seconds beside each row.
            at: seconds since the run began, for the log.
            worker: who answered, for the log.
        """
        records: list[Record] = []
        refused = list(self.refused)
        share = round(self.seconds / max(1, len(self.examples)), 6)
        for position, one in enumerate(self.examples):
            answer = self.found[position]
            head = {"row": int(one.id), **one.references}
            if isinstance(answer, Refused):
                refused.append({**head, "prompt": one.prefix, "reason": answer.reason})
            else:
                timed = {"seconds": share} if timing else {}
                records.append({**head, "prompt": one.prefix, **answer, **timed})
        refused.sort(key=lambda one: one["row"])
        missing = missing_masks(records)
        figures = {"seconds": round(self.seconds, 4), "at": round(at, 3), "worker": worker}
        if missing.num_missing:
            figures |= {"objects": missing.num_objects, "without_mask": missing.num_missing}
        folder.finish(self.part, records, refused, figures)
        return missing


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How an input is cut and asked.

    Attributes:
        source: rows of the input.
        prompt: template such as "answer en {question}".
        part_rows: rows of a part.
        batch_size: rows that are asked together.
        limit: rows of the input that are taken; None takes all.
    """

    source: Input
    prompt: str
    part_rows: int
    batch_size: int
    limit: int | None = None

    def open_parts(self, folder: LabelFolder) -> Iterator[tuple[Part, list[InputRow]]]:
        """The parts that are not done, in order, each with its rows; new ones are noted."""
        done, known = folder.done(), folder.parts()
        for part in known:
            if part.number not in done:
                rows = self.source.rows(part.start)
                yield part, [row for _, row in islice(rows, part.num_rows)]
        last = known[-1] if known else None
        number, first = (
            (0, 0) if last is None else (last.number + 1, last.first_row + last.num_rows)
        )
        placed = self.source.rows(START if last is None else last.start)
        if last is not None:
            placed = islice(placed, last.num_rows, None)
        while True:
            size = self.part_rows
            if self.limit is not None:
                size = min(size, self.limit - first)
            some = list(islice(placed, size)) if size > 0 else []
            if not some:
                return
            part = Part(number=number, first_row=first, num_rows=len(some), start=some[0][0])
            folder.add_part(part)
            if number not in done:
                yield part, [row for _, row in some]
            number, first = number + 1, first + len(some)

    def works(self, folder: LabelFolder) -> Iterator[Work]:
        """The open parts as work."""
        deaths = folder.deaths()
        for part, rows in self.open_parts(folder):
            is_alone = deaths[part.number, None] >= MAX_DEATHS
            yield self.work(part, rows, deaths if is_alone else None)

    def work(
        self,
        part: Part,
        rows: Sequence[InputRow],
        deaths: Mapping[tuple[int, int | None], int] | None = None,
    ) -> Work:
        """One part as work; with counts of deaths, its rows are asked alone."""
        examples: list[Example] = []
        refused: list[Record] = []
        for number, row in enumerate(rows, part.first_row):
            head = {"id": _id_of(row), "image": _printable(row.name)}
            num = 0 if deaths is None else deaths.get((part.number, number), 0)
            reason = row.error if num < MAX_DEATHS else died_reason(num)
            prompt = ""
            if reason is None:
                try:
                    prompt = filled(self.prompt, row.fields)
                except PaliGemmaError as error:
                    reason = str(error)
            if reason is not None:
                refused.append({"row": number, **head, "reason": _printable(reason)})
                continue
            examples.append(
                Example(id=str(number), prefix=prompt, pictures=row.pictures, references=head)
            )
        batches = plan_batches(examples, self.batch_size)
        work = Work(part=part, examples=examples, batches=batches, refused=refused)
        if deaths is not None:
            work.ask_alone()
        return work


def missing_masks(records: Iterable[Record]) -> MissingMasks:
    """The objects of segment prompts that came without a mask."""
    missing = MissingMasks()
    for record in records:
        asks = object_prompt(record["prompt"])
        if asks is not None and asks.task == "segment":
            found = record.get("detections", ())
            maskless = sum("mask" not in one for one in found)
            missing.add(len(found), maskless, num_labels=len(asks.labels))
    return missing


def _id_of(row: InputRow) -> str:
    """The row's own id, or else the name of its picture."""
    found: Any = row.fields.fields.get("id")
    if isinstance(found, float) and found.is_integer():  # as tables write them
        found = int(found)
    named = isinstance(found, str | int) and not isinstance(found, bool)
    return _printable(str(found))[:1000] if named else _printable(row.name)


def _printable(text: str) -> str:
    """The text as every file can hold it: what is no Unicode is written as \\udcff."""
    return text.encode("utf-8", "backslashreplace").decode()
