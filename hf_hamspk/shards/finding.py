"""From what a user names to utterances: which kind of source is it?"""

import re
from collections.abc import Sequence
from pathlib import Path

from .listing import Listing
from .parts import is_part
from .planning import PrepareOptions
from .sources import archive_sets, list_archive, list_folder, list_table
from .streams import COMPRESSED_SUFFIXES, DataSetStream, Stream, TarStream

ARCHIVE_SUFFIXES = (".zip", ".tar")
METADATA_NAMES = ("metadata.csv", "metadata.jsonl")
"""What describes the files of an audio folder of `datasets`."""

SPLIT_NAMES = {"train", "test", "validation", "valid", "val", "dev", "eval"}
HUB_PREFIX = "hf://datasets/"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

KINDS = (
    "a folder of audio, a zip or tar or the parts of one (..._partaa), a CSV file, Parquet files, a folder or Hub "
    "repository of `datasets`, or the address of tars"
)


def find_utterances(sources: Sequence[str], options: PrepareOptions) -> tuple[Listing, list[Stream]]:
    """List what can be listed, and open the rest as streams.

    Args:
        sources: see `prepare`.
        options: see `PrepareOptions`.

    Raises:
        ValueError: a source is not there, or of no known kind.
    """
    listing = Listing()
    archives: list[Path] = []
    streams: list[Stream] = []
    for source in sources:
        path = Path(source)
        if not path.exists():
            streams += _remote(source, options)
        elif path.is_dir():
            _sort_directory(path, options, listing, archives, streams)
        elif path.suffix.lower() == ".csv":
            _list_csv(path, options, listing)
        elif not _sort_file(path, options, archives, streams):
            raise ValueError(f"{source} is no source that is known: give {KINDS}")
    for parts in archive_sets(archives):
        list_archive(listing, parts)
    return listing, streams


def _sort_file(path: Path, options: PrepareOptions, archives: list[Path], streams: list[Stream]) -> bool:
    """Put a file with its kind; whether it has one."""
    name = path.name.lower()
    if is_part(path) or name.endswith(ARCHIVE_SUFFIXES):
        archives.append(path)
    elif name.endswith(COMPRESSED_SUFFIXES):
        streams.append(TarStream(str(path)))
    elif name.endswith(".parquet"):
        streams.append(DataSetStream(str(path), options.split, options.audio_column, options.speaker_column))
    else:
        return False
    return True


def _sort_directory(
    root: Path, options: PrepareOptions, listing: Listing, archives: list[Path], streams: list[Stream]
) -> None:
    entries = sorted(entry for entry in root.iterdir() if not entry.name.startswith("."))
    names = [entry.name.lower() for entry in entries if entry.is_file()]
    tables = any(name.endswith((".parquet", ".arrow")) or name == "state.json" for name in names)
    if tables or any((root / "data").glob("*.parquet")):
        streams.append(DataSetStream(str(root), options.split, options.audio_column, options.speaker_column))
        return
    endings = (*ARCHIVE_SUFFIXES, *COMPRESSED_SUFFIXES)
    folders = [entry.name for entry in entries if entry.is_dir()]
    if options.split in folders and SPLIT_NAMES.issuperset(folders):
        # An audio folder of `datasets`: the speakers of another split must not come in.
        _sort_directory(root / options.split, options, listing, archives, streams)
        return
    for name in METADATA_NAMES:
        if name in names and _names_files(root / name):
            _list_csv(root / name, options, listing)
            return
    packed = [
        entry for entry in entries if entry.is_file() and (is_part(entry) or entry.name.lower().endswith(endings))
    ]
    if packed and folders:
        raise ValueError(
            f"{root} holds archives ({packed[0].name}) and folders ({folders[0]}), perhaps the same audio twice: name "
            "the one or the others"
        )
    for path in packed:
        _sort_file(path, options, archives, streams)
    if not packed:
        list_folder(listing, root)


def _names_files(metadata: Path) -> bool:
    """Whether it is the table of an audio folder; other corpora have files of that name too."""
    with open(metadata, encoding="utf-8-sig", errors="replace") as file:
        return "file_name" in file.readline()


def _list_csv(path: Path, options: PrepareOptions, listing: Listing) -> None:
    root = path.parent if options.audio_root is None else Path(options.audio_root)
    usual = "file_name" if path.name in METADATA_NAMES else "path"
    audio = usual if options.audio_column is None else options.audio_column
    speaker = "speaker_id" if options.speaker_column is None else options.speaker_column
    list_table(listing, path, root, audio, speaker)


def _remote(source: str, options: PrepareOptions) -> list[Stream]:
    """The streams of an address or of a repository of the Hub."""
    repository = source.removeprefix(HUB_PREFIX)
    if _REPOSITORY.fullmatch(repository):
        return _repository(repository, options)
    if "://" in source and source.lower().endswith((".tar", *COMPRESSED_SUFFIXES)):
        return [TarStream(source)]
    raise ValueError(f"there is no {source}: give {KINDS}")


def _repository(repository: str, options: PrepareOptions) -> list[Stream]:
    """Of a repository that holds tars only, each tar; `datasets` decodes those, and for that wants FFmpeg."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        found = HfApi().dataset_info(repository)
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        raise ValueError(
            f"there is no {repository} on this disk, and as a data set of the Hub it cannot be reached ({error})"
        ) from error
    files = [] if found.siblings is None else sorted(sibling.rfilename for sibling in found.siblings)
    tars = [file for file in files if file.lower().endswith((".tar", *COMPRESSED_SUFFIXES))]
    if tars and not any(file.endswith(".parquet") for file in files):
        # By its commit, so that the repository may go on meanwhile.
        return [TarStream(f"{HUB_PREFIX}{repository}@{found.sha}/{file}") for file in tars]
    return [
        DataSetStream(repository, options.split, options.audio_column, options.speaker_column, revision=str(found.sha))
    ]
