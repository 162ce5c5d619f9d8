"""Where snapshots, events and replay logs are kept. `open_storage(url)` imports the backend that the URL names."""
