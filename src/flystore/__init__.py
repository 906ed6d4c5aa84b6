"""flystore: storage and management of Bluesky data."""
