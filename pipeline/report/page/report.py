"""What a report is made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.evaluation.collect import Evidence, Run
from pipeline.evaluation.findings import Findings
from pipeline.evaluation.statistics.results import Contrast, Estimate
from pipeline.params import Compare, Params
from pipeline.report.figures import Panel
from pipeline.report.page.provenance import Made
from pipeline.report.pictures import Album

UNTRAINED = "control: untrained network"


@dataclass(frozen=True)
class Report:
    """Everything that a report says, before it is put in words."""

    params: Params
    evidence: Evidence
    findings: Findings
    panels: Sequence[Panel]
    made: Made
    album: Album = field(default_factory=Album)

    @property
    def compare(self) -> Compare:
        """Which runs were compared."""
        return self.params.compare

    @property
    def primary(self) -> str:
        """The metric that verdicts go by."""
        return self.evidence.tested.primary

    def runs(self, method: str, shots: int | str) -> list[Run]:
        """Its seeds."""
        return [r for r in self.evidence.runs if (r.id.method, r.id.shots) == (method, shots)]

    def estimate(self, method: str, shots: int | str, metric: str) -> Estimate:
        """A method's mean and its interval."""
        return self.findings.estimates[method][str(shots)][metric]

    def contrasts(self, metric: str, shots: int | str | None = None) -> list[Contrast]:
        """The comparisons in a metric, at some shots or at all."""
        return [
            row
            for row in self.findings.contrasts
            if row.metric == metric and shots in (None, row.shots)
        ]

    def unit(self, metric: str) -> str:
        """What a test unit of a metric is; an image where the metric is not taken apart."""
        found = self.evidence.runs[0].contributions.get(metric)
        return found.unit if found else "image"

    def units(self, metric: str) -> int | None:
        """How many test units a metric rests on, where it is taken apart."""
        found = self.evidence.runs[0].contributions.get(metric)
        return len(found.values) if found else None


def control(params: Params, method: str) -> str:
    """What a method is there to check, if it is one of the controls."""
    block = params.methods.get(method, {})
    recipe = block.get("recipe")
    if recipe == "retrained_head":
        return "control: two phases, without a Siamese loss"
    if recipe == "features":
        start = params.weights.from_
        return UNTRAINED if start == "none" else "control: start weights, frozen"
    return ""
