"""Check stored text embeddings: encoder, values, and whether different captions have different embeddings."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from imagen.data.embed.sidecar import caption_hash, first_captions, from_bf16_bits, sidecar_path
from imagen.data.shards.dataset import ShardedDataset
from imagen.data.shards.inspect import spread
from imagen.data.shards.mapped import MappedTensors
from imagen.doctor.finding import Finding, Measured, Numbers, Severity, Skip
from imagen.doctor.subject import Subject
from imagen.errors import UserError
from imagen.text.config import EMBEDDED_ENCODER, TextConfig
from imagen.text.encoder import load_text_encoder
from imagen.text.protocol import Encoder

READ, ENCODED = 64, 4  # captions per split whose embeddings are read, and encoded again
SAME = 1e-3  # mean distance of embeddings of different captions, relative to their norm
OTHER = 0.2  # distance of stored and fresh embeddings; rounding to bfloat16 gives 0.002, another number format 0.02
BROKEN = 0.01  # tolerated share


class StoredEmbeddings:
    """Judge the embeddings beside the shards."""

    name, title, slow = "embeddings", "stored embeddings: encoder and values", False
    finds = (
        "embeddings-wrong-encoder",
        "embeddings-missing",
        "embeddings-stale",
        "embeddings-not-finite",
        "embeddings-zero",
        "embeddings-equal",
    )

    def __call__(self, subject: Subject) -> Iterator[Measured]:
        if subject.stages and subject.text is None:
            raise Skip("no stage reads text")
        if subject.experiment is not None and subject.experiment.data.on_the_fly:
            raise Skip("the run encodes captions while it trains")
        seen = False
        for where, dataset in subject.datasets.items():
            found = _encoders(dataset)
            if subject.text is not None:
                wanted = subject.text
                shards = sum(sidecar_path(dataset.tar_path(s), wanted).exists() for s in range(len(dataset.shards)))
                if shards < len(dataset.shards):
                    seen = True
                    yield _missing(where, wanted, list(found), shards, len(dataset.shards))
                    if not shards:
                        continue
                found = {key: text for key, text in found.items() if text == wanted or _key(text) == _key(wanted)}
            for text in found.values():
                seen = True
                yield self._judge(subject, where, dataset, text)
        if not seen:
            raise Skip("there are no stored embeddings (`imagen data encode` stores them)")

    def _judge(self, subject: Subject, where: str, dataset: ShardedDataset, text: TextConfig) -> Measured:
        chosen = spread(READ // (2 if subject.quick else 1), len(dataset))
        captions, embeddings, stale = [], [], 0
        for i in subject.each(chosen, f"{where}: embeddings"):
            caption = dataset.caption(i)
            tokens_LD = _stored(dataset, i, text, caption)
            if tokens_LD is None:
                stale += 1
                continue
            captions.append(caption)
            embeddings.append(tokens_LD)
        finite = [bool(tokens_LD.isfinite().all()) for tokens_LD in embeddings]
        zero = [not bool(tokens_LD.any()) for tokens_LD in embeddings]
        good = [i for i in range(len(embeddings)) if finite[i] and not zero[i] and captions[i]]
        distance = _distance([captions[i] for i in good], [embeddings[i] for i in good])
        numbers: Numbers = {"encoder": text.encoder, "embeddings": len(embeddings)}
        numbers |= {"stale": stale, "not_finite": finite.count(False), "zero": zero.count(True)}
        if distance is not None:
            numbers["distance"] = round(distance, 4)
        findings = []

        def find(name: str, explanation: str, remedy: str, severity: Severity = "problem") -> None:
            findings.append(
                Finding(
                    name=name,
                    severity=severity,
                    where=where,
                    numbers=numbers,
                    explanation=explanation,
                    remedy=remedy,
                )
            )

        again = f"Delete the *.text.safetensors files and run `imagen data encode SHARDS --encoder {text.encoder}`."
        if stale > BROKEN * len(chosen):
            find(
                "embeddings-stale",
                f"{stale} of {len(chosen)} embeddings are of other captions than the shards have now.",
                again,
            )
        if finite.count(False) > BROKEN * len(embeddings):
            find(
                "embeddings-not-finite",
                f"{finite.count(False)} of {len(embeddings)} embeddings contain NaN or infinity: every step with one "
                "is skipped.",
                f"{again} Encode in float32 (--device cpu) if it happens again.",
            )
        if zero.count(True) > max(BROKEN, captions.count("") / max(1, len(captions))) * len(embeddings):
            find(
                "embeddings-zero",
                f"{zero.count(True)} of {len(embeddings)} embeddings are zero: these captions look like no caption.",
                again,
            )
        if distance is not None and distance < SAME:
            find(
                "embeddings-equal",
                f"Different captions have the same embedding (distance {distance:.1g} of their norm): the network "
                "cannot tell prompts apart.",
                again,
            )
        error = (
            None
            if not good or "embeddings-equal" in {each.name for each in findings}
            else self._error(
                subject, text, [captions[i] for i in good[:ENCODED]], [embeddings[i] for i in good[:ENCODED]]
            )
        )
        if error is not None:
            numbers["distance_from_encoder"] = round(error, 4)
            if error > OTHER:
                find(
                    "embeddings-wrong-encoder",
                    f"The files name {text.encoder}, but its embeddings of the same captions differ by {error:.0%}: "
                    "another encoder or revision wrote these.",
                    again,
                )
        return Measured(where=where, numbers=numbers, findings=tuple(findings))

    def _error(self, subject: Subject, text: TextConfig, captions: list[str], stored: list[Tensor]) -> float | None:
        """Return the relative distance of stored embeddings from those of the encoder; None if it is not at hand.

        The packaged encoder is loaded; others, which may have gigabytes, only if the subject was given one.
        """
        encoder: Encoder | None = subject.encoder
        if encoder is None:
            if text.encoder != EMBEDDED_ENCODER:
                return None
            try:
                encoder = load_text_encoder(text)
            except UserError:
                return None
        fresh = encoder.encode(captions)
        errors = [
            float((a - b).norm() / b.norm()) if a.shape == b.shape else 1.0 for a, b in zip(stored, fresh, strict=True)
        ]
        return sorted(errors)[len(errors) // 2]


def _missing(where: str, wanted: TextConfig, found: list[tuple[str, ...]], shards: int, total: int) -> Measured:
    """Report shards without embeddings of the encoder that the network reads."""
    others = sorted({f"{encoder} (width {width}, {tokens} tokens)" for encoder, _, tokens, width in found})
    others = [
        name for name in others if not name.startswith(f"{wanted.encoder} (width {wanted.width}, {wanted.max_tokens} ")
    ]
    numbers: Numbers = {"shards": total, "with_embeddings": shards, "encoder": wanted.encoder, "stored": others}
    wrong = bool(others) and shards == 0
    finding = Finding(
        name="embeddings-wrong-encoder" if wrong else "embeddings-missing",
        severity="problem",
        where=where,
        numbers=numbers,
        explanation=f"{shards} of {total} shards have embeddings of {wanted.encoder} (width {wanted.width}, "
        f"{wanted.max_tokens} tokens)" + (f"; they hold those of {', '.join(others)}." if others else "."),
        remedy=f"Run `imagen data encode SHARDS --encoder {wanted.encoder} --max-tokens {wanted.max_tokens}`.",
    )
    return Measured(where=where, numbers=numbers, findings=(finding,))


def _key(text: TextConfig) -> tuple[str, ...]:
    return (text.encoder, text.revision, str(text.max_tokens), str(text.width))


def _encoders(dataset: ShardedDataset) -> dict[tuple[str, ...], TextConfig]:
    """Return the encoders that the sidecars of a split name, by (encoder, revision, token limit, width)."""
    found = {}
    for shard in range(len(dataset.shards)):
        for name in dataset.beside(shard):
            if not name.endswith(".text.safetensors"):
                continue
            dataset.fetch([name])
            header = _open(dataset.folder / name, dataset).metadata
            try:
                text = TextConfig(
                    encoder=header["encoder"],
                    revision=header["revision"],
                    max_tokens=int(header["max_tokens"]),
                    width=int(header["width"]),
                )
            except (KeyError, ValueError):  # of an earlier version
                continue
            found[_key(text)] = text
    return found


def _open(path: Path, dataset: ShardedDataset) -> MappedTensors:
    return MappedTensors(path, f"run `imagen data encode {dataset.root}` again")


def _stored(dataset: ShardedDataset, i: int, text: TextConfig, caption: str) -> Tensor | None:
    """Return the embedding [L, D] of a sample's first caption; None if that of another caption is stored."""
    shard, row = dataset.locate(i)
    path = sidecar_path(dataset.tar_path(shard), text)
    if not path.exists():
        return None
    sidecar = _open(path, dataset)
    starts = first_captions(sidecar)
    if row >= len(starts) - 1 or int(sidecar["caption_hash"][starts[row]]) != caption_hash(caption):
        return None
    first, last = sidecar["offsets"][starts[row] : starts[row] + 2].tolist()
    return from_bf16_bits(sidecar.rows("tokens", first, last))


def _distance(captions: list[str], embeddings: list[Tensor]) -> float | None:
    """Return the mean distance of the mean tokens of different captions, relative to their norm; None without two."""
    pooled = {caption: tokens_LD.mean(0) for caption, tokens_LD in zip(captions, embeddings, strict=True)}
    if len(pooled) < 2:
        return None
    pooled_ND = torch.stack(list(pooled.values()))
    centred_ND = pooled_ND - pooled_ND.mean(0)
    return float(centred_ND.norm(dim=1).mean() / pooled_ND.norm(dim=1).mean().clamp(min=1e-30))
