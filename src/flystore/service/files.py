"""From what the projection knows of an external array to what a reader needs."""

from flystore.projection import ExternalArray
from flystore.readers import EventFiles, Resource


def event_files(external: ExternalArray) -> EventFiles:
    """Return the files of a document-made array in the readers' terms, its rows counted from each resource's base."""
    return EventFiles(
        mimetype=external.resources[0].mimetype,
        dtype=external.dtype,
        item_shape=external.item_shape,
        resources=tuple(
            Resource(
                uri=resource.uri,
                parameters=resource.parameters,
                template=resource.template,
                files_per_event=max(1, external.files_per_row),
            )
            for resource in external.resources
        ),
    )
