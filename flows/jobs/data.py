"""Packed data sets: adding one, listing all."""

from pathlib import Path

from flows.jobs.job import OFFLINE, Job, argument, option
from model_code.data.limits import MAX_BAD_FRACTION
from model_code.errors import UsageError
from model_code.settings import load_settings
from serving.listing import FORM, Form


class AddData(Job):
    """Pack images: NAME is cifar10, shapes (drawn here), food10, food11, imagenet-val, or any name for class folders.

    food11 is read in any of its three layouts; imagenet-val is for evaluation only. NAME-with-feedback is the packed
    NAME with more training images, from class folders.
    """

    command, flow, run_name, is_short = "data add", "add-data", "add-{name}", True
    loads = "the data sources"

    name: str = argument("NAME", "Name of the data set.")
    sources: tuple[Path, ...] = option((), "Folder, zip or tar; repeatable.", name="--from")
    download: bool = option(False, "Fetch the published archive (cifar10).")
    url: str | None = option(None, "Mirror of that archive; its checksum must be the published one.", metavar="URL")
    image_size: int | None = option(
        None,
        "Height and width in pixels; 32 for cifar10 and shapes, 72 for food10, 256 for food11 and imagenet-val, else "
        "64 or, for NAME-with-feedback, that of NAME.",
    )
    skip: bool = option(False, "Leave out what fits no layout, links to nothing and empty classes.")
    max_bad: float = option(
        MAX_BAD_FRACTION, "Largest share of a split's images that may not decode; they are left out.", ge=0, lt=1
    )
    offline: bool = option(False, OFFLINE)

    @property
    def has_flow(self) -> bool:
        return not self.offline

    def check(self) -> None:
        from model_code.data.add import check_arguments

        if self.offline and self.download:
            raise UsageError("--offline and --download exclude each other: bring the archive and give it with --from")
        check_arguments(self.name, self.sources, self.download, self.image_size, self.url)

    def run(self) -> None:
        from flows.printing.tables import print_added
        from model_code.data.add import add_dataset

        settings = load_settings()
        added = add_dataset(
            self.name,
            [source.resolve() for source in self.sources],
            cache_dir=settings.cache_dir,
            data_dir=settings.data_dir,
            download=self.download,
            url=self.url,
            image_size=self.image_size,
            skip=self.skip,
            max_bad_fraction=self.max_bad,
        )
        print_added(added)


class RemoveData(Job):
    """Remove a packed data set; downloads and the images that it was packed from stay."""

    command = "data remove"

    name: str = argument("NAME", "Name of the data set.")
    is_forced: bool = option(False, "Remove it although interrupted runs or its feedback set need it.", name="--force")

    def run(self) -> None:
        from flows.operations.removal import remove_dataset
        from model_code.disk import format_size

        size_bytes = remove_dataset(load_settings(), self.name, is_forced=self.is_forced)
        print(f"data set {self.name} is removed, {format_size(size_bytes)} are free")


class ListData(Job):
    """List the packed data sets: counts, classes, size, checksum."""

    command = "data list"

    form: Form = option("table", FORM, name="--format")

    def run(self) -> None:
        from flows.printing.tables import print_datasets
        from model_code.data.cache import list_datasets

        cache_dir = load_settings().cache_dir
        print_datasets(list_datasets(cache_dir), cache_dir, self.form)
