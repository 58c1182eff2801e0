"""Output of release, history and rollback."""

from flows.printing.summaries import ReleaseSummary
from serving.bundle.manifest import Calibration, Certificate, Variant
from serving.bundle.store import Change
from serving.listing import Form, find_terminal_width, fold_line, print_listing
from serving.printable import show


def print_release(release: ReleaseSummary, form: Form = "table", *, is_quiet: bool = False) -> None:
    """Print what was decided and why, the proof of each variant and, unless quiet, what to do next."""
    if form != "table":
        from flows.printing.records import describe_release

        print_listing((), [describe_release(release)], form)
        return
    manifest = release.manifest
    lines = [describe_decision(release)]
    if release.verdict is not None:
        is_passed_over = release.undone is not None and release.verdict.is_promoted
        lines.append(release.verdict.measured)
        if not is_passed_over:
            lines += [f"refused: {reason}" for reason in release.verdict.refusals]
        guessed = 1 / len(manifest.classes)
        if release.verdict.challenger_interval[0] <= guessed:
            lines.append(f"note: not proven better than guessing, which is right in {guessed:.4f} of the cases")
    if release.profile != "full":
        lines.append(f"note: a {release.profile} run, not the documented training")
    lines.append(f"{manifest.recipe}, run {manifest.run_id}")
    lines += [_describe_certificate(variant, one) for variant in manifest.variants for one in variant.certificates]
    lines += [
        f"{variant.precision} is not offered: {variant.problem}" for variant in manifest.variants if variant.problem
    ]
    if manifest.calibration is not None:
        lines += _describe_calibration(manifest.calibration)
    if release.is_champion and release.version is not None and not is_quiet:
        lines.append(f"next: darkroom serve, then darkroom predict IMAGE --model {manifest.name}")
    width = find_terminal_width()
    print("\n  ".join(fold_line(show(line), width) for line in lines), flush=True)


def describe_decision(release: ReleaseSummary) -> str:
    """Return what became of a release, in a line."""
    name, before = release.manifest.name, release.champion_before
    kept = "there is no champion" if before is None else f"version {before} stays champion"
    if release.version is None:
        would = "would become champion" if release.is_champion else f"would not be promoted: {kept}"
        if release.undone is not None:
            would += f"; it {_describe_rollback(release.undone)}"
        return f"{name}: dry run, nothing was registered; it {would}"
    if release.is_champion and release.version == before:
        return f"{name}: version {release.version} is champion already"
    if release.is_champion:
        forced = ", forced" if release.mode == "forced" else ""
        return f"{name}: version {release.version} is champion{forced}" + (
            f" (version {before} before)" if before else ""
        )
    if release.undone is not None:
        return (
            f"{name}: version {release.version} {_describe_rollback(release.undone)} and is not promoted again, "
            f"{kept}; --mode forced --why REASON promotes it"
        )
    return f"{name}: version {release.version} is registered but not promoted, {kept}"


def _describe_rollback(undone: Change) -> str:
    return f"was rolled back by {undone.by} at {undone.at} ({undone.why})"


def _describe_certificate(variant: Variant, certificate: Certificate) -> str:
    device = certificate.provider.removesuffix("ExecutionProvider")
    sizes = ", ".join(str(batch.batch_size) for batch in certificate.batches)
    text = (
        f"{variant.precision} on {device}: {certificate.top1_agreement:.2%} of {certificate.count} {certificate.split} "
        f"labels as PyTorch at batch {sizes}, probabilities within {certificate.max_difference:.1e}, accuracy "
        f"{certificate.accuracy:.4f} of {certificate.torch_accuracy:.4f}"
    )
    for timing in variant.timings:
        if timing.provider == certificate.provider:
            text += f", {timing.batches[-1].pictures_per_s:,.0f} images/s at batch {timing.batches[-1].batch_size}"
    return text if certificate.refusal is None else f"{text}; not offered: {certificate.refusal}"


def _describe_calibration(calibration: Calibration) -> list[str]:
    known, thresholds = calibration.reliability[-1], calibration.thresholds
    trial, selection = calibration.trial, thresholds.selections[-1]
    error = f"calibration error (ECE) on {known.split} {known.ece_before:.4f}"
    if trial is not None and trial.refusal is not None:
        fitted = "" if trial.fitted == 1 else f"the fitted one, {trial.fitted:.3f}, is not used, because "
        lines = [f"no temperature: {fitted}{trial.refusal}; {error}"]
    else:
        lines = [f"temperature {calibration.temperature:.3f}: {error} -> {known.ece_after:.4f}"]
    target = f"target error {thresholds.target_error:.0%} among accepted predictions"
    limits = [threshold for threshold in thresholds.per_class if threshold is not None]
    if not limits:
        return [*lines, f"{target}: no threshold is supported, every prediction is marked as uncertain"]
    accepted = f"{target}: {selection.answered / selection.count:.1%} of {selection.split} predictions accepted"
    if selection.answered:
        low, high = selection.error_interval
        accepted += f", {selection.wrong / selection.answered:.2%} of them wrong (95 % CI {low:.2%} to {high:.2%})"
    lines.append(accepted)
    if selection.answered == selection.count:
        lowest = f"lowest threshold {min(limits):.1%}"
        lines.append(f"note: every prediction is accepted ({lowest}); images of other kinds may be accepted too")
    return lines
