"""The figures: where each group of panels stands, under which title and caption."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipeline.report import figures as figures_of
from pipeline.report import words
from pipeline.report.page.document import Block, Figure, Figures, Fold
from pipeline.report.page.report import Report


@dataclass(frozen=True)
class Plate:
    """A group of panels: its section, title and caption, and whether it is folded away.

    ``framed`` is added to the caption where every method has a frame of its own.
    """

    section: str
    title: str
    caption: str
    framed: str = ""
    folded: bool = False


BACKDROP = "Each method has a frame of its own; the dashed line is {reference}."
DETAILED = (
    "Of so many methods {reference} and the {others} others that do best with {last} are shown."
)
JUDGED = (  # curves of verification
    " Here a pair is accepted from a probability of one half on, elsewhere from each run's "
    "threshold."
)
PLATES = {  # in the order of the page
    "accuracy": Plate(
        "figures",
        "{metric}, seed by seed",
        "Every dot is a seed, the line the mean, the bar its 95 % interval.",
    ),
    "forest": Plate(
        "figures",
        "Differences to {reference}",
        "The dot is the mean difference, the bar its 95 % interval. Filled: a verdict, after "
        "adjustment for the number of methods; hollow: none, also where the bar alone leaves out "
        "zero. The band is what would not matter: {effect} points either way.",
    ),
    "learning": Plate(
        "shots",
        "More training images",
        "Every dot is a seed, the line the mean, the band its 95 % interval.",
        BACKDROP,
    ),
    "crossover": Plate(
        "shots",
        "Difference to {reference} by training images",
        "The line is the mean difference, the band its 95 % interval; marked below it is who is "
        "ahead: where an interval widened for the number of methods compared leaves out zero.",
    ),
    "training": Plate(
        "training",
        "Validation accuracy",
        "Validation accuracy while training; thin lines are seeds, the thick one their mean, as "
        "far as all of them run. The phases of a run follow one another: a breakdown starts where "
        "its encoders have ended. A head that is solved for is a point.{judged}",
        BACKDROP,
    ),
    "loss": Plate(
        "training",
        "Phases judged by their loss",
        "The loss by which an encoder's epoch is chosen. Losses of methods with other settings "
        "are on other scales.",
        "Each method has a frame and a scale of its own.",
        folded=True,
    ),
    "epochs": Plate(
        "training",
        "Loss by epoch",
        "Mean over seeds, as far as all of them run. Each phase has scales of its own; what is "
        "done in one epoch has no course to show.",
        folded=True,
    ),
    "classes": Plate(
        "classes",
        "Recall and precision of each class",
        "Mean over seeds with its 95 % interval after Wilson, for new test images alone: the "
        "seeds share their test images, so each counts once.",
    ),
    "confusion": Plate(
        "classes",
        "What is taken for what",
        "Rows are the true classes, columns the answers: the share of a class's test images that "
        "is taken for each, in percent, mean over seeds.",
    ),
    "gap": Plate(
        "inside",
        "Training and validation accuracy",
        "Each seed's accuracy on its training {units}, as they are, and on those of "
        "validation: the wider apart, the more was learnt by heart.",
    ),
    "distances": Plate(
        "inside",
        "Distances in the latent",
        "Of pairs of validation images of one class and of two, over their root mean square; "
        "mean over seeds. The less they overlap, the better the latent tells classes apart.",
    ),
    "gradients": Plate(
        "inside",
        "Gradients",
        "The norm of the first layer's gradient over that of the last while training: at 1 it "
        "neither vanishes nor explodes on its way; and the norm layer by layer.",
    ),
    "map": Plate(
        "inside",
        "Test images in the latent",
        "Their latents in two dimensions, by principal components and by t-SNE, which keeps "
        "neighbours and no distances; the first seed at the last shots.",
    ),
    "filters": Plate(
        "inside",
        "Filters of the first layer",
        "Before training and after, each on a scale of its own; the first seed at the last shots.",
        folded=True,
    ),
    "weights": Plate(
        "inside",
        "Weights by layer",
        "Before training and after; a layer that is not in the start weights began at random, and "
        "has no before. The first seed at the last shots.",
        folded=True,
    ),
    "variance": Plate(
        "variance",
        "Variance of the mean",
        "How much of it ever more seeds would take away, and how much only more of what was "
        "tested.",
    ),
}


def figures(report: Report, section: str) -> list[Block]:
    """The figures of one section that have panels; folded ones last."""
    found = [
        (plate, _figure(report, group, plate))
        for group, plate in PLATES.items()
        if plate.section == section and any(panel.group == group for panel in report.panels)
    ]
    shown = [figure for plate, figure in found if not plate.folded]
    folds = [
        Fold((of.title,), [Figures([replace(of, title="")])]) for plate, of in found if plate.folded
    ]
    return [*([Figures(shown)] if shown else []), *folds]


def _figure(report: Report, group: str, plate: Plate) -> Figure:
    panels = [panel for panel in report.panels if panel.group == group]
    caption = plate.caption
    if plate.framed and any(panel.framed for panel in panels):
        caption = f"{caption} {plate.framed}"
    told = figures_of.detailed(report.compare, report.findings, report.primary)
    if group not in figures_of.WHOLE and len(told) < len(report.compare.methods):
        caption = f"{caption} {DETAILED}"
    pairs = report.params.task == "verification"
    names = {
        "metric": words.capital(words.named(report.primary)),
        "reference": report.compare.reference,
        "effect": words.value(report.primary, report.compare.smallest_effect),
        "others": str(len(told) - 1),
        "judged": JUDGED if pairs else "",
        "units": "pairs" if pairs else "images",
        "last": words.budget(report.compare.shots[-1]),
    }
    return Figure(plate.title.format(**names), caption.format(**names), panels)
