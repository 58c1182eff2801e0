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


def find_kept(inputs: RunInputs) -> RunResult | None:
    """Return the newest result of the same settings, images, pretrained weights, code and libraries, or None.

    It is read from the run folders: Prefect's own results would be pickles in the home, which run code when loaded.
    """
    return find_finished(load_settings().checkpoints_dir, inputs.record, hash_code(), is_offline=inputs.is_offline)
