"""Packed data sets: adding one, listing all."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from flows.jobs.job import QUIET, AnyDatasetName, DatasetName, Job, argument, option
from flows.printing.narration import narrating
from model_code.data.limits import MAX_BAD_FRACTION
from model_code.errors import FaultyFilesError, UsageError
from model_code.settings import load_settings
from serving.listing import FORM, Form

if TYPE_CHECKING:
    from model_code.data.add import AddedDataset


class AddData(Job):
    """Pack images: NAME is cifar10, shapes (drawn here), food10, food11, imagenet-val, or any name for class folders.

    food11 is read in any of its three layouts; imagenet-val is for evaluation only, from class folders or from
    ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz, each with --from. NAME-with-feedback is the packed NAME
    with more training images, from class folders.
    """

    command, flow, run_name, is_short = "data add", "add-data", "add-{name}", True
    loads = ("the data sources",)
    is_resumable = True

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
    offline: bool = option(False, "Without Prefect and a network.")

    exclude: tuple[Path, ...] = option(
        (),
        "Leave out the images in the column `file` of this CSV table, such as `data check` writes; repeatable.",
        metavar="FILE",
    )
    report: Path | None = option(None, "Write a CSV table of all that is left out or wrong, and why.", metavar="FILE")
    form: Form = option("table", FORM, name="--format")
    is_quiet: bool = option(False, QUIET, name="--quiet")

    @property
    def has_flow(self) -> bool:
        return super().has_flow and not self.offline

    def check(self) -> None:
        from model_code.data.add import check_arguments

        if self.offline and self.download:
            raise UsageError("--offline and --download exclude each other: bring the archive and give it with --from")
        check_arguments(self.name, self.sources, self.download, self.image_size, self.url)

    def run(self) -> None:
        with narrating(self.form, is_quiet=self.is_quiet):
            added = self.add()
        from flows.operations.data_notes import list_notes
        from flows.printing.datasets import print_added

        notes = [] if added.reused or self.form != "table" else list_notes(added.dataset, load_settings())
        print_added(added, self.form, notes=notes, is_offline=self.offline, is_quiet=self.is_quiet)

    def add(self) -> "AddedDataset":
        """Pack the images, and write the table of those that are left out."""
        from model_code.data.add import add_dataset

        settings = load_settings()
        try:
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
                exclude=self.exclude,
            )
        except FaultyFilesError as error:
            self._write_report(error.faults)
            raise
        self._write_report([(one.name, one.reason) for one in added.skipped if not one.is_note])
        return added

    def _write_report(self, faults: Iterable[tuple[str, str]]) -> None:
        if self.report is not None:
            from model_code.data.tables import write_table

            write_table(self.report, ("file", "reason"), faults)


class CheckData(Job):
    """Look for label issues, near-duplicates within and across splits, and blank, dark, bright or blurred images.

    The packed images are compared with their checksums first. A page with thumbnails and a table of the packed revision
    are written; `darkroom data add --exclude` takes the table. A table that was edited is never overwritten.
    """

    command, loads = "data check", ("PyTorch",)

    name: DatasetName = argument("NAME")
    out: Path | None = option(None, "Output folder; DARKROOM_HOME/checks/NAME if not given.", metavar="DIR")

    def check(self) -> None:
        from model_code.data.cache import read_manifest

        read_manifest(self.name, load_settings().cache_dir)

    def run(self) -> None:
        from flows.operations.data_check import check_data
        from flows.printing.lines import print_line

        checked = check_data(self.name, self.out)
        for line in (
            checked.title,
            *(f"  {kind}: {count}" for kind, count in checked.counts.items()),
            *(f"  {line}" for line in checked.lines),
            f"  page: {checked.page}",
            f"  table: {checked.table}",
        ):
            print_line(line)


class CompareData(Job):
    """Show what was added, removed, relabelled or moved between splits from one revision to another.

    A revision is NAME, as it is packed now, or NAME@CHECKSUM as `darkroom data list NAME` shows it.
    """

    command = "data diff"

    before: DatasetName = argument("BEFORE")
    after: DatasetName = argument("AFTER")
    form: Form = option("table", FORM, name="--format")

    def run(self) -> None:
        from flows.printing.datasets import print_difference
        from model_code.data.revisions import compare_revisions, read_revision

        cache_dir = load_settings().cache_dir
        before, after = (read_revision(one, cache_dir) for one in (self.before, self.after))
        print_difference(compare_revisions(before, after), self.form)


class RemoveData(Job):
    """Remove a packed data set and the history of its revisions; downloads and the images it was packed from stay.

    A data set that a run, a registered version or its feedback set needs stays, unless --force is given.
    """

    command = "data remove"

    name: DatasetName = argument("NAME", "Name of the data set.")
    is_forced: bool = option(False, "Remove it although runs, versions or its feedback set need it.", name="--force")
    is_dry: bool = option(False, "Show what would be removed and what needs it.", name="--dry-run")

    def run(self) -> None:
        from flows.operations.removal import plan_dataset_removal, remove_dataset
        from flows.printing.lines import print_line

        if self.is_dry:
            plan = plan_dataset_removal(load_settings(), self.name)
            would = "would not be removed without --force" if plan.users else "would be removed"
            for line in (f"data set {self.name} {would}: {plan}", *(f"  needed by {user}" for user in plan.users)):
                print_line(line)
            return
        removed = remove_dataset(load_settings(), self.name, is_forced=self.is_forced)
        print_line(f"data set {self.name} is removed: {removed}")


class ListData(Job):
    """List the packed data sets: counts, classes, size, checksum; of one of them, its revisions."""

    command = "data list"

    name: AnyDatasetName = argument("NAME", default=None)
    form: Form = option("table", FORM, name="--format")

    def run(self) -> None:
        if self.name is not None:
            from flows.printing.datasets import print_revisions
            from model_code.data.cache import read_manifest
            from model_code.data.revisions import list_revisions

            cache_dir = load_settings().cache_dir
            read_manifest(self.name, cache_dir)
            print_revisions(list_revisions(self.name, cache_dir), self.form)
            return
        from flows.printing.datasets import print_datasets
        from model_code.data.cache import list_datasets

        cache_dir = load_settings().cache_dir
        print_datasets(list_datasets(cache_dir), cache_dir, self.form)


class ExportData(Job):
    """Write the packed pixels of a data set as a zip: <split>/<class>/<number>.png and <split>/metadata.csv."""

    command = "data export"

    name: DatasetName = argument("NAME")
    out: Path = option(..., "The zip or, with --parquet, the folder, which must not be there yet.", metavar="FILE")
    parquet: bool = option(False, "Write a folder of Parquet files instead, as Hugging Face's datasets reads it.")

    def run(self) -> None:
        from model_code.data.cache import open_dataset
        from model_code.data.export import export_dataset

        count = export_dataset(open_dataset(self.name, load_settings().cache_dir), self.out, self.parquet)
        print(f"{self.out}: {count} images of {self.name}")
