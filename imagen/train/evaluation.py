"""Evaluation during training: a small fixed set of metrics of the EMA weights, at intervals."""

from itertools import islice

import numpy as np

from imagen.errors import UserError
from imagen.evaluate.extractors import Extractor, load_extractor
from imagen.evaluate.extractors.hub import Clip
from imagen.evaluate.metrics.table import Features, find_metric
from imagen.evaluate.real import as_rgb
from imagen.train.callbacks import Callback
from imagen.train.sampling import sample_batch
from imagen.train.setup import TrainingRun

BATCH, FEWEST = 32, 20


class Evaluation(Callback):
    """Measures `train.evaluate_images` samples every `train.evaluate_every` steps, by `train.evaluate_metrics`.

    Captions are held-out ones if there are any, always the same, with the same noise, and are compared with their own
    images. So few images give noisy, biased values, which compare steps of a run but not runs with published numbers.
    All ranks sample all images, because the ranks of a sharded network must sample together; the first measures them.
    """

    def on_start(self, run: TrainingRun) -> None:
        self.every = run.config.evaluate_every
        if self.every is None:
            return
        split = run.data.validation_split
        count = min(run.config.evaluate_images, len(run.data.dataset(split)))
        if count < FEWEST:
            raise UserError(f"train.evaluate_every needs {FEWEST} samples or more; the split {split} has {count}")
        size = min(BATCH, count)
        loader = run.data.validation_loader(size, 0, run.ranks.device, crop=None, flip=False)
        self._batches = list(islice(loader, count // size))
        self._metrics = [find_metric(name) for name in run.config.evaluate_metrics]
        self._extractors: dict[str, Extractor] = {}
        self._real: dict[str, np.ndarray] = {}
        names = dict.fromkeys(metric.extractor for metric in self._metrics)
        run.ranks.on_first(
            lambda: self._extractors.update({name: load_extractor(name, run.ranks.device) for name in names})
        )
        for name, extractor in self._extractors.items():
            self._real[name] = np.concatenate([extractor(as_rgb(batch.image)).numpy() for batch in self._batches])

    def on_interval(self, run: TrainingRun, step: int) -> None:
        with run.evaluating() as unet:
            images = [sample_batch(run, unet, batch) for batch in self._batches]
        if not run.ranks.is_first:
            return
        made = {
            name: np.concatenate([extractor(as_rgb(images_BCHW)).numpy() for images_BCHW in images])
            for name, extractor in self._extractors.items()
        }
        captions = [caption for batch in self._batches for caption in batch.captions]
        for metric in self._metrics:
            extractor = self._extractors[metric.extractor]
            text_ND = extractor.embed(captions).numpy() if isinstance(extractor, Clip) else None
            values = metric.measure(Features(self._real[metric.extractor], made[metric.extractor], text_ND))
            run.measurements |= {name: value.value for name, value in zip(metric.names, values, strict=True)}
