"""From what the projection knows of an external array to what a reader needs."""

from flystore.projection import ExternalArray
from flystore.readers import EventFiles


def event_files(external: ExternalArray) -> EventFiles:
    """Return the files of a document-made array in the readers' terms."""
    raise NotImplementedError
