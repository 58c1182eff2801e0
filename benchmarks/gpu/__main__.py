"""Proof of the GPU path: `make gpu-proof`, or `python -m benchmarks.gpu [STAGE]... [--dry-run]`.

Each stage takes at most `--minutes`; repeated, it measures what is left. Figures lie in OUT/STAGE.json. Needs torch,
torchvision, numpy, Pillow, pydantic, safetensors and tqdm; `serving` also onnx, onnxscript, onnxruntime and scipy.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu import engines, page, trainings
from benchmarks.gpu import serving as serving_stage
from benchmarks.gpu.proof import Stage, describe
from model_code.settings import load_settings
from model_code.training.device import keep_freed_memory

STAGES = engines.STAGES | trainings.STAGES | serving_stage.STAGES


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stages; return 0, 1 where an entry failed, or 3 where a repetition has something left to measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(STAGES)}; all by default")
    parser.add_argument("--dry-run", action="store_true", help="tiny budgets, to try everything on any machine")
    parser.add_argument("--minutes", type=float, default=9, help="budget of a stage; default 9")
    parser.add_argument("--out", type=Path, help="folder of the figures and runs; default DARKROOM_HOME/gpu-proof")
    parser.add_argument("--pretrained", type=Path, help="file of torchvision's ImageNet weights of ResNet-18")
    parser.add_argument("--page", type=Path, nargs="?", const=page.PAGE, help="write the GPU part of this page as well")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.stages if name not in STAGES]
    if unknown or options.minutes <= 0:
        parser.error(f"no stage {', '.join(unknown)}" if unknown else "--minutes must be above 0")
    keep_freed_memory()
    settings = load_settings()
    with tempfile.TemporaryDirectory() as scratch:
        out = options.out or (Path(scratch) if options.dry_run else settings.home / "gpu-proof")
        left, failed = [], []
        for name in options.stages or STAGES:
            stage = Stage(name, out, options.dry_run, 60 * options.minutes, settings.cache_dir, options.pretrained)
            STAGES[name](stage)
            stage.write()
            _print_table(stage)
            left += [f"{name}: {entry}" for entry in stage.left]
            failed += [f"{name}: {entry}" for entry in stage.failed]
        if options.page:
            page.write_page(page.read_records(out, STAGES), STAGES, options.page)
    if left:
        print(f"left for a repetition of the command: {'; '.join(left)}")
    if failed:
        print(f"failed, a repetition tries again: {'; '.join(failed)}")
    return 1 if failed else 3 if left else 0


def _print_table(stage: Stage) -> None:
    print(f"\n{stage.name}{' (dry run)' if stage.is_dry else ''}")
    width = max(map(len, stage.entries), default=0)
    for entry, figures in stage.entries.items():
        print(f"  {entry:<{width}}  {describe(figures)}")


if __name__ == "__main__":
    raise SystemExit(main())
