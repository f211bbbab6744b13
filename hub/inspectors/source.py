"""The file an inspector reads: opened once, with its size, its name and its first bytes."""

from functools import cached_property
from typing import BinaryIO, Final

from hub.inspectors.zips import LOCAL_SIGNATURE, Archive
from protocol.limits import KIB

START_BYTES: Final = 4 * KIB


class Source:
    """An installer as inspectors read it. `name` is the file name it was published under, `size` in bytes.

    Nothing may be read without a bound, and nothing but `file`: inspectors run where no other file can be opened.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.file = file
        self.name = name
        self.size = file.seek(0, 2)
        file.seek(0)
        self.start = file.read(START_BYTES)

    @property
    def is_zip(self) -> bool:
        """Whether the file begins as a zip archive; one that is only appended to something else does not count."""
        return self.start.startswith(LOCAL_SIGNATURE)

    @cached_property
    def archive(self) -> Archive:
        """The zip archive the file is. Raises BadFileError."""
        return Archive.open(self.file, self.size)
