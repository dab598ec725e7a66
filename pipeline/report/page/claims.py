"""What the breakdown is said to do, beside what was measured; and inside the networks."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.evaluation.claims import GRADIENTS, IMAGES_SEEN, Claim
from pipeline.evaluation.collect import Run
from pipeline.evaluation.diagnosis import (
    ACCURACY_GAP,
    DISTANCE_AUC,
    DISTANCE_OVERLAP,
    EFFECTIVE_RANK,
    FISHER,
    LOSS_GAP,
    PROBE_TRAIN,
    PROBE_VAL,
    SEPARABLE,
    TRAIN_ACCURACY,
    VAL_ACCURACY,
)
from pipeline.report import words
from pipeline.report.page.advice import mean
from pipeline.report.page.document import (
    Block,
    Cell,
    Column,
    Fold,
    Item,
    Items,
    Method,
    Section,
    Small,
    Strong,
    Table,
    cell,
    note,
    warning,
)
from pipeline.report.page.plates import figures
from pipeline.report.page.report import Report

CLAIMS = {  # each beside the reference
    "separable": "A more linearly separable latent than {reference}'s",
    "gradients": "Gradients nearer to balance than {reference}'s",
    "overfitting": "A smaller gap between training and validation than {reference}'s",
    "better": "Better than {reference}",
    "cheaper": "Fewer images than {reference}",
}
MEASURES = {
    PROBE_VAL: "Linear probe on the latent, accuracy on validation images, %",
    SEPARABLE: "Pairs of classes that a hyperplane parts, of test images, %",
    GRADIENTS: "Orders of magnitude between the gradients of two layers, mean over epochs",
    ACCURACY_GAP: "Training minus validation accuracy, points",
    LOSS_GAP: "Validation minus training loss, nats",
    IMAGES_SEEN: "Images through the network",
}
INSIDE = {  # columns of a table of means: a metric, its title, and whether it is a share
    PROBE_TRAIN: ("Probe, training", True),
    PROBE_VAL: ("Probe, validation", True),
    SEPARABLE: ("Separable pairs", True),
    FISHER: ("Fisher's ratio", False),
    DISTANCE_AUC: ("Distances: AUC", True),
    DISTANCE_OVERLAP: ("Overlap", True),
    EFFECTIVE_RANK: ("Effective rank", False),
    TRAIN_ACCURACY: ("Training accuracy", True),
    VAL_ACCURACY: ("Validation accuracy", True),
}


def section(report: Report) -> Section | None:
    """The claims table of every breakdown but the reference, and the collapsed runs."""
    warned = list(_collapsed(report))
    tables: list[Block] = []
    for shots in report.compare.shots if report.findings.claims else ():
        table = _table(report, [c for c in report.findings.claims if c.shots == shots])
        last = shots == report.compare.shots[-1]
        tables.append(Fold((words.capital(f"with {words.budget(shots)}"),), [table], open=last))
    if not tables and not warned:
        return None
    reference = report.compare.reference
    explained = note(
        f"Means over seeds, against {reference}, with the {words.INTERVAL} of the paired "
        "difference over seeds. Held and did not hold: where that interval leaves out zero, not "
        "adjusted for the number of claims. Which is better goes by the adjusted verdict of the "
        "comparison, whose interval may leave out zero where nothing is decided; images are "
        "counted, not estimated. The first measure of a claim decides it, others stand beside. Of "
        "the latent, separable pairs decide where they are measured and some seed differs, else "
        "the probe; they are not measured where classes have too few images for so many dimensions."
    )
    blocks = [*warned, *tables, *([explained] if tables else [])]
    return Section("claims", "What the breakdown claims", blocks, brief=True)


def _table(report: Report, claims: list[Claim]) -> Table:
    columns = [
        Column("Claim", number=False),
        Column("Measured", number=False, place="wide"),
        Column("Value"),
        Column(report.compare.reference),
        Column("Difference", place="wide"),
        Column("Verdict", number=False, place="wide"),
    ]
    several = len({claim.method for claim in claims}) > 1
    return Table(columns, [_row(claim, report.compare.reference, several) for claim in claims])


def _row(claim: Claim, reference: str, several: bool) -> list[Cell]:
    sentence = CLAIMS[claim.claim].format(reference=reference)
    head = Cell((*((Method(claim.method), " ") if several else ()), sentence))
    return [
        head if claim.decides else Cell((Small("beside it"),)),
        cell(measured(claim.measure), claim.note),
        cell(amount(claim.measure, claim.value)),
        cell(amount(claim.measure, claim.reference)),
        cell(_difference(claim.measure, claim.difference), _interval(claim)),
        Cell((Strong(claim.verdict) if claim.decides else claim.verdict,)),
    ]


def measured(measure: str) -> str:
    """A measure in words, with its unit."""
    return MEASURES.get(measure) or f"{words.title(measure)}, {words.unit(measure)}"


def amount(measure: str, number: float | None) -> str:
    """A measure's number as it is printed."""
    if number is None:
        return words.NONE
    if measure == IMAGES_SEEN:
        text = words.count(abs(number))
    elif measure in (GRADIENTS, LOSS_GAP):
        text = f"{abs(number):.2f}"
    elif measure in words.UNITS:
        text = f"{abs(number):.3f}"
    else:
        text = f"{100 * abs(number):.1f}"
    negative = number < 0 and any(digit in "123456789" for digit in text)
    return f"{'−' if negative else ''}{text}"


def _difference(measure: str, number: float | None) -> str:
    """With its sign, even of what is rounded to zero: a verdict may hang on the side of zero."""
    if not number:
        return amount(measure, number)
    return f"{'−' if number < 0 else '+'}{amount(measure, abs(number))}"


def _interval(claim: Claim) -> str:
    if claim.low is None or claim.high is None:
        return ""
    if claim.low == claim.high:
        return words.NO_SPREAD
    return f"{_difference(claim.measure, claim.low)} to {_difference(claim.measure, claim.high)}"


def _collapsed(report: Report) -> Iterator[Block]:
    runs = [run for run in report.evidence.runs if run.diagnosis.collapsed]
    if runs:
        yield warning("Collapsed: these latents hardly tell one image from another.")
        yield Items([_collapse(run) for run in runs])


def _collapse(run: Run) -> Item:
    cause = run.diagnosis.cause or "The cause is not known."
    where = f", {run.id.shots} shots, seed {run.id.seed}"
    return Item((Method(run.id.method), where), words.capital(cause), run.id.method)


def inside(report: Report) -> Section | None:
    """Figures of the trained networks, and the numbers of their latents."""
    table = _inside_table(report)
    blocks: list[Block] = [*figures(report, "inside")]
    if table:
        blocks.append(Fold(("The latent in numbers",), [table]))
    if not blocks:
        return None
    latents = dict.fromkeys(
        f"{run.diagnosis.latent} ({words.count(run.diagnosis.dimension)} numbers an image)"
        for run in report.evidence.runs
    )
    blocks.append(note(f"The latent looked into, the same for every method where it can be: "
                       f"{words.listed(list(latents))}. Probes learn on training images; separable "
                       "pairs are of test images, the rest is of validation images."))  # fmt: skip
    return Section("inside", "Inside the networks", blocks)


def _inside_table(report: Report) -> Table | None:
    """Means over seeds; a column that is empty for all is left out."""
    rows: list[tuple[str, int | str, dict[str, float | None]]] = []
    for method in report.compare.methods:
        for shots in report.compare.shots:
            runs = report.runs(method, shots)
            means = {name: mean([run.values.get(name) for run in runs]) for name in INSIDE}
            rows.append((method, shots, means))
    names = [name for name in INSIDE if any(means[name] is not None for *_, means in rows)]
    if not names:
        return None
    columns = [Column("Method", number=False), Column("Shots")]
    columns += [Column(INSIDE[name][0], "%" if INSIDE[name][1] else "") for name in names]
    cells = [
        [Cell((Method(method),)), cell(str(shots)), *(_mean_cell(n, means[n]) for n in names)]
        for method, shots, means in rows
    ]
    return Table(columns, cells, dense=True)


def _mean_cell(name: str, number: float | None) -> Cell:
    if number is None:
        return cell(words.NONE)
    return cell(f"{100 * number:.1f}" if INSIDE[name][1] else f"{number:.3g}")
