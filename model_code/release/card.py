"""A version's model card in Markdown: what it is, how good, how fast, and what it must not be trusted with."""

from collections.abc import Iterator, Sequence

from model_code.markdown_text import escape, join_cells
from model_code.release.known_limits import list_limits
from model_code.release.verdict import ClassChange, Verdict
from serving.bundle.manifest import (
    BatchTiming,
    Calibration,
    Interval,
    Manifest,
    Selection,
    Thresholds,
    Timing,
    Variant,
)

# MLflow keeps a version's description in a column of 5,000 characters on PostgreSQL.
LONGEST_SUMMARY = 4900
BATCH_SIZES = (1, 8, 64)
PROVIDERS = {"CPUExecutionProvider": "CPU", "CUDAExecutionProvider": "CUDA"}
_LONGEST_VERDICT = 1500
_LONGEST_CELL = 160
_NOT_MEASURED = "not measured"


def write_card(manifest: Manifest, verdict: Verdict, version: str | None = None, profile: str = "full") -> str:
    """Return the whole card.

    Args:
        manifest: Manifest of the bundle.
        verdict: Of the gate on it.
        version: Its number in the registry; None before it has one.
        profile: Profile of the run: `full`, `smoke` or `custom`.
    """
    number = "" if version is None else f" version {version}"
    sections = [
        (f"# {escape(manifest.name)}{number}", _introduce(manifest, profile)),
        ("## Verdict", _describe_verdict(verdict)),
        ("## Data", _describe_data(manifest, verdict)),
        ("## Recipe", _describe_recipe(manifest, profile)),
        ("## Accuracy", _describe_accuracy(manifest, verdict)),
        ("## Classes", _describe_classes(verdict)),
        ("## Calibration", _describe_calibration(manifest)),
        ("## Certificates", _describe_certificates(manifest)),
        ("## Speed and memory", _describe_speed(manifest)),
        ("## Known limits", _list([escape(limit) for limit in list_limits(manifest, verdict, profile)])),
        ("## Provenance", _describe_provenance(manifest)),
    ]
    return "\n\n".join(f"{title}\n\n{text}" for title, text in sections) + "\n"


def summarise(manifest: Manifest, verdict: Verdict, profile: str = "full") -> str:
    """Return the short card, at most 4,900 characters: what, verdict, accuracy, variants, calibration, provenance.

    Long texts are cut at `...`; the whole card has them.

    Args:
        manifest: Manifest of the bundle.
        verdict: Of the gate on it.
        profile: Profile of the run: `full`, `smoke` or `custom`.
    """
    low, high = verdict.challenger_interval
    accuracy = f"Accuracy {verdict.challenger_accuracy:.4f} ({low:.4f} to {high:.4f}), {_count_images(verdict)}."
    parts = [
        _cut(_introduce(manifest, profile), 600),
        f"**Verdict:** {_cut(escape(verdict.summary), _LONGEST_VERDICT)}",
        accuracy,
        _table(
            ("variant", "agreement with PyTorch", "ms at batch 1", "images/s at batch 64", "offered"),
            [_summarise_variant(variant, provider) for variant, provider in _list_measured(manifest)],
        ),
        _summarise_calibration(manifest.calibration),
        _cut(_describe_provenance(manifest), 700),
    ]
    text = "\n\n".join(parts)
    return text if len(text) <= LONGEST_SUMMARY else text[: LONGEST_SUMMARY - 4].rsplit("\n", 1)[0] + "\n..."


def _introduce(manifest: Manifest, profile: str) -> str:
    how = "" if profile == "full" else f", `{escape(profile)}` profile"
    return (
        f"Labels an image with one of {len(manifest.classes)} classes. Recipe {escape(manifest.recipe)}{how}, trained "
        f"on {escape(manifest.dataset)}, images of {manifest.image_size} x {manifest.image_size} pixels."
    )


def _describe_verdict(verdict: Verdict) -> str:
    parts = [f"{escape(verdict.measured)}: **{'promoted' if verdict.is_promoted else 'not promoted'}**."]
    if verdict.refusals:
        parts.append(_list([escape(refusal) for refusal in verdict.refusals]))
    rules = verdict.rules
    latency = "no limit" if rules.max_latency_ms is None else f"at most {rules.max_latency_ms:g} ms"
    size = "no limit" if rules.max_size_bytes is None else f"at most {rules.max_size_bytes:,} bytes"
    by_accuracy = rules.metric == "accuracy"
    gain = f"above 0, at least {100 * rules.min_gain:g} points"
    p_value = "-" if verdict.p_value is None else f"{verdict.p_value:.2g}"
    rows = [
        ("difference of accuracy", _format_difference(verdict), gain)
        if by_accuracy
        else ("difference of macro-F1", _format_difference(verdict), f"{gain}, interval above 0"),
        ("images gained / lost", _format_changes(verdict), ""),
        ("McNemar p", p_value, f"below {rules.alpha:g}" if by_accuracy else ""),
        (
            "recall of a class",
            _format_worst_drop(verdict),
            f"falls by at most {100 * rules.max_class_drop:g} points, or p is at least {rules.alpha:g}",
        ),
        ("latency at batch 1", _format_latency(verdict.latency_ms), latency),
        ("the same of the champion", _format_latency(verdict.champion_latency_ms), ""),
        ("size", _NOT_MEASURED if verdict.size_bytes is None else f"{verdict.size_bytes:,} bytes", size),
    ]
    return "\n\n".join([*parts, _table(("what", "measured", "asked"), rows)])


def _format_difference(verdict: Verdict) -> str:
    if verdict.difference is None or verdict.difference_interval is None:
        return "no champion"
    low, high = verdict.difference_interval
    level = f"{100 * verdict.rules.confidence:g} %"
    return f"{100 * verdict.difference:+.2f} points ({level}: {100 * low:+.2f} to {100 * high:+.2f})"


def _format_changes(verdict: Verdict) -> str:
    return "no champion" if verdict.difference is None else f"{verdict.gained} / {verdict.lost}"


def _format_worst_drop(verdict: Verdict) -> str:
    if verdict.difference is None:
        return "no champion"
    worst = max(verdict.classes, key=lambda change: change.drop)
    if worst.drop <= 0:
        return "none fell"
    chance = _format_number(worst.adjusted_p_value, ".2g")
    return f"{escape(worst.label)}: {-100 * worst.drop + 0.0:+.2f} points (p = {chance} after Holm)"


def _format_latency(latency_ms: float | None) -> str:
    return _NOT_MEASURED if latency_ms is None else f"{latency_ms:,.2f} ms"


def _describe_data(manifest: Manifest, verdict: Verdict) -> str:
    return _list(
        [
            f"data set: {escape(manifest.dataset)}",
            f"sha256: `{manifest.data_checksum}`",
            f"read as: short side resized to {manifest.resize_size}, the middle {manifest.image_size} x "
            f"{manifest.image_size} pixels, RGB",
            f"learned from {manifest.pictures.get('train', 0)} images, best epoch chosen by "
            f"{manifest.pictures.get('validation', 0)}, measured on: {_count_images(verdict)}",
            f"{len(manifest.classes)} classes: {escape(', '.join(manifest.classes))}",
        ]
    )


def _describe_recipe(manifest: Manifest, profile: str) -> str:
    settings = ", ".join(f"{name}={value}" for name, value in sorted(manifest.settings.items()) if value is not None)
    return _list(
        [
            f"recipe: {escape(manifest.recipe)}",
            f"profile: {escape(profile)}",
            f"settings: {escape(settings)}",
            f"run: `{manifest.run_id}`",
        ]
    )


def _describe_accuracy(manifest: Manifest, verdict: Verdict) -> str:
    tested = manifest.accuracy_fraction
    ours, theirs = (_format_number(one, ".4f") for one in (verdict.challenger_macro_f1, verdict.champion_macro_f1))
    share = _format_share(verdict.challenger_accuracy, verdict.challenger_interval)
    rows = [
        ("this model", verdict.split, share, ours),
        ("in training", "test", _NOT_MEASURED if tested is None else f"{tested:.4f}", "-"),
    ]
    if verdict.champion_accuracy is not None:
        champion = f"champion, version {verdict.champion_version}"
        rows.append((champion, verdict.split, f"{verdict.champion_accuracy:.4f}", theirs))
    table = _table(("what", "images", "accuracy", "macro-F1"), rows)
    return f"{table}\n\nIntervals are 95 % Clopper-Pearson, over {_count_images(verdict)}."


def _describe_classes(verdict: Verdict) -> str:
    columns = ("class", "images", "recall", "champion", "gained", "lost", "p that it got worse", "after Holm")
    return _table(columns, [_describe_class(change, verdict.difference is not None) for change in verdict.classes])


def _describe_class(change: ClassChange, has_champion: bool) -> tuple[str, ...]:
    return (
        escape(change.label),
        str(change.count),
        _format_number(change.challenger_accuracy, ".4f"),
        _format_number(change.champion_accuracy, ".4f"),
        str(change.gained) if has_champion else "-",
        str(change.lost) if has_champion else "-",
        _format_number(change.p_value, ".2g"),
        _format_number(change.adjusted_p_value, ".2g"),
    )


def _describe_calibration(manifest: Manifest) -> str:
    found = manifest.calibration
    if found is None:
        return f"{_NOT_MEASURED.capitalize()}: the probabilities are those of the training, without a temperature."
    reliability = [
        (
            one.split,
            str(one.count),
            _format_ece(one.ece_before, one.ece_before_interval),
            _format_ece(one.ece_after, one.ece_after_interval),
        )
        for one in found.reliability
    ]
    selections = [
        *_describe_selections("used", found.thresholds.selections),
        *_describe_selections("one for all", found.thresholds.selections_overall),
    ]
    return "\n\n".join(
        [
            _describe_temperature(found),
            _table(("split", "images", "ECE without it", "ECE with it"), reliability),
            _describe_promise(found.thresholds),
            _table(("thresholds", "split", "images", "accepted", "of these wrong"), selections),
            _table(*_describe_thresholds(manifest.classes, found.thresholds)),
        ]
    )


def _describe_temperature(calibration: Calibration) -> str:
    trial = calibration.trial
    if trial is None:
        return (
            f"Temperature {calibration.temperature:.4f}, fitted on validation images without cross-validation; it is "
            "part of the graph."
        )
    if trial.refusal is None:
        text = f"Temperature {trial.fitted:.4f}, fitted on validation images; it is part of the graph."
    else:
        text = f"No temperature (1): the fitted one, {trial.fitted:.4f}, is not used, because {trial.refusal}."
    if trial.nll_gain is None or trial.ece_change is None:
        return text
    return (
        f"{text} {trial.folds}-fold cross-validation: negative log-likelihood "
        f"{_format_change(-trial.nll_gain, _negate(trial.nll_gain_interval))}, ECE "
        f"{_format_change(trial.ece_change, trial.ece_change_interval)}."
    )


def _describe_promise(thresholds: Thresholds) -> str:
    target = f"Target error {_percent(thresholds.target_error)} among accepted predictions"
    pooled = "none is supported" if thresholds.overall is None else f"{thresholds.overall:.4f}"
    if thresholds.confidence is None:
        return f"{target}, without a margin. One threshold for all classes: {pooled}."
    if not any(threshold is not None for threshold in thresholds.per_class):
        return f"{target}: no threshold. The validation images support none, so no prediction is accepted."
    return (
        f"{target}. With {100 * thresholds.confidence:g} % confidence it holds for each class with a threshold of its "
        "own, for the classes of the pooled threshold taken together, and so for all accepted predictions. It may not "
        f"hold for a single class of the pooled threshold. Pooled threshold: {pooled}. The confidence is that of fp32 "
        "on images like those of validation, on which the epoch was chosen too."
    )


def _describe_thresholds(
    classes: Sequence[str], thresholds: Thresholds
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the head and the rows of the table of thresholds."""
    limits = thresholds.per_class
    rows = [(escape(label), _format_threshold(limit)) for label, limit in zip(classes, limits, strict=True)]
    if thresholds.confidence is None:
        return ("predicted class", "threshold"), [*rows]
    counted = f"{thresholds.by_class[0].split} predictions"
    head = ("predicted class", "threshold", "target error holds for", counted, "accepted", "of these wrong")
    scopes = [
        "-" if limit is None else "this class" if is_own else "the pool"
        for limit, is_own in zip(limits, thresholds.is_own, strict=True)
    ]
    counts = [one[2:] for one in _describe_selections("", thresholds.by_class)]
    return head, [(*row, scope, *more) for row, scope, more in zip(rows, scopes, counts, strict=True)]


def _describe_selections(name: str, selections: Sequence[Selection]) -> Iterator[tuple[str, ...]]:
    for one in selections:
        share = one.answered / one.count if one.count else 0.0
        wrong = _format_wrong(one) if one.answered else "-"
        yield name, one.split, str(one.count), f"{one.answered} ({_percent(share)})", wrong


def _format_wrong(selection: Selection) -> str:
    low, high = selection.error_interval
    share = _percent(selection.wrong / selection.answered)
    return f"{selection.wrong} ({share}, 95 % CI {_percent(low)} to {_percent(high)})"


def _format_threshold(threshold: float | None) -> str:
    return "no threshold" if threshold is None else f"{threshold:.4f}"


def _format_ece(error: float, interval: Interval | None) -> str:
    return f"{error:.4f}" if interval is None else f"{error:.4f} (95 % CI {interval[0]:.4f} to {interval[1]:.4f})"


def _format_change(change: float, interval: Interval | None) -> str:
    return f"{change:+.4f}" if interval is None else f"{change:+.4f} (95 % CI {interval[0]:+.4f} to {interval[1]:+.4f})"


def _negate(interval: Interval | None) -> Interval | None:
    return None if interval is None else (-interval[1], -interval[0])


def _describe_certificates(manifest: Manifest) -> str:
    """Return onnxruntime against PyTorch: every variant on every provider that was present."""
    columns = (
        *("variant", "provider", "images", "PyTorch", "onnxruntime", "agreement"),
        *("largest difference of a probability", "mean difference", "wrong / accepted", "verdict"),
    )
    rows = [
        (
            variant.precision,
            _name_provider(found.provider),
            f"{found.count} {escape(found.split)}",
            _format_share(found.torch_accuracy, found.torch_accuracy_interval),
            _format_share(found.accuracy, found.accuracy_interval),
            _format_share(found.top1_agreement, found.agreement_interval, 5),
            f"{found.max_difference:.2g}",
            f"{max(batch.mean_difference for batch in found.batches):.2g}",
            _NOT_MEASURED if found.selection is None else f"{found.selection.wrong} / {found.selection.answered}",
            "within the limits" if found.refusal is None else f"refused: {escape(found.refusal)}",
        )
        for variant in manifest.variants
        for found in variant.certificates
    ]
    batches = sorted({b.batch_size for v in manifest.variants for c in v.certificates for b in c.batches})
    tested = f"The worst of the batch sizes {', '.join(map(str, batches))}; intervals are 95 % Clopper-Pearson."
    files = [
        f"{variant.precision}: not offered, {escape(variant.problem)}"
        if variant.problem is not None
        else f"{variant.precision}: {variant.size_bytes:,} bytes, sha256 `{variant.sha256}`, "
        + ("not offered" if variant.file is None else f"`{variant.file}`, opset {manifest.opset}")
        for variant in manifest.variants
    ]
    return "\n\n".join([_table(columns, rows), tested if batches else f"{_NOT_MEASURED}.", _list(files)])


def _describe_speed(manifest: Manifest) -> str:
    columns = ("variant", "on", "batch", "median ms", "p99 ms", "images/s", "host memory", "offered")
    rows = [
        row
        for variant, provider in _list_measured(manifest)
        for row in _describe_timing(variant, provider, _find_timing(variant, provider))
    ]
    return "\n\n".join([_table(columns, rows), *_list_unmeasured(manifest)])


def _describe_timing(variant: Variant, provider: str, timing: Timing | None) -> Iterator[tuple[str, ...]]:
    offered = "yes" if variant.is_offered(provider) else "no"
    by_size = {} if timing is None else {batch.batch_size: batch for batch in timing.batches}
    machine = "" if timing is None else f": {escape(timing.machine)}, {timing.threads} threads"
    memory = "-" if timing is None else f"{timing.peak_memory_bytes / 2**20:,.0f} MiB"
    for size in sorted({*BATCH_SIZES, *by_size}):
        yield (
            variant.precision,
            _name_provider(provider) + machine,
            str(size),
            *_format_batch(by_size.get(size)),
            memory,
            offered,
        )


def _format_batch(batch: BatchTiming | None) -> tuple[str, str, str]:
    if batch is None:
        return _NOT_MEASURED, "-", "-"
    return f"{batch.median_ms:,.2f}", f"{batch.p99_ms:,.2f}", f"{batch.pictures_per_s:,.0f}"


def _list_unmeasured(manifest: Manifest) -> list[str]:
    """Return a sentence for each provider on which nothing was measured."""
    present = {provider for _, provider in _list_measured(manifest)}
    return [
        f"{name}: {_NOT_MEASURED}, there was no {name} device at the release."
        for provider, name in PROVIDERS.items()
        if provider not in present
    ]


def _describe_provenance(manifest: Manifest) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in sorted(manifest.versions.items()))
    return _list(
        [
            f"run `{manifest.run_id}`",
            f"data sha256 `{manifest.data_checksum}`",
            f"git `{manifest.git_sha}`",
            f"model sha256 `{manifest.fp32.sha256}`",
            f"created {escape(manifest.created)}",
            escape(versions),
        ]
    )


def _summarise_variant(variant: Variant, provider: str) -> tuple[str, ...]:
    certificates = [found for found in variant.certificates if found.provider == provider]
    agreement = f"{min(found.top1_agreement for found in certificates):.5f}" if certificates else _NOT_MEASURED
    timing = _find_timing(variant, provider)
    by_size = {} if timing is None else {batch.batch_size: batch for batch in timing.batches}
    refusals = "; ".join(found.refusal for found in certificates if found.refusal is not None)
    return (
        f"{variant.precision}, {_name_provider(provider)}",
        agreement,
        f"{by_size[1].median_ms:,.2f}" if 1 in by_size else _NOT_MEASURED,
        f"{by_size[64].pictures_per_s:,.0f}" if 64 in by_size else _NOT_MEASURED,
        "yes" if variant.is_offered(provider) else f"no: {_cut(escape(refusals), _LONGEST_CELL)}" if refusals else "no",
    )


def _summarise_calibration(calibration: Calibration | None) -> str:
    if calibration is None:
        return f"Calibration: {_NOT_MEASURED}."
    is_used = calibration.temperature != 1
    errors = ", ".join(
        (f"{one.ece_before:.4f} -> " if is_used else "")
        + f"{_format_ece(one.ece_after, one.ece_after_interval)} on {one.split}"
        for one in calibration.reliability
    )
    given = [
        f"{_percent(one.answered / one.count)} of {one.split} predictions accepted, {_format_wrong(one)} of these wrong"
        for one in calibration.thresholds.selections
        if one.answered
    ]
    target = f"target error {_percent(calibration.thresholds.target_error)} among accepted predictions"
    parts = [errors, target, *(given or ["no threshold is supported, every prediction is marked as uncertain"])]
    temperature = f"temperature {calibration.temperature:.4f}" if is_used else "no temperature"
    return f"Calibration: {temperature}, ECE {'; '.join(parts)}."


def _list_measured(manifest: Manifest) -> list[tuple[Variant, str]]:
    """Return each variant with each provider that it has a certificate or a timing on."""
    return [
        (variant, provider)
        for variant in manifest.variants
        for provider in dict.fromkeys(
            [
                *(certificate.provider for certificate in variant.certificates),
                *(timing.provider for timing in variant.timings),
            ]
        )
    ]


def _find_timing(variant: Variant, provider: str) -> Timing | None:
    return next((timing for timing in variant.timings if timing.provider == provider), None)


def _name_provider(provider: str) -> str:
    return PROVIDERS.get(provider, escape(provider))


def _count_images(verdict: Verdict) -> str:
    return f"{verdict.count} {escape(verdict.split)} image{'s' * (verdict.count != 1)}"


def _format_share(share: float, interval: Interval, decimals: int = 4) -> str:
    return f"{share:.{decimals}f} ({interval[0]:.{decimals}f} to {interval[1]:.{decimals}f})"


def _format_number(number: float | None, digits: str) -> str:
    return "-" if number is None else f"{number:{digits}}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join([join_cells(columns), join_cells(["---"] * len(columns)), *map(join_cells, rows)])


def _list(items: Sequence[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 4]} ..."
