"""Inputs of a run: settings, packed images, pretrained weights. Opened before Prefect is imported."""

from dataclasses import dataclass

from flows.experiments.pretrained import Pretrained, find_pretrained
from model_code.data.cache import PackedDataset, open_dataset
from model_code.settings import load_settings
from model_code.tracking.provenance import hash_code
from model_code.training.run_folder import AnyConfig, RunRecord, RunResult, find_finished


@dataclass(frozen=True)
class RunInputs:
    """What a run is made from, opened once.

    Attributes:
        config: All settings.
        dataset: The packed images that it names.
        pretrained: Weights that it starts from; None for none.
        is_offline: True if the run is recorded in its folder, and not in MLflow.
    """

    config: AnyConfig
    dataset: PackedDataset
    pretrained: Pretrained | None
    is_offline: bool = False

    @property
    def record(self) -> RunRecord:
        """What makes runs the same, without a run id."""
        sha256 = self.pretrained.sha256 if self.pretrained else None
        return RunRecord(run_id="", data_checksum=self.dataset.checksum, config=self.config, pretrained_sha256=sha256)


def open_inputs(config: AnyConfig, *, is_offline: bool = False) -> RunInputs:
    """Open the images of a run and find the weights that it starts from.

    Raises:
        DataError: The data set is not there.
        TrainingError: The pretrained weights are not there.
    """
    settings = load_settings()
    dataset = open_dataset(config.dataset, settings.cache_dir)
    pretrained = find_pretrained(config, dataset, settings, is_offline=is_offline)
    return RunInputs(config, dataset, pretrained, is_offline)


def find_kept(inputs: RunInputs, *, is_silent: bool = False) -> RunResult | None:
    """Return the newest result of the same settings, images, pretrained weights, code and libraries, or None.

    It is read from the run folders: Prefect's own results would be pickles in the home, which run code when loaded. A
    run that MLflow does not hold can be neither reported nor released: it counts offline only.

    Args:
        inputs: What the run is made from.
        is_silent: True to print no line about runs that MLflow does not hold.

    Raises:
        TrackingError: MLflow does not answer.
    """

    def is_kept(run_id: str) -> bool:
        is_known = is_held(inputs, run_id)
        if not is_known and not is_silent:
            print(f"{inputs.config.recipe}  run {run_id} is not in MLflow any more and is not kept", flush=True)
        return is_known

    return find_finished(
        load_settings().checkpoints_dir, inputs.record, hash_code(), is_kept, is_offline=inputs.is_offline
    )


def is_held(inputs: RunInputs, run_id: str) -> bool:
    """Whether MLflow holds a run; an offline run needs none.

    Raises:
        TrackingError: MLflow does not answer.
    """
    if inputs.is_offline:
        return True
    from model_code.tracking.finished_runs import has_run  # MLflow takes seconds to import
    from model_code.tracking.outage import naming_errors
    from model_code.tracking.store import has_store, open_store

    settings = load_settings()
    with naming_errors(run_id):
        return has_store(settings) and has_run(open_store(settings), run_id)
