"""What each stage does: read the tables before it, call the room that knows how, write its own table."""

from __future__ import annotations

import logging
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from raycluster import describe as naming
from raycluster import rows
from raycluster.methods import registry
from raycluster.pixel_stages import PixelStages
from raycluster.plan import Step
from raycluster.run_folder import FOLLOWS_ROWS, Marker, check_rows, now, parts, relative_path
from raycluster.run_tables import Outcome
from raycluster.storage import Location, read_table

if TYPE_CHECKING:
    from raycluster.clustering.novelty import Novelty
    from raycluster.methods.base import Method

log = logging.getLogger(__name__)

MANIFEST_PART = 65_536
MANIFEST_ROW_GROUP = 4_096
"""Small row groups: an embed task reads one of them to find its few rows."""


class Stages(PixelStages):
    """The stages of one run."""

    def finish(self, step: Step, outcome: Outcome, seconds: float) -> Marker:
        """Write the marker of a stage that ran."""
        facts = {**outcome.facts, **({"manifest": self.ready.inputs.manifest} if step.stage in FOLLOWS_ROWS else {})}
        earlier = step.marker.seconds if step.marker and step.stage in FOLLOWS_ROWS else 0.0
        marker = Marker(
            stage=step.stage,
            fingerprint=step.fingerprint,
            path=relative_path(step.stage, step.fingerprint),
            recipe=step.recipe,
            rows=outcome.rows,
            statuses=outcome.statuses,
            seconds=round(earlier + seconds, 2),
            finished=now(),
            facts=facts,
        )
        marker = self.current(marker)
        self.folder.finish(marker)
        return marker

    def current(self, marker: Marker) -> Marker:
        """The marker of a finished stage as it is to be now: the manifest keeps counting row ids, the guard's bounds may be others."""
        if marker.stage == "manifest":
            return marker.model_copy(update={"facts": {**marker.facts, **self.ready.manifest_facts}})
        return self.judged(marker) if marker.stage == "finetune" else marker

    def manifest(self, step: Step) -> Outcome:
        """Write the list of images."""
        place = self.place(step)
        table = self.ready.listing.sort_by("row_id")
        for start in range(0, len(table), MANIFEST_PART):
            (place / f"part-{start:012d}.parquet").write_table(table.slice(start, MANIFEST_PART), MANIFEST_ROW_GROUP)
        others = self.ready.manifest_facts["other_files"]
        return Outcome(len(table), facts=self.ready.manifest_facts, note=f"{others} other files" if others else "")

    def semantics(self, step: Step) -> Outcome:
        """Keep the nouns that fit the images, and pair each image with them."""
        from raycluster.semantics import counterparts, vocabulary

        place, ok, space = self.place(step), self.embedded[0], registry.space(self.ready.method)
        if step.marker is None:
            # Left by a run that was killed: its nouns may be others.
            place.delete()
            embeddings = self._noun_embeddings()
            sample = self.training_rows()
            images = rows.gather(self.parts("embed"), sample)
            kept = counterparts.keep_nouns(
                space, images, embeddings, self.config.clusters, self.config.seed, self.ready.resources
            )
            assert self.ready.nouns is not None
            vocabulary.write_nouns(place / "nouns.parquet", [self.ready.nouns[i] for i in kept], embeddings[kept])
        names, kept_embeddings = self.kept_nouns()
        missing = np.setdiff1d(ok, rows.row_ids(parts(place)))
        with self.progress("semantics", len(missing)) as bar:
            for count in counterparts.pair(
                space, self.parts("embed"), missing, kept_embeddings, place, self.ready.resources
            ):
                bar.update(count)
        check_rows(place.uri, rows.row_ids(parts(place)), ok, exact=False)
        return Outcome(
            len(ok), facts={"kept_nouns": len(names)}, note=f"{len(names)} nouns kept of {len(self.ready.nouns or [])}"
        )

    def train(self, step: Step) -> Outcome:
        """Train the heads, name the clusters, write the model."""
        from raycluster.methods.base import TrainedMethod
        from raycluster.model import remember
        from raycluster.model_files import save_model
        from raycluster.training.heads import HeadsJob, train_heads

        self.warn_of_missing_cuda()
        sample, method_class = self.training_rows(), registry.method_class(self.ready.method.name)
        data = {"row_ids": sample, "images": rows.gather(self.parts("embed"), sample)}
        if method_class.text == "required":
            data["counterparts"] = rows.gather(self.parts("semantics"), sample, "counterpart")
            data["nouns"] = self.kept_nouns()[1]
        if self.uses_text and method_class.wants_vocabulary(self.ready.method):
            data["vocabulary"] = self._noun_embeddings()
        job = HeadsJob(self.ready.method, data["images"].shape[1], self.config.clusters, len(sample), self.config.seed)
        training = self.folder.root / "training" / step.fingerprint
        method, history = train_heads(job, data, training, self.ready.resources)
        memory, assigned = remember(method, data["images"])
        names = self._names(data["images"], assigned)
        spec = self.ready.spec
        encoder = {
            "config": None if spec is None else self.config.encoder.model_dump(mode="json"),
            "precision": None if spec is None else spec.precision,
            "fingerprint": self.ready.inputs.encoder,
        }
        schedule = asdict(method.schedule()) if isinstance(method, TrainedMethod) else {}
        facts = {"seed": self.config.seed, "training": {**schedule, "history": history}}
        save_model(self.place(step), method, memory, encoder, names, facts)
        facts["constants"] = method.constants
        used = len(np.unique(assigned))
        if used < self.config.clusters:
            self.warnings.append(
                f"{self.config.clusters - used} of {self.config.clusters} clusters are empty; fewer `clusters` may fit better"
            )
        return Outcome(
            len(sample), facts={**facts, "used_clusters": used}, note=f"{self.ready.method.name}, {used} clusters used"
        )

    def baseline(self, step: Step) -> Outcome:
        """Assign with the model before fine-tuning, for comparison and in case that it fails."""
        from raycluster.model_files import load_model

        return self._assign(
            step, load_model(self.place(self.steps["train"]), self.config.storage).method, self.parts("embed")
        )

    def assign(self, step: Step) -> Outcome:
        """Give every image of the manifest its cluster or its status."""
        return self._assign(step, self.model.method, self.seen)

    def _assign(
        self, step: Step, method: Method, embeddings: list[Location], novelty: Novelty | None = None
    ) -> Outcome:
        from raycluster.assignments import assign

        place = self.place(step)
        done = rows.row_ids(parts(place))
        with self.progress(step.stage, len(np.setdiff1d(self.row_ids, done))) as bar:
            common = self.ready.resources.common
            for counted in assign(method, embeddings, self.ready.listing, done, place, common, novelty):
                bar.update(counted.total())
        check_rows(place.uri, rows.row_ids(parts(place)), self.row_ids, exact=True)
        return Outcome(len(self.row_ids), rows.statuses(parts(place), self.row_ids)[1])

    def describe(self, step: Step) -> Outcome:
        """Sum up each cluster."""
        table = naming.summarize(self.assignments(), self.model.clusters, self.config.report)
        (self.place(step) / "part-000000000000.parquet").write_table(table)
        return Outcome(len(table))

    def evaluate(self, step: Step) -> Outcome:
        """Score the assignment."""
        from raycluster.evaluate import agreement, evaluate

        paired = self.parts("semantics") if "semantics" in self.steps else None
        # Tuned or not, the encoder as it came is the yardstick: in a space made for the clusters they could only look good.
        score = partial(
            evaluate,
            manifest=self.ready.listing,
            embedded=self.embedded[0],
            embeddings=self.parts("embed"),
            counterparts=paired,
            n_clusters=self.config.clusters,
            seed=self.config.seed,
        )
        scores, facts = score(self.assignments(), advise=self.uses_text)
        if self.tuned:
            before = self.assignments("baseline")
            facts |= {"before": score(before, advise=False)[0], "agreement": agreement(before, self.assignments())}
        (self.place(step) / "metrics.json").write_json(scores)
        shown = [f"{name.upper()} {scores[name]:.3f}" for name in ("acc", "nmi", "ari") if scores[name] is not None]
        if facts.get("text_hurts"):
            self.warnings.append(facts["text_advice"])
        return Outcome(scores["n_rows"], facts=facts, note=" ".join(shown))

    def report(self, step: Step) -> Outcome:
        """Write the HTML page."""
        from raycluster.methods.base import FittedMethod
        from raycluster.report import build
        from raycluster.report.page import ReportData, render

        config, place, method = self.config, self.place(step), self.model.method
        history = self.model.record["training"]["history"]
        counts, failed = self.failures()
        markers = {stage: self.folder.marker(stage) for stage in self.steps}
        known = {stage: marker.facts for stage, marker in markers.items() if marker is not None}
        clusters = read_table(self.parts("describe"))
        points, colors = build.sample_map(self.seen, self.assignments(), config.report.map_sample, config.seed)
        page = render(
            ReportData(
                title=self.folder.root.uri,
                created=now(),
                facts=build.facts(
                    config,
                    self.model.record["constants"],
                    self.ready.inputs.encoder,
                    self.ready.manifest_facts["other_files"],
                ),
                statuses=counts,
                failures=failed,
                n_images=len(self.row_ids),
                cards=build.cards(clusters, self.thumbnails(build.shown(clusters))),
                metrics=(self.place(self.steps["evaluate"]) / "metrics.json").read_json(),
                stages={stage: marker.seconds for stage, marker in markers.items() if marker is not None},
                advice=known["evaluate"].get("text_advice", ""),
                tuning=build.tuning(known["finetune"], known["evaluate"]) if "finetune" in known else None,
                fit=method.explain(history[0]) if isinstance(method, FittedMethod) else "",
                training=history,
                map_points=points,
                map_clusters=colors,
                warnings=self.warnings,
            )
        )
        (place / "index.html").write_bytes(page.encode())
        return Outcome(config.clusters, note=f"{len(page) / 2**20:.1f} MB")

    def _noun_embeddings(self) -> np.ndarray:
        from raycluster.semantics.counterparts import embed_vocabulary

        assert self.ready.nouns is not None
        if self.ready.noun_embeddings is not None:
            return self.ready.noun_embeddings
        assert self.ready.spec is not None
        return embed_vocabulary(self.config, self.ready.nouns, self.ready.spec, self.ready.resources)

    def _names(self, images: np.ndarray, assigned: np.ndarray) -> list[dict[str, Any]]:
        if "semantics" not in self.steps:
            return naming.name_clusters(np.empty((self.config.clusters, 0)), [])
        nouns, embeddings = self.kept_nouns()
        affinity = naming.noun_affinity(rows.unit(images), assigned, embeddings, self.config.clusters)
        return naming.name_clusters(affinity, nouns)
