"""Reads the parts of a WebAssembly binary: bytes, LEB128 numbers, names, sorts, never beyond the end of the part.

The attack it stops: lengths and counts that are larger than what is there. Every one is checked against the bytes that remain.

Pure Python, no engine.
"""

from __future__ import annotations

from typing import NoReturn

CORE_PREAMBLE = b"\0asm\x01\x00\x00\x00"
COMPONENT_PREAMBLE = b"\0asm\x0d\x00\x01\x00"
CUSTOM, CORE_MODULE, CORE_INSTANCE, CORE_TYPE, COMPONENT, INSTANCE, ALIAS, TYPE, CANON, START, IMPORT, EXPORT = range(12)
"""Sections of a component."""
SORT_CORE, SORT_FUNCTION, SORT_VALUE, SORT_TYPE, SORT_COMPONENT, SORT_INSTANCE = range(6)
"""Sorts of things; a core one is followed by its own."""
CORE_SORT_FUNCTION, CORE_SORT_MEMORY, CORE_SORT_MODULE, CORE_SORT_INSTANCE = 0x00, 0x02, 0x11, 0x12
ALIAS_EXPORT, ALIAS_CORE_EXPORT, ALIAS_OUTER = range(3)
"""What an alias names."""
MAX_ENTRIES = 100_000
MAX_NAME_BYTES = 4_096


class CompileRejectedError(Exception):
    """A component cannot be accepted. The text is for its author."""


def reject(message: str) -> NoReturn:
    """Raise CompileRejectedError."""
    raise CompileRejectedError(message)


class BinaryReader:
    """Reads a part of the binary, never beyond its end.

    Args:
        data: the whole binary.
        offset: where the part begins.
        end: where it ends.
    """

    __slots__ = ("data", "end", "offset")

    def __init__(self, data: memoryview, offset: int, end: int) -> None:
        self.data = data
        self.offset = offset
        self.end = end

    def byte(self) -> int:
        """Read one byte."""
        if self.offset >= self.end:
            reject("the component ends in the middle of a section")
        value = self.data[self.offset]
        self.offset += 1
        return value

    def u32(self) -> int:
        """Read an unsigned LEB128 number of 32 bits."""
        value = 0
        for shift in range(0, 35, 7):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:  # noqa: PLR2004 - the continuation bit
                if value >> 32:
                    break
                return value
        reject("a number in the component does not fit 32 bits")

    def count(self, maximum: int = MAX_ENTRIES) -> int:
        """Read the length of a vector whose entries take at least a byte each."""
        value = self.u32()
        if value > min(maximum, self.end - self.offset):
            reject(f"the component announces {value} entries where at most {maximum} are allowed")
        return value

    def name(self) -> str:
        """Read a name."""
        length = self.u32()
        if length > min(MAX_NAME_BYTES, self.end - self.offset):
            reject("a name in the component is too long")
        raw = bytes(self.data[self.offset : self.offset + length])
        self.offset += length
        try:
            return raw.decode()
        except UnicodeDecodeError:
            reject("a name in the component is not UTF-8")

    def external_name(self) -> str:
        """Read the name of a component's import or export."""
        form = self.byte()
        if form not in {0, 1}:
            reject(f"the component uses a form of names ({form}) that is not supported")
        return self.name()

    def sort(self) -> tuple[int, int]:
        """Read a sort; the second number is that of a core sort."""
        first = self.byte()
        return first, self.byte() if first == SORT_CORE else 0

    def external_type(self) -> tuple[tuple[int, int], int]:
        """Step over what an import or export is; return its sort and the index of its type, -1 where it has none."""
        sort = self.sort()
        if sort[0] in {SORT_VALUE, SORT_TYPE} and self.byte() != 0:
            if sort[0] == SORT_VALUE:
                self.u32()
            # A fresh resource.
            return sort, -1
        return sort, self.u32()

    def section(self) -> tuple[int, BinaryReader]:
        """Read a section's header and step over it; return its number and a reader of its content."""
        identifier = self.byte()
        length = self.u32()
        start = self.offset
        if length > self.end - start:
            reject("a section ends outside the component")
        self.offset += length
        return identifier, BinaryReader(self.data, start, start + length)
