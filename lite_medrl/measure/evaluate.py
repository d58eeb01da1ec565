"""Puts the questions of a benchmark to a model under a protocol: with their image, a grey one, another one.

The three greedy answers to a question are drawn in one pass: prompts that see one image, as their own or as
another's, are branches of one tree. Answers that are sampled see the question's own image. Each answer comes
back as a row for answers.jsonl, the rows of a question together.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lite_medrl.data.answers import PUBLISHED, has_format, judge, parse
from lite_medrl.data.reading.verdict import AnswerType, Verdict
from lite_medrl.measure.protocols import Protocol
from lite_medrl.measure.shown import Exchange, Shown
from lite_medrl.model.choices import option_logps
from lite_medrl.model.encode import encode_prompts
from lite_medrl.model.generate import Generator, Sampling, generate
from lite_medrl.model.prompt_length import check_prompt_lengths
from lite_medrl.types import LETTERS, Sample

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answerer:
    """The model that is asked, the protocol, and how its answers are drawn.

    `batch_size`: answers drawn at once.
    """

    model: Any
    processor: Any
    protocol: Protocol
    batch_size: int = 256
    seed: int = 0
    generator: Generator = "grouped"
    max_cache_gib: float | None = None


@dataclass(frozen=True, slots=True)
class Posed:
    """A question as it is put: in the protocol's words, with the image that is shown."""

    sample: Sample
    shown: Shown
    put: Sample


def evaluate(
    answerer: Answerer,
    samples: Sequence[Sample],
    exchange: Exchange,
    *,
    shown: Sequence[Shown],
    part: Callable[[Sample], str] = lambda sample: "",
) -> Iterator[list[Row]]:
    """The rows of a few questions at a time: for each its greedy answers by image, then the sampled ones.

    Args:
        samples: questions to ask; open ones are passed over where the protocol chooses among letters.
        exchange: which other image is shown; a question without one has no "shuffled" row.
        part: which part of the benchmark a question belongs to.
    """
    protocol = answerer.protocol
    asked = [s for s in exchange.arranged(samples) if s.options or not protocol.choose]
    together = max(1, answerer.batch_size // max(len(shown), protocol.num_samples))
    for start in range(0, len(asked), together):
        batch = asked[start : start + together]
        asked_Q = [posed(protocol, sample, shown, exchange) for sample in batch]
        greedy = iter(greedy_texts(answerer, [one for ones in asked_Q for one in ones]))
        rows: list[Row] = []
        for ones, texts in zip(asked_Q, sampled_texts(answerer, batch), strict=True):
            for one, (said, more) in zip(ones, greedy, strict=False):
                rows.append(whole_row(one, said, protocol, part(one.sample)) | more)
            rows += [short_row(ones[0].sample, i, text, protocol) for i, text in enumerate(texts, 1)]
        yield rows


def check_lengths(
    loaded: Any, samples: Sequence[Sample], protocol: Protocol, exchange: Exchange, shown: Sequence[Shown]
) -> None:
    """DataError for the first question whose prompt, with any image it is asked with, fills the context."""
    put = [one.put for sample in samples for one in posed(protocol, sample, shown, exchange)]
    check_prompt_lengths(loaded.model, loaded.processor, put, instruction="", system=protocol.system)


def posed(protocol: Protocol, sample: Sample, shown: Sequence[Shown], exchange: Exchange) -> list[Posed]:
    """The question once for every image that is shown with it."""
    put = replace(sample, question=protocol.words(sample), options=())
    other = replace(put, images=exchange.other[sample.images])
    return [
        Posed(sample, one, other if one == "shuffled" else put)
        for one in shown
        if one != "shuffled" or exchange.possible(sample)
    ]


def greedy_texts(answerer: Answerer, asked: Sequence[Posed]) -> list[tuple[str, Row]]:
    """The greedy answer to each, or the likeliest letter; with it what else its row tells."""
    inputs = encoded(answerer, [one.put for one in asked], [one.shown == "blank" for one in asked])
    if answerer.protocol.choose:
        letters_Q = [LETTERS[: len(one.sample.options)] for one in asked]
        logps_Q = option_logps(answerer.model, answerer.processor, inputs, letters_Q)
        return [(LETTERS[logps.index(max(logps))], {"option_logps": logps}) for logps in logps_Q]
    found = generate(
        answerer.model,
        answerer.processor,
        inputs,
        num_generations=1,
        sampling=Sampling(answerer.protocol.max_new_tokens, temperature=0.0, stop=answerer.protocol.stop),
        generator=answerer.generator,
        max_cache_gib=answerer.max_cache_gib,
    )
    return [(group[0].text, {}) for group in found]


def sampled_texts(answerer: Answerer, samples: Sequence[Sample]) -> list[list[str]]:
    """The protocol's sampled answers to each question; their streams belong to the seed and the id."""
    protocol = answerer.protocol
    asked = [s for s in samples if samples_of(protocol, s)]
    if not asked:
        return [[] for _ in samples]
    put = [replace(s, question=protocol.words(s), options=()) for s in asked]
    found = generate(
        answerer.model,
        answerer.processor,
        encoded(answerer, put, [False] * len(put)),
        num_generations=protocol.num_samples,
        sampling=Sampling(
            protocol.max_new_tokens,
            protocol.temperature,
            protocol.top_p,
            protocol.top_k,
            stop=protocol.stop,
        ),
        seed=answerer.seed,
        keys_P=[zlib.crc32(s.id.encode()) for s in asked],
        generator=answerer.generator,
        max_cache_gib=answerer.max_cache_gib,
    )
    texts = iter([completion.text for completion in group] for group in found)
    return [next(texts) if samples_of(protocol, s) else [] for s in samples]


def samples_of(protocol: Protocol, sample: Sample) -> int:
    """How many answers to a question are sampled: the protocol's number, none to an open one."""
    return protocol.num_samples if sample.options else 0


def encoded(answerer: Answerer, put: Sequence[Sample], blank: Sequence[bool]) -> dict[str, Any]:
    """Model inputs of questions whose text is complete already."""
    device = next(answerer.model.parameters()).device
    system = answerer.protocol.system
    return encode_prompts(answerer.processor, put, instruction="", system=system, blank=blank, device=device)


def short_row(sample: Sample, number: int, text: str, protocol: Protocol, shown: Shown = "real") -> Row:
    """What an answer is and how the protocol reads it; number 0 is greedy, 1 and more are sampled.

    "score" is None where the protocol leaves the answer out of its mean.
    """
    verdict = verdict_of(sample, text, protocol)
    reading = parse(text, options=sample.options or None, profile=protocol.profile)
    parsed, failure = reading.value, reading.failure
    if is_closed(sample, protocol) and sample.answer_type == "closed":  # a rule that knows no options
        parsed = sample.answer if verdict.correct else verdict.reading
        failure = None if parsed else "no_answer"
    return {
        "id": sample.id,
        "shown": shown,
        "number": number,
        "text": text,
        "parsed": parsed,
        "failure": failure,
        "correct": verdict.correct,
        "score": verdict.score if verdict.counted else None,
    }


def whole_row(one: Posed, text: str, protocol: Protocol, part: str) -> Row:
    """A greedy answer with its question, and how our own rule reads it."""
    sample, options = one.sample, one.sample.options or None
    row = short_row(sample, 0, text, protocol, one.shown)
    return row | {
        "closed": is_closed(sample, protocol),
        "has_format": has_format(text),
        "lite_v1": judge(text, sample.answer, options=options).correct,
        "parts": dict(verdict_of(sample, text, protocol).parts),
        "part": part,
        "question": sample.question,
        "options": list(sample.options),
        "answer": sample.answer,
        "kind": sample.kind,
        "modality": sample.modality,
        "source": sample.source,
        "split": sample.split,
    }


def verdict_of(sample: Sample, text: str, protocol: Protocol) -> Verdict:
    """The protocol's verdict, by the set's own word on what is closed where the rule is a published one."""
    kind: AnswerType | None = None
    if protocol.profile in PUBLISHED and sample.answer_type == "closed":
        kind = "closed"
    return judge(
        text, sample.answer, options=sample.options or None, answer_type=kind, profile=protocol.profile
    )


def is_closed(sample: Sample, protocol: Protocol) -> bool:
    """Whether an answer is right or wrong to this protocol: options, or a published rule for closed ones."""
    return bool(sample.options) or (sample.answer_type == "closed" and protocol.profile in PUBLISHED)
