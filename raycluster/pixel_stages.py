"""The stages that stream pictures: shard, embed, fine-tune, embed again with the tuned encoder."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from raycluster import rows, work
from raycluster.distributed import map_tasks
from raycluster.encoder import provided
from raycluster.errors import DataQualityError
from raycluster.images.pictures import COLUMNS
from raycluster.plan import Step
from raycluster.prepare import embedding_files
from raycluster.row_blocks import Block, find_blocks
from raycluster.run_folder import Marker, check_failures, check_rows, parts, relative_path
from raycluster.run_tables import Outcome, RunTables
from raycluster.training.counted import sampled

if TYPE_CHECKING:
    from raycluster.encoder.clip import EncoderSpec
    from raycluster.model import Model
    from raycluster.training.finetune import Tuned

GUARDED = 10_000
"""Images by which fine-tuning is guarded, and by which the sizes of clusters are known."""

THUMBNAILS = 64
"""Thumbnails made by one task, whose originals are in memory together."""


class PixelStages(RunTables):
    """The stages of one run that need pictures (or take ready-made embeddings in their place)."""

    def shard(self, step: Step) -> Outcome:
        """Store the pictures that are in the manifest and not in the table, checked and made smaller."""
        from raycluster.shards import ShardJob, shard

        place, size = self.place(step), self.ready.shard_size
        assert size is not None
        job = ShardJob(size, self.config.encoder, self.config.storage, place)
        wanted, judge = np.setdiff1d(self.row_ids, rows.row_ids(parts(place))), self._gate(step)
        with self.progress("shard", len(wanted)) as bar:
            for counts in shard(job, self.parts("manifest"), wanted, self.ready.resources):
                bar.update(counts.total())
                judge(counts)
        check_rows(place.uri, rows.row_ids(parts(place)), self.row_ids, exact=False)
        ok, statuses = rows.statuses(parts(place), self.row_ids)
        return Outcome(len(self.row_ids), statuses, {"size": size}, f"{len(ok)} ok, shortest side {size} pixels")

    def embed(self, step: Step) -> Outcome:
        """Embed the images that are in the manifest and not in the table."""
        place = self.place(step)
        self.__dict__.pop("embedded", None)
        if self.ready.spec is None:
            done = rows.row_ids(parts(place))
            files = embedding_files(self.config, self.folder)
            with self.progress("embed", len(np.setdiff1d(self.row_ids, done))) as bar:
                for count in provided.import_provided(files, self.ready.listing, done, place):
                    bar.update(count)
        else:
            from raycluster.encoder.clip import check_encoder

            check_encoder(self.ready.spec)
            self.warn_of_missing_cuda()
            self._stream(step, self.ready.spec, self.row_ids)
        check_rows(place.uri, rows.row_ids(parts(place)), self.row_ids, exact=False)
        ok, counts = self.embedded
        return Outcome(len(self.row_ids), counts, note=f"{len(ok)} ok")

    def reembed(self, step: Step) -> Outcome:
        """The same with the fine-tuned encoder."""
        place = self.place(step)
        self._stream(step, self.model.spec, self.row_ids)
        check_rows(place.uri, rows.row_ids(parts(place)), self.row_ids, exact=False)
        ok, counts = rows.statuses(parts(place), self.row_ids)
        return Outcome(len(self.row_ids), counts, note=f"{len(ok)} ok")

    def _stream(self, step: Step, spec: EncoderSpec, wanted: np.ndarray) -> None:
        """Embed those of the wanted rows that are not in the table."""
        from raycluster.encoder.embed import EmbedJob, embed

        place = self.place(step)
        done = rows.row_ids(parts(place))
        job = EmbedJob(spec, self.config.encoder, self.config.storage, place)
        left, judge = np.setdiff1d(wanted, done), self._gate(step)
        with self.progress(step.stage, len(left)) as bar:
            for table in embed(job, self.pictured, left, self.ready.resources):
                counts = Counter({item["status"]: item["rows"] for item in table.to_pylist()})
                bar.update(counts.total())
                judge(counts)

    def _gate(self, step: Step) -> Callable[[Counter[str]], None]:
        """The failure gate of a stage while it runs: a function that takes the status counts of each new part.

        Without it a bucket of which half cannot be read would cost the whole stage before anybody hears of it.
        """
        seen = Counter(rows.statuses(self.parts(step.stage), self.row_ids)[1])
        total, allowed = len(self.row_ids), self.config.max_failed_fraction

        def judge(counts: Counter[str]) -> None:
            work.check()
            seen.update(counts)
            if seen.total() - seen["ok"] > allowed * total:
                check_failures(seen, rows.failures(self.parts(step.stage), self.ready.listing), allowed, total)

        judge(Counter())
        return judge

    def thumbnails(self, wanted: np.ndarray) -> dict[int, bytes]:
        """Row id → small JPEG, of those of the images (ids ascending) that can still be read; without pictures none."""
        from raycluster.report.thumbnails import thumbnails

        if self.ready.spec is None or not len(wanted):
            return {}
        report, encoder, storage = self.config.report, self.config.encoder, self.config.storage

        def make(block: Block) -> dict[int, bytes]:
            return thumbnails(block.read(COLUMNS), report.thumbnail, encoder, storage)

        blocks = find_blocks(self.pictured, wanted, THUMBNAILS, fair=max(1, int(self.ready.resources.cpus)))
        made = map_tasks(make, blocks, common=self.ready.resources.common)
        return {row: jpeg for some in made for row, jpeg in some.items()}

    def finetune(self, step: Step) -> Outcome:
        """Fine-tune the encoder on its own confident clusters, and see whether the result can be trusted."""
        from raycluster.model_files import load_model
        from raycluster.prediction import probabilities
        from raycluster.training.finetune import finetune
        from raycluster.training.pixels import PixelJob

        config, spec = self.config.finetune, self.ready.spec
        assert spec is not None
        sample = sampled(self.embedded[0], config.train_sample, self.config.seed)
        images = self._images(sample)
        job = PixelJob(
            spec,
            self.config.encoder,
            self.config.storage,
            self.config.seed,
            len(images),
            min(config.batch_size, len(images)),
        )
        before = load_model(self.place(self.steps["train"]), self.config.storage)
        training = self.folder.root / "training" / step.fingerprint
        known = rows.gather(self.parts("embed"), sampled(sample, GUARDED, self.config.seed))
        sizes = probabilities(before.method, known).mean(dim=0)
        tuned = finetune(config, job, before.method, sizes, images, training, self.ready.resources)
        self._save(step, before, tuned, self._looked_at(step, tuned, spec, sample))
        measures = self._guard(step, before, sample)
        return Outcome(
            len(images),
            facts={"guard": measures, "kind": tuned.kind, "history": tuned.history},
            note=f"{tuned.kind}, {measures['agreement']:.1%} keep their cluster",
        )

    def _images(self, wanted: np.ndarray) -> pa.Table:
        """Where the pictures of these rows lie, ascending: row_id, and uri and size, or their place in shards."""
        if "shard" in self.steps:
            from raycluster.shards import find_rows

            return find_rows(self.pictured, wanted)
        listing = self.ready.listing
        at = np.isin(listing.column("row_id").to_numpy(), wanted)
        return listing.filter(at).select(["row_id", "uri", "size"]).sort_by("row_id")

    def _looked_at(self, step: Step, tuned: Tuned, spec: EncoderSpec, sample: np.ndarray) -> np.ndarray:
        """Embeddings [n, d] of some of the images by the tuned encoder: the first rows of the table that `reembed` goes on with."""
        from safetensors.torch import save

        from raycluster.encoder.clip import TunedTower
        from raycluster.model_record import ENCODER_FILE

        file, content = self.place(step) / ENCODER_FILE, save(tuned.tower)
        file.write_bytes(content)
        again, chosen = self.steps["reembed"], sampled(sample, GUARDED, self.config.seed)
        self._stream(again, spec.tuned(TunedTower(file, hashlib.sha256(content).hexdigest())), chosen)
        chosen = rows.statuses(parts(self.place(again)), chosen)[0]
        if not len(chosen):
            raise DataQualityError(
                "finetune: none of the images could be read again for a look at the result; mend the storage and run again"
            )
        return rows.gather(self.parts("reembed"), chosen)

    def _save(self, step: Step, before: Model, tuned: Tuned, embeddings: np.ndarray) -> None:
        """`embeddings` [n, d]: of training rows, by the tuned encoder."""
        from safetensors.torch import save

        from raycluster.model import remember
        from raycluster.model_files import save_model
        from raycluster.model_record import ENCODER_FILE

        facts = {
            **{key: before.record[key] for key in ("seed", "training")},
            "finetune": {**self.config.finetune.training, "kind": tuned.kind, "history": tuned.history},
        }
        files = {ENCODER_FILE: save(tuned.tower), "adapter.safetensors": save(tuned.adapter)}
        memory = remember(tuned.method, embeddings)[0]
        save_model(self.place(step), tuned.method, memory, before.record["encoder"], before.clusters, facts, files)

    def _guard(self, step: Step, before: Model, sample: np.ndarray) -> dict[str, float]:
        """Measures on a sample, which `reembed` has begun with."""
        from raycluster.model_files import load_model
        from raycluster.prediction import probabilities
        from raycluster.training import guard

        chosen = sampled(sample, GUARDED, self.config.seed)
        chosen = rows.statuses(self.parts("reembed"), chosen)[0]
        after = load_model(self.place(step), self.config.storage)
        images = rows.gather(self.parts("embed"), chosen)
        own = probabilities(before.method, images).argmax(dim=1).numpy()
        tuned = probabilities(after.method, rows.gather(self.parts("reembed"), chosen)).argmax(dim=1).numpy()
        return guard.measure(images, own, tuned, self.config.clusters)

    def judged(self, marker: Marker) -> Marker:
        """The marker of fine-tuning under today's bounds: of a result that is refused, it names the model before."""
        from raycluster.training.guard import refusal

        refused = refusal(marker.facts["guard"], self.config.finetune)
        train = self.steps["train"]
        path = relative_path("train", train.fingerprint) if refused else relative_path("finetune", marker.fingerprint)
        return marker.model_copy(update={"path": path, "facts": {**marker.facts, "refused": refused}})
