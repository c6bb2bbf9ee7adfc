"""Plain text -> documents: blank lines between them, a document a line, one file."""

from collections.abc import Iterator

from data_prep.reading import MAX_DOCUMENT_CHARACTERS, Document, Input, as_document, stripped_lines


def read_text(given: Input, blank_line_closes: bool = True) -> Iterator[Document]:
    """Yield documents, each closed by a blank line or the end of the file."""
    lines: list[str] = []
    length = 0
    for line in stripped_lines(given):
        if line:
            lines.append(line)
            length += len(line)
        if lines and (blank_line_closes and not line or length >= MAX_DOCUMENT_CHARACTERS):
            yield as_document(lines)
            lines, length = [], 0
    yield as_document(lines)


def read_lines(given: Input) -> Iterator[Document]:
    """Yield every line as a document."""
    yield from (Document(0, line) for line in stripped_lines(given) if line)
