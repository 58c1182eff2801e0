"""Parent runs in MLflow: a `train-all` above its runs, a sweep above its trials, one run above the seeds of a recipe.

A parent trains nothing. It has neither the tags `recipe` and `kind` nor metrics, by which runs are looked up.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from mlflow import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from model_code.settings import Settings
from model_code.tracking.mlflow_log import send_briefly
from model_code.tracking.outage import MLFLOW_ERRORS
from model_code.tracking.store import EXPERIMENT, open_store
from model_code.training.run_config import RunConfig

GROUP_TAG = "group"
KEY_TAG = "group_key"


class Study:
    """Parents of the runs of one `train-all`; `open_study` makes one.

    A parent is made with the first run that needs it: where every run is kept, nothing is recorded. The parent of an
    interrupted or failed study is taken up again.

    Args:
        settings: Addresses of the store.
        configs: Settings of every run.
    """

    def __init__(self, settings: Settings, configs: Sequence[RunConfig]) -> None:
        self._settings, self._configs = settings, configs
        self._client: MlflowClient | None = None
        self._key = hashlib.sha256("".join(sorted(one.sha256() for one in configs)).encode()).hexdigest()
        self._seeds = Counter(map(_hash_without_seed, configs))
        self._parents: dict[str, str] = {}
        self._failed: set[str] = set()

    def open_parent(self, config: RunConfig) -> str | None:
        """Return the parent of a run: that of its recipe's seeds where there are several, else the study's.

        None where MLflow does not answer: the training says so, and waits for it.
        """
        with suppress(*MLFLOW_ERRORS):
            return self._open_parent(config)
        return None

    def open(self, group: str, key: str, title: str, parent: str | None = None, *, is_continued: bool = False) -> str:
        """Return the parent run of a key, made where there is none.

        Args:
            group: Kind of parent.
            key: Identity.
            title: Name of the run.
            parent: Run above it.
            is_continued: True if a finished one is taken up again, too.
        """
        if key not in self._parents:
            client = self._client = self._client or open_store(self._settings)
            experiment = client.get_experiment_by_name(EXPERIMENT)
            assert experiment is not None, "open_store makes the experiment"
            above = {} if parent is None else {MLFLOW_PARENT_RUN_ID: parent}
            wanted = {GROUP_TAG: group, KEY_TAG: key, **above}
            conditions = [f"tags.`{name}` = '{value}'" for name, value in wanted.items()]
            if not is_continued:
                conditions.append("attributes.status != 'FINISHED'")
            query = " AND ".join(conditions)
            found = client.search_runs([experiment.experiment_id], query, max_results=1)
            if found:
                client.update_run(found[0].info.run_id, status="RUNNING")
            run = found[0] if found else client.create_run(experiment.experiment_id, run_name=title, tags=wanted)
            self._parents[key] = run.info.run_id
        return self._parents[key]

    def adopt(self, config: RunConfig, run_id: str) -> None:
        """Nest a run that is kept from before, if it has no parent and the study has begun."""
        if self._client is None:
            return
        with suppress(*MLFLOW_ERRORS):
            if MLFLOW_PARENT_RUN_ID not in self._client.get_run(run_id).data.tags:
                self._client.set_tag(run_id, MLFLOW_PARENT_RUN_ID, self._open_parent(config))

    def fail(self, config: RunConfig) -> None:
        """Let the parents of a run end as FAILED."""
        self._failed |= {self._key, _hash_without_seed(config)}

    def end(self, status: str) -> None:
        """Write how the parents ended; those of a failed run have failed where the others are finished."""
        client = self._client
        if client is None:
            return

        def send() -> None:
            for key, run_id in self._parents.items():
                has_failed = status == "FINISHED" and key in self._failed
                client.set_terminated(run_id, "FAILED" if has_failed else status)

        send_briefly(send)

    def _open_parent(self, config: RunConfig) -> str:
        title = f"train-all, {config.profile}: {_count(len(self._configs), 'run')}"
        study = self.open("train-all", self._key, title)
        key = _hash_without_seed(config)
        if self._seeds[key] <= 1:
            return study
        title = f"{config.recipe} on {config.dataset}, {config.profile}: {_count(self._seeds[key], 'seed')}"
        return self.open("seeds", key, title, study)


@contextmanager
def open_study(settings: Settings, configs: Sequence[RunConfig]) -> Iterator[Study]:
    """Return the parents of some runs while the block runs; they end as FINISHED, FAILED or KILLED."""
    study = Study(settings, configs)
    try:
        yield study
    except BaseException as error:
        study.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    study.end("FINISHED")


def _hash_without_seed(config: RunConfig) -> str:
    return config.model_copy(update={"seed": 0}).sha256()


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
