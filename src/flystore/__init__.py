"""flystore: storage and management of Bluesky data."""

__version__ = "0.1.0.dev0"
