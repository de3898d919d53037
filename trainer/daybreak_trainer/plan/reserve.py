"""What has to be kept for the end of a run: from its last step until nothing is left to do."""

from __future__ import annotations

from dataclasses import dataclass

_SAFETY = 1.5
_LEAST_SECONDS = 5.0
"""For what is the same in every run: to close a store, to write small files."""
_FORWARD_OF_TRAINING = 1 / 3
"""FLOPs of a forward pass over those of a training step."""


@dataclass(frozen=True)
class Reserve:
    """Known from the settings."""

    commit_bytes: float
    export_bytes: float
    """The export, frozen parts included, and averages that are kept at the end."""
    judged_passes: float
    """Forward passes, as images, of the evaluation of the last weights."""
    drawn_passes: float
    """The same for what is drawn from the export."""

    def seconds(
        self,
        images_per_second: float,
        store_bytes_per_second: float,
        commit_seconds: float | None = None,
        judged_seconds: float | None = None,
    ) -> float:
        """At this speed of training. A commit takes what it took, where there was one, and an
        evaluation no less."""
        a_pass = _FORWARD_OF_TRAINING / images_per_second
        commit, judged = commit_seconds, self.judged_passes * a_pass
        if commit is None:
            commit = self.commit_bytes / store_bytes_per_second
        if judged and judged_seconds is not None:
            judged = max(judged, judged_seconds)  # which may be of a smaller stage
        export = self.export_bytes / store_bytes_per_second
        return _SAFETY * (commit + export + judged + self.drawn_passes * a_pass) + _LEAST_SECONDS
