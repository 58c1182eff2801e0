"""Shadow traffic: challengers label some of the images that champions answer; where they agree is counted.

Shape suffixes: N = images in the request, K = classes.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

import numpy as np
import numpy.typing as npt

from serving.decoding.encoded import EncodedImage
from serving.errors import OverloadedError, ServingError
from serving.models.classifier import Classifier
from serving.models.model_set import ModelSet
from serving.models.predictions import ChallengerState

logger = logging.getLogger(__name__)

OnComparison = Callable[[str, str, str, int, int], None]
_Classify = Callable[[Classifier, list[EncodedImage]], Awaitable[npt.NDArray[np.float32]]]


class Shadow:
    """The comparisons of one service; used from its event loop. One request at a time, so that answers do not wait."""

    def __init__(
        self,
        models: ModelSet,
        share: float,
        classify: _Classify,
        on_comparison: OnComparison | None = None,
    ) -> None:
        """Compare nothing yet.

        Args:
            models: Set that holds the challengers.
            share: Of the requests that are compared, in [0, 1], while no other comparison is going on.
            classify: Returns float32 [N, K] of a model and N encoded images.
            on_comparison: Told the name, the versions of champion and challenger, and how many images were labelled
                alike and differently.
        """
        self._models = models
        self._share = share
        self._classify = classify
        self._on_comparison = on_comparison
        self._running: asyncio.Task[None] | None = None
        self._counts: dict[tuple[str, str, str], tuple[int, int]] = {}

    def offer(
        self, champion: Classifier, images: list[EncodedImage], probabilities_NK: npt.NDArray[np.float32]
    ) -> None:
        """Send images that a champion answered to its challenger, if there is one; returns at once."""
        challenger = self._models.get_challenger(champion.manifest.name)
        is_busy = self._running is not None and not self._running.done()
        if challenger in (None, champion) or is_busy or random.random() >= self._share:  # noqa: S311
            return
        self._running = asyncio.create_task(self._compare(champion, challenger, images, probabilities_NK))

    def describe(self, champion: Classifier) -> ChallengerState | None:
        """Return the challenger of a champion and how often they agreed; None without one."""
        state = self._models.describe_challenger(champion)
        if state is None:
            return None
        count, agreeing = self._counts.get((champion.manifest.name, champion.version, state.version), (0, 0))
        return state.model_copy(update={"count": count, "agreement_fraction": agreeing / count if count else None})

    async def _compare(
        self,
        champion: Classifier,
        challenger: Classifier,
        images: list[EncodedImage],
        probabilities_NK: npt.NDArray[np.float32],
    ) -> None:
        try:
            others_NK = await self._classify(challenger, images)
        except OverloadedError:
            return  # those who asked go first
        except ServingError as error:
            logger.warning("%s: challenger version %s: %s", champion.manifest.name, challenger.version, error)
            return
        except Exception:
            logger.exception("%s: challenger version %s failed", champion.manifest.name, challenger.version)
            return
        champion_labels = [champion.manifest.classes[index] for index in probabilities_NK.argmax(axis=1)]
        challenger_labels = [challenger.manifest.classes[index] for index in others_NK.argmax(axis=1)]
        alike = sum(one == other for one, other in zip(champion_labels, challenger_labels, strict=True))
        pair = _name_pair(champion, challenger)
        count, agreeing = self._counts.get(pair, (0, 0))
        # Only what is compared now is kept.
        self._counts = {known: counts for known, counts in self._counts.items() if known[0] != pair[0]}
        self._counts[pair] = (count + len(images), agreeing + alike)
        if self._on_comparison is not None:
            self._on_comparison(*pair, alike, len(images) - alike)


def _name_pair(champion: Classifier, challenger: Classifier) -> tuple[str, str, str]:
    return champion.manifest.name, champion.version, challenger.version
